import json
import re

import numpy as np
import pytest

from lensjax.cli.main import main
from lensjax.core.text import count
from lensjax.curves.simulated import simulated as simulated_curves
from lensjax.curves.table import curve_table

RUNGS = [200, 400, 800, 1600]
TARGET = 51_200


@pytest.fixture
def curves(tmp_path):
    path = tmp_path / "curves.csv"
    simulated_curves(seed=1, models=6, sizes=RUNGS).write(path)
    return path


def advised(capsys, *arguments):
    """What a command prints and writes."""
    main(["next", *(str(argument) for argument in arguments)])
    return capsys.readouterr().out


def test_the_best_cells_are_shown_and_all_are_written(capsys, curves, tmp_path):
    out = advised(capsys, curves, "--target", TARGET, "--top", 3, "--json", tmp_path / "next.json")
    found = json.loads((tmp_path / "next.json").read_text())
    assert (found["task"], found["target"], found["max_examples"]) == ("curves", TARGET, TARGET // 8)
    assert found["cost"] == "FLOPs per token of an example"
    cells = found["cells"]
    assert len(cells) == 6 * 2  # 3200 and 6400 of every model
    assert [cell["examples"] for cell in cells if cell["model"] == cells[0]["model"]].count(6400) == 1
    per_cost = [cell["expected_drop"] / cell["cost"] for cell in cells]
    assert per_cost == sorted(per_cost, reverse=True)
    simulated = simulated_curves(seed=1, models=6)
    best, size = cells[0], dict(zip(simulated.models, simulated.parameters, strict=True))
    share = best["examples"] * size[best["model"]] / (TARGET * sum(size.values()))
    assert best["share_of_full_tuning"] == pytest.approx(share)
    rows = [line for line in out.splitlines() if "simulated-" in line]
    assert len(rows) == 3 + 1
    assert best["model"] in rows[0]
    assert f"{best['examples']:,}" in rows[0]
    assert rows[-1] == (
        f"Fine-tune {best['model']} on {best['examples']:,} examples next: that is expected to lower the regret of the "
        f"choice by {best['expected_drop']:.2g} nats per token for {100 * share:.2g} % of FullTuning; or stop: the "
        f"expected regret of choosing {found['choice']} now is "
        f"{found['expected_regret']:.4f} nats per token."
    )


def test_the_choice_may_be_limited_in_size(capsys, curves, fails):
    sizes = dict(zip((table := simulated_curves(seed=1, models=6, sizes=RUNGS)).models, table.parameters, strict=True))
    limit = sorted(sizes.values())[2]
    wishes = ["--max-parameters", f"{limit:.0f}", "--smallest-within", 10]
    out = advised(capsys, curves, "--target", TARGET, *wishes)
    smallest = min(sizes, key=sizes.get)
    assert f"expected regret beyond 10 of choosing {smallest} now is 0.0000 nats per token" in out
    assert f"{smallest} ({count(sizes[smallest])} parameters) is the smallest that is expected to be within 10" in out
    assert out.count("Not to be chosen, nor measured further") == 3
    for name, size in sizes.items():
        assert (f"{name}, as it has {count(size)} parameters, and at most {count(limit)} are allowed." in out) == (
            size > limit
        )
    assert "The curves of task 'curves' do not hold exact match" in fails(
        "next", curves, "--target", TARGET, "--metric", "exact_match"
    )
    wrong = "--max-parameters is many; give a positive number, such as 500M, 1.5B or 2e9."
    assert wrong in fails("next", curves, "--target", TARGET, "--max-parameters", "many")
    wrong = "--smallest-within: The margin of loss to give up is 0.0; give a positive number"
    assert wrong in fails("rank", curves, "--target", TARGET, "--smallest-within", 0)
    curves.write_text(curve_table(["a", "b"], RUNGS, np.ones((2, 4))).to_csv())
    wrong = "Task 'curves' gives no model's number of parameters; add a column size, or leave --max-parameters out."
    assert wrong in fails("rank", curves, "--target", TARGET, "--max-parameters", "1.5B")
    assert "parameters are not known, by which the smallest" in fails(
        "rank", curves, "--target", TARGET, "--smallest-within", 1
    )


def test_costs_are_examples_where_a_size_is_unknown(capsys, curves, tmp_path):
    text = re.sub(r",\d{8,}(?=,family-0)", ",", curves.read_text(), count=1)
    curves.write_text(text)
    advised(capsys, curves, "--target", TARGET, "--json", tmp_path / "next.json")
    found = json.loads((tmp_path / "next.json").read_text())
    assert found["cost"] == "examples"
    assert {cell["cost"] == cell["examples"] for cell in found["cells"]} == {True}
    assert found["cells"][0]["share_of_full_tuning"] == pytest.approx(found["cells"][0]["cost"] / (6 * TARGET))


def test_nothing_left_to_measure(capsys, curves):
    out = advised(capsys, curves, "--target", TARGET, "--max-examples", 3199)
    assert re.fullmatch(
        r"Stop, or raise --max-examples to 3200: every model is measured up to 3,199 examples, and the expected regret "
        r"of choosing simulated-\d\d now is 0\.\d{4} nats per token\.\n",
        out,
    )


def test_where_all_is_measured_to_the_target_there_is_nothing_to_raise(capsys, curves):
    out = advised(capsys, curves, "--target", 3199, "--max-examples", 3199)
    assert out.startswith("Stop: every model is measured up to 3,199 examples")
    out = advised(capsys, curves, "--target", 3199, "--max-examples", 1600)  # of which the double is beyond the target
    assert out.startswith("Stop: every model is measured up to 1,600 examples")


def test_nothing_that_would_matter(capsys, tmp_path):
    loss = np.array([1.0, 8.0, 8.1, 8.2, 8.3, 8.4])[:, None] * np.array(RUNGS) ** -0.05
    curve_table("abcdef", RUNGS, loss).write(tmp_path / "clear.csv")
    out = advised(capsys, tmp_path / "clear.csv", "--target", TARGET)
    assert out.splitlines()[-1] == (
        "Stop: the expected regret of choosing a now is 0.0000 nats per token, and "
        "no single cell up to 6,400 examples is expected to lower it by 0.0001."
    )


def test_cells_that_the_fit_needs(capsys, tmp_path):
    nan = np.nan
    table = curve_table(["[b]x", "y", "z"], [0, 200, 400], [[5, 3, 2], [5, 3, nan], [5, nan, nan]])
    table.write(tmp_path / "short.csv")
    out = advised(capsys, tmp_path / "short.csv", "--target", TARGET, "--json", tmp_path / "next.json")
    assert out.splitlines()[-1] == (
        "Fine-tune z on 200 examples next: 2 models have fewer than the two sizes above 0 that a fit needs, and their "
        "cells come first."
    )
    found = json.loads((tmp_path / "next.json").read_text())
    assert [(cell["model"], cell["examples"], cell["needed"]) for cell in found["cells"]] == [
        ("z", 200, True),
        ("y", 400, True),
        ("z", 400, True),
    ]
    assert found["choice"] is found["expected_regret"] is None


BAD = {
    "Task 'curves' has no loss from 1 to the target of 100 examples; measure two sizes of each model.": (
        "--target", 100,
    ),
    "--max-examples is 60000; give a number from 1 to the target of 51200.": (
        "--target", TARGET, "--max-examples", 60_000,
    ),
    "Task 'curves' has fewer than two rungs up to --max-examples 399; give 400 or more.": (
        "--target", TARGET, "--max-examples", 399,
    ),
    "--top is 0; give 1 or more.": ("--target", TARGET, "--top", 0),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_exit_with_2_and_one_sentence(fails, curves, message):
    assert fails("next", curves, *BAD[message]) == f"lensjax: {message}\n"


def test_bad_curves_exit_with_2_and_no_file(fails, tmp_path):
    (tmp_path / "one.csv").write_text("model,200,400\na,3,2\n")
    said = fails("next", tmp_path / "one.csv", "--target", TARGET, "--json", tmp_path / "next.json")
    assert said == "lensjax: Task 'one' has 1 model; a choice needs two.\n"
    assert "Cannot read" in fails("next", tmp_path / "none.csv", "--target", TARGET)
    assert not (tmp_path / "next.json").exists()


def test_help_has_worked_examples(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["next", "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.count("$ lensjax next") >= 2
