"""Studies of several tasks, and studies side by side."""

import json

import pytest
import yaml

from lensjax.cli.main import main
from lensjax.cli.specs import read_studies
from lensjax.core.errors import InputError
from lensjax.study.comparing import compare
from lensjax.study.schema import Ranked, StudyReport
from lensjax.study.spec import read_study

FIELDS = {
    "candidates": ["pocket:gpt2-0.2m", "pocket:llama-0.3m"],
    "tasks": {
        "letters": {
            "source": {"files": "rows.jsonl"},
            "prompt": "{n}:",
            "target": " {a}",
            "validation": 30,
            "test": 30,
        },
        "numbers": "numbers.yaml",
    },
    "budget": 400,
    "evidence": {"ntk": False},
}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A file of a study of two tasks, one of which has a file of its own."""
    monkeypatch.chdir(tmp_path)
    rows = "".join(json.dumps({"n": f"{n}", "a": f"{n * n}"}) + "\n" for n in range(700))
    (tmp_path / "rows.jsonl").write_text(rows)
    task = FIELDS["tasks"]["letters"] | {"prompt": "{a}:", "target": " {n}"}
    (tmp_path / "numbers.yaml").write_text(yaml.safe_dump(task))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(FIELDS))
    return tmp_path / "study.yaml"


def test_each_task_is_a_study_of_the_same_candidates(study):
    letters, numbers = (read_study(study, (), name) for name in ("letters", "numbers"))
    assert (letters.name, numbers.name) == ("study letters", "study numbers")
    assert letters.names == numbers.names
    assert (letters.task.prompt, numbers.task.prompt) == ("{n}:", "{a}:")
    assert letters.identity != numbers.identity
    assert read_study(study, ("budget=200k",), "letters").budget.examples == 200_000


def test_runs_and_reports_are_of_all_tasks(study, capsys):
    assert set(read_studies(study)) == {"letters", "numbers"}
    main(["run", "study.yaml", "--dry-run"])
    capsys.readouterr()
    for name in ("letters", "numbers"):
        from lensjax.study.folder import open_study

        open_study(read_study(study, (), name), study.with_name("study") / name)
    main(["report", "study"])
    said = capsys.readouterr().out
    assert "Wrote study/comparison.html" in said
    assert "study letters: No decision yet" in said
    assert said.splitlines()[-1].startswith("No candidate is ranked in all of the studies")
    assert json.loads((study.with_name("study") / "comparison.json").read_text())["choices"] == [None, None]


def test_commands_of_one_task_name_the_folders(study, fails):
    said = fails("data", "show", "study.yaml")
    assert "has several tasks (letters, numbers), and this takes one: give the folder of its study" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": {}}, "has both task and tasks; give one of them"),
        ({"tasks": []}, "tasks names no tasks; write as in"),
        ({"tasks": {"a/b": {}}}, "tasks: 'a/b' cannot name a folder of results"),
    ],
)
def test_tasks_that_make_no_sense_are_refused(study, changes, message):
    study.write_text(yaml.safe_dump(FIELDS | changes))
    with pytest.raises(InputError, match=message):
        read_study(study)


def row(name, rank, predicted, regret, ineligible=None):
    empty = dict.fromkeys(("family", "parameters", "loss_at_budget", "lower90", "upper90", "probability_best"))
    fields = {"rank": rank, "model": name, "predicted": predicted, "expected_regret": regret, "ineligible": ineligible}
    return Ranked.model_validate({**empty, **fields, "baselines": {}, "law": {}})


def report(name, *rows):
    decision = {"sentence": f"{name} says.", "model": rows[0].model, "final": True}
    from lensjax.study.schema import Decision

    return StudyReport.model_construct(
        study=name, ranking=rows, decision=Decision(**decision), unit="bits per byte", target=800
    )


def test_what_costs_least_over_all_is_by_shares_of_each_studys_best():
    a = report("a", row("x", 1, 2.0, 0.1), row("y", 2, 2.2, 0.2), row("z", None, 1.0, None, "too large"))
    b = report("b", row("y", 1, 0.5, 0.01), row("x", 2, 0.6, 0.1))
    found = compare([a, b])
    assert [one.model for one in found.overall] == ["y", "x", "z"]
    assert found.overall[0].regrets == pytest.approx((0.2 / 2.0, 0.01 / 0.5))
    assert found.overall[0].mean == pytest.approx(0.06)
    assert found.overall[2].mean is None
    assert found.choices == ("x", "y")
    assert found.sentence.startswith("Over 2 studies, y is expected to cost least: 6 % of the best model’s loss")
    assert "the choice of 1 of 2" in found.sentence


def test_without_regrets_losses_above_the_lowest_count():
    found = compare([report("a", row("x", 1, 2.0, None), row("y", 2, 3.0, None))] * 2)
    assert [one.mean for one in found.overall] == [0.0, pytest.approx(0.5)]
