"""`experiments/does_curvature_help`: the answers, from made-up measurements whose answers are known."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from lensjax.core.artefacts import CHECKSUM, sealed
from lensjax.core.errors import InputError
from lensjax.curves.csv_files import read_curves
from lensjax.selection.ranking import rank

FOLDER = Path(__file__).parents[2] / "experiments" / "does_curvature_help"
SIZES = [0, *(200 * 2**k for k in range(6))]
MODELS = [f"m{i}" for i in range(6)]
FLOPS = [10, *(2 * size if size <= 400 else size for size in SIZES[1:])]  # of a model's run, in millions, over seeds
TITLE = "spelling, 6 models to 6,400"


@pytest.fixture(scope="module")
def experiment(imported: Any) -> Any:
    with imported(FOLDER, "evidence", "tables", "analyse", "measure", "metrics") as modules:
        yield modules


def write_measurements(folder: Path, task: str, seed: int) -> None:
    """Laws whose D_l is the kernel's residual at a time that all share, ΣH that falls as n^(−0.3)."""
    rng = np.random.default_rng(seed)
    rates = rng.uniform(0.01, 1, (len(MODELS), 8))
    squares = rng.uniform(0.5, 2, (len(MODELS), 8))
    left = (squares * np.exp(-2 * rates * 2.0)).sum(axis=1)
    with (folder / f"{task}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "examples", "loss", "seed", "size", "family", "flops", "best_step", "steps"])
        for i, model in enumerate(MODELS):
            beta, floor = 0.3 + 0.01 * i, 0.5 + 0.05 * i
            scale = 3 * (20 * left[i] + 200**beta)
            for size in SIZES:
                loss = scale / (20 * left[i] + max(size, 1) ** beta) + floor
                noise = np.exp(0.002 * rng.standard_normal())
                of = 1000 * (i + 1), "f"
                writer.writerow([model, size, loss * noise, 0, *of, 1e6 * max(size, 10), size // 2, size])
                if 0 < size <= 400:  # the smallest sizes may have more seeds
                    writer.writerow([model, size, loss * noise * 1.02, 1, *of, 3e6 * size, size, size])
    content = {
        "kernels": [
            {"model": model, "rates": rates[i].tolist(), "weights": squares[i].tolist(), "effective_rank": 9.0 - i}
            | {"flops": 1000, "functional": "loss"}
            for i, model in enumerate(MODELS)
        ],
        "searches": dict.fromkeys(MODELS, 150 * 10**6),
        "bound": [
            {
                "model": model,
                "block": "joint",
                "examples": SIZES[1 : (7 if task == "spelling" else 5) - seed],
                "beta2": {"value": value, "lower": value - 0.1, "upper": value + 0.1},
                "transition": 500.0 * (i + 1),
                "note": "nothing is left" if i else "",
            }
            for i, model in enumerate(MODELS)
            for seed, value in enumerate((0.3, 0.9))  # the second seed's ladder is shorter, and does not count
        ],
        "drifts": [
            {"model": model, "seed": 0, "examples": SIZES[1:4], "drift": [0.1, 0.2, 0.3 if i else 0.1]}
            | {"growth": [2.0] * 3, "effective_rank": [4.0] * 3, "target_alignment": [0.5] * 3}
            for i, model in enumerate(MODELS)
        ],
        "weights": {model: float(i) for i, model in enumerate(MODELS)},
    }
    (folder / f"{task}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def results(experiment: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    for seed, task in enumerate(("spelling", "topics")):
        write_measurements(folder, task, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment["evidence"], "RATIOS", (8,))
        experiment["analyse"].main(folder)
    return folder


@pytest.mark.long
def test_the_answers_are_those_that_were_put_in(results: Path) -> None:
    answers = json.loads((results / "answers.json").read_text(encoding="utf-8"))
    phases = answers["phases"]
    assert (len(phases["ladders"]), phases["below_half"], phases["falls"], phases["above_half"]) == (12, 12, 12, 0)
    assert (phases["long"], phases["bound_sees_transition"]) == (6, 6)  # AtS sees none on four rungs
    assert phases["notes"] == {"nothing is left": 10}
    drifts = answers["drifts"]
    assert (len(drifts["ladders"]), drifts["rises"]) == (12, 10)
    assert drifts["by_task"]["topics"] == pytest.approx({"200": 0.1, "400": 0.2, "800": (5 * 0.3 + 0.1) / 6})
    for other in ("published", "hierarchical", "free"):
        cells = answers["variants"][other]["cells"]
        places = {(cell["task"], cell["target"], cell["budget"]) for cell in cells}
        assert places == {(task, 8 * budget, budget) for task in ("spelling", "topics") for budget in (400, 800)}
        low, high = answers["variants"][other]["interval90"]
        assert low < answers["variants"][other]["mean"] < high
    assert {one["task"] for one in answers["left_out"]} == {"spelling", "topics"}
    assert all(one["lost"] >= 0 for one in answers["left_out"])
    assert answers["saved"][TITLE]["800"] == pytest.approx(1 - (sum(FLOPS[:4]) + 150) / (150 + 400 + 6400))


@pytest.mark.long
def test_methods_are_summed_up_over_tasks_with_what_they_save(results: Path) -> None:
    answers = json.loads((results / "answers.json").read_text(encoding="utf-8"))
    methods = answers["methods"]
    assert methods["LensLLM, tied"]["metrics"]["relative_accuracy"] > 0.911
    assert set(methods["joint"]["regret"]) == {"spelling", "topics"}
    assert np.mean([*methods["joint"]["regret"].values()]) == pytest.approx(methods["joint"]["metrics"]["regret"])
    for order in ("model_size", "kernel, effective rank"):
        assert methods[order]["metrics"]["log_rmse"] is None
        assert np.isfinite(methods[order]["metrics"]["regret"])
    for name, found in methods.items():
        held = found["coverage90"]
        assert (held == {}) == (not name.startswith(("joint", "LensLLM", "stacked")))
        # Two tasks' losses of six models, foreseen from 800 examples with one seed, and from 400 with two.
        counts = {sizes: (one["intervals"], one["fits"], one["losses"]) for sizes, one in held.items()}
        assert counts in ({}, {"2": (24, 4, 12), "3": (12, 2, 12)})
        assert all(0 <= one["share"] <= 1 for one in held.values())


@pytest.mark.long
def test_every_smaller_target_is_told_with_what_is_saved_there(results: Path) -> None:
    answers = json.loads((results / "answers.json").read_text(encoding="utf-8"))
    of = [one for one in answers["targets"] if one["task"] == "spelling"]
    assert [(one["target"], one["least_budget"]) for one in of] == [(3200, 400), (6400, 800)]
    assert of[0]["least_saved"] == pytest.approx(1 - (sum(FLOPS[:3]) + 150) / (150 + 400 + 3200))
    assert all(one["saved"]["joint"] in (0.0, one["least_saved"]) for one in of)
    assert of[-1]["saved"]["joint"] == of[-1]["least_saved"]  # curves as smooth as these are told apart
    assert {(one["good"], one["still_learning"]) for one in of} == {(1, 0.0)}
    said = f"| spelling | 3,200 | {of[0]['spread']:.3f} | 1 of 6 | 0% | {of[0]['least_saved']:.1%} (400) | "
    assert said in (results / "report.md").read_text(encoding="utf-8")


@pytest.mark.long
def test_ranks_of_kernels_are_held_against_losses_with_and_without_each_model(results: Path) -> None:
    ranks = json.loads((results / "answers.json").read_text(encoding="utf-8"))["ranks"]
    assert [(one["task"], one["target"]) for one in ranks[:2]] == [("spelling", 8 * b) for b in (400, 800)]
    table = read_curves(results / "spelling.csv")
    losses, put_in = table.column(3200), 9.0 - np.arange(6)
    assert ranks[0]["correlation"] == pytest.approx(np.corrcoef(put_in, losses)[0, 1])
    without = [np.corrcoef(np.delete(put_in, i), np.delete(losses, i))[0, 1] for i in range(6)]
    assert ranks[0]["without_one"] == pytest.approx([min(without), max(without)])


@pytest.fixture
def task(experiment: dict[str, ModuleType], tmp_path: Path) -> Any:
    write_measurements(tmp_path, "spelling", 0)
    (found,) = experiment["evidence"].read_task(tmp_path, "spelling")
    return found


def test_savings_are_those_of_the_smallest_budget_from_which_on_all_are_good(task: Any) -> None:
    assert task.budgets == [1600, 800, 400]
    saved = {budget: 1 - task.cost(budget) for budget in task.budgets}
    assert task.saved("joint", {1600: 0.95, 800: 0.5, 400: 1.0}) == saved[1600]
    assert task.saved("joint", dict.fromkeys(task.budgets, 0.92)) == saved[400]
    assert task.saved("joint", {1600: 0.9, 800: 1.0, 400: 1.0}) == 0
    assert task.saved("joint", dict.fromkeys(task.budgets, np.nan)) == 0
    dear = replace(task, flops=task.flops | {400: 2 * task.flops[6400]})
    assert dear.saved("joint", dict.fromkeys(task.budgets, 1.0)) == 0


def test_methods_cost_what_they_look_at(task: Any) -> None:
    full = 6 * (150 + 400 + 6400) * 1e6
    spent = {
        "model_size": 0,
        "zero_shot": 6 * 10e6,
        "kernel, effective rank": 6 * 1000,
        "sub_tuning": 6 * (150 + 400 + 800) * 1e6,
        "rectified_law": 6 * (150 + sum(FLOPS[:4])) * 1e6,
        "LensLLM, tied": 6 * (150 + sum(FLOPS[:4])) * 1e6 + 6 * 1000,
    }
    for method, flops in spent.items():
        assert task.cost(800, method) == pytest.approx(flops / full)


def test_a_fit_sees_one_seed(task: Any) -> None:
    one, two = task.ladders(400)
    np.testing.assert_allclose(two.loss[:, 1:], 1.02 * one.loss[:, 1:])
    np.testing.assert_array_equal(two.loss[:, 0], one.loss[:, 0])  # which was measured with the first alone
    assert set(one.seeds.flat) == set(two.seeds.flat) == {1}
    assert len(task.ladders(800)) == 1
    holed = {seed: np.where(task.table.sizes == 800, np.nan, losses) for seed, losses in task.losses.items()}
    assert replace(task, losses=holed).budgets == [400]  # what no seed was measured throughout to is left out


def test_nearer_targets_are_those_that_all_were_measured_at(task: Any) -> None:
    nearer = task.nearer()
    assert [(one.target, one.budgets) for one in nearer] == [
        (1600, [400]),
        (3200, [800, 400]),
        (6400, task.budgets),
    ]
    for one in nearer:
        assert one.table.sizes[-1] == one.target
        assert all(losses.shape == one.table.loss.shape for losses in one.losses.values())
        full = 150 + 400 + one.target
        assert one.cost(400) == pytest.approx((150 + sum(FLOPS[:3])) / full)
    loss = task.table.loss.copy()
    loss[2, list(task.table.sizes).index(3200)] = np.nan
    holed = replace(task, table=replace(task.table, loss=loss))
    assert [one.target for one in holed.nearer()] == [1600, 6400]


@pytest.mark.long
def test_the_report_has_every_method_variant_and_ladder(results: Path) -> None:
    report = (results / "report.md").read_text(encoding="utf-8")
    named = ("joint", "AtS", "SubTuning", "ZeroShot", "ModelSize", "NLPmetrics", "LensLLM, tied", "LensLLM, free")
    assert all(name in report for name in named)
    assert report.count("| joint | 0.30 (0.20 to 0.40) |") == 12
    assert "Between the kernel of loss at the pretrained weights" in report
    saved = 1 - (sum(FLOPS[:4]) + 150) / (150 + 400 + 6400)
    assert f"{TITLE}, budget 800: {saved:.1%} of FullTuning saved" in report
    apart = ", ".join(f"1.4% at {size} (6 models)" for size in (200, 400))
    assert report.count(f"Seeds differ by (standard deviation): {apart}.") == 2
    learning = ", ".join(f"6 of 12 at {size}" for size in (200, 400))
    assert report.count(f"In 12 of 48 runs the validation loss was lowest at the last step: {learning}.") == 2
    assert "- 10 ladders: nothing is left." in report
    assert (results / "answers.svg").exists()


@pytest.mark.usefixtures("dictionary")
@pytest.mark.long
def test_measuring_leaves_curves_and_evidence_and_goes_on(
    experiment: dict[str, ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measure = experiment["measure"]
    monkeypatch.setattr(measure, "HELD_OUT", (20, 20))
    monkeypatch.setitem(measure.TRAINING, "twelve_epochs", {"learning_rate": [1e-3, 3e-3], "max_steps": 3})
    monkeypatch.setattr(measure, "PROBES", 3)
    how = {"models": ("gpt2-0.2m", "llama-0.3m"), "folder": tmp_path / "build", "results": tmp_path / "results"}
    measure.main(tasks=("spelling",), largest=400, **how)
    table = read_curves(tmp_path / "results" / "spelling.csv")
    assert table.measured.all()
    assert table.sizes.tolist() == [0, 200, 400]
    found = json.loads((tmp_path / "results" / "spelling.json").read_text(encoding="utf-8"))
    assert [kernel["model"] for kernel in found["kernels"]] == list(how["models"])
    assert [terms["examples"] for terms in found["bound"]] == [[200, 400]] * 2
    assert [drift["examples"] for drift in found["drifts"]] == [[200, 400]] * 2
    assert set(found["weights"]) == set(found["pretrained"]) == set(how["models"])
    rows = csv.DictReader((tmp_path / "results" / "spelling.csv").read_text(encoding="utf-8").splitlines())
    rungs = [row for row in rows if row["examples"] == "200"]
    assert found["searches"] == {row["model"]: int(row["flops"]) for row in rungs}  # of two rates one is a rung's
    assert all(kernel["flops"] > 0 for kernel in found["kernels"])
    capsys.readouterr()
    measure.main(tasks=("spelling",), largest=400, **how)
    assert "examples" not in capsys.readouterr().out  # nothing is left to measure
    measure.main(tasks=("spelling",), largest=400, seeds=(0, 1), **how)
    measure.main(tasks=("spelling",), largest=400, **how)
    table = read_curves(tmp_path / "results" / "spelling.csv")
    np.testing.assert_array_equal(table.seeds, [[2, 2, 2]] * 2)  # what was measured before stays

    told = (tmp_path / "results" / "spelling.json").read_text(encoding="utf-8")
    elsewhere = how | {"models": ("llama-0.3m", "opt-0.5m"), "folder": tmp_path / "elsewhere"}
    measure.main(tasks=("spelling",), largest=400, sizes=(300,), **elsewhere)
    joined = read_curves(tmp_path / "results" / "spelling.csv")
    assert (joined.models, joined.sizes.tolist()) == ((*how["models"], "opt-0.5m"), [0, 200, 300, 400])
    np.testing.assert_array_equal(joined.loss[:2, [0, 1, 3]], table.loss)  # as does what another machine has measured
    assert np.isfinite(joined.loss[:, 2]).tolist() == [False, True, True]
    after = json.loads((tmp_path / "results" / "spelling.json").read_text(encoding="utf-8"))
    assert set(after["pretrained"]) == set(after["searches"]) == {*how["models"], "opt-0.5m"}
    before = json.loads(told)
    for name in ("kernels", "drifts", "bound", "weights"):
        assert after[name] == before[name]
    measure.main(tasks=("spelling",), largest=400, **elsewhere)  # a ladder, where single sizes are
    joined = read_curves(tmp_path / "results" / "spelling.csv")
    assert joined.measured.tolist() == [[True, True, False, True], [True] * 4, [True] * 4]
    _fail(tmp_path / "elsewhere" / "spelling" / "runs" / "llama-0.3m" / "examples-200-seed-0" / "result.json")
    measure.main(tasks=("spelling",), largest=400, sizes=(300,), **elsewhere)
    again = read_curves(tmp_path / "results" / "spelling.csv")
    np.testing.assert_array_equal(again.loss, joined.loss)  # a run that fails takes nothing from the others
    monkeypatch.setattr(measure, "HELD_OUT", (20, 30))
    elsewhere["folder"] = tmp_path / "another"
    with pytest.raises(InputError, match=r"spelling\.csv holds runs of other settings or test examples; name another"):
        measure.main(tasks=("spelling",), largest=400, sizes=(0,), **elsewhere)
    other = after | {"pretrained": after["pretrained"] | {"opt-0.5m": "of other weights"}}
    (tmp_path / "results" / "spelling.json").write_text(json.dumps(other), encoding="utf-8")
    monkeypatch.setattr(measure, "HELD_OUT", (20, 20))
    elsewhere["folder"] = tmp_path / "elsewhere"
    with pytest.raises(
        InputError, match=r"spelling\.json holds measurements of another opt-0\.5m; name another folder"
    ):
        measure.main(tasks=("spelling",), largest=400, sizes=(300,), **elsewhere)
    (tmp_path / "results" / "spelling.csv").write_text("model,loss\nm,1\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"Cannot read .*spelling\.csv; remove it, or name another folder"):
        measure.main(tasks=("spelling",), largest=400, sizes=(0,), **elsewhere)


@pytest.mark.usefixtures("dictionary")
@pytest.mark.parametrize(
    ("curvature", "functional", "block", "positive_steps"),
    [("of_the_code", "loss", "joint", None), ("of_the_theorem", "label_logits", "diagonal", 16)],
)
def test_curvature_may_be_that_of_the_code_or_of_the_theorem(
    experiment: dict[str, ModuleType],
    tmp_path: Path,
    curvature: str,
    functional: str,
    block: str,
    positive_steps: int | None,
) -> None:
    measure = experiment["measure"]
    models = ("gpt2-0.2m", "llama-0.3m")
    evidence = measure.study(
        measure.Asked("spelling", models, tmp_path, 400, (0,), "twelve_epochs", curvature)
    ).evidence
    assert (evidence.ntk.functional, evidence.ntk.examples, evidence.ntk.along_ladder) == (functional, 32, True)
    assert (evidence.hessian.block, evidence.hessian.positive_steps) == (block, positive_steps)


def _fail(result: Path) -> None:
    content = json.loads(result.read_text(encoding="utf-8"))
    del content[CHECKSUM]
    content |= {"status": "failed", "loss": None, "error": "no memory"}
    result.write_text(sealed(content), encoding="utf-8")


def test_what_is_missing_is_said(experiment: dict[str, ModuleType], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no measurements; run measure\.py first"):
        experiment["analyse"].main(tmp_path)
    write_measurements(tmp_path, "spelling", 0)
    (tmp_path / "spelling.json").unlink()
    with pytest.raises(InputError, match=r"Cannot read .*spelling\.json; run measure\.py again"):
        experiment["analyse"].main(tmp_path)


def test_what_the_demo_chooses_is_best_on_the_full_ladder_or_nearly() -> None:
    demo = yaml.safe_load((FOLDER.parent / "pocket_zoo" / "demo.yaml").read_text(encoding="utf-8"))
    candidates = [name.removeprefix("pocket:") for name in demo["candidates"]]
    table = read_curves(FOLDER / "results" / "spelling.csv")
    table = table.select([table.models.index(name) for name in candidates])
    chosen = rank(table, demo["budget"], demo["target"]).order[0]
    full = table.column(demo["target"])
    assert full[chosen] <= full.min() + 0.02  # nats per token


def test_metrics_are_compared_with_losses_and_predicted(experiment: Any, tmp_path: Path) -> None:
    lines = ["model,examples,loss,bits_per_byte,exact_match,exact_match_error,token_accuracy,token_accuracy_error"]
    for i, model in enumerate(MODELS[:3]):
        for size in (200, 400, 800):
            loss = (5 + i) * size**-0.25
            match = 1 / (1 + loss**3)
            lines.append(f"{model},{size},{2 * loss},{loss},{match},{np.sqrt(match * (1 - match) / 2000)},0,0")
    (tmp_path / "made.csv").write_text("\n".join(lines) + "\n")
    experiment["metrics"].main(tmp_path)
    report = (tmp_path / "report.md").read_text()
    assert "| exact match | 200 | 3 | +1.00 | m0 | m0 | 0.000 ± " in report
    row = re.search(r"\| exact match \| 400 \| 800 \| (.*) \|", report)
    assert row is not None, report
    cells = row[1].split(" | ")
    assert float(cells[0]) < 0.05
    assert cells[2] == "3 of 3"
    assert len(cells) == 6
    assert (
        "| token accuracy | 400 | 800 | not linked: Token accuracy cannot be told from the loss: it is near 0" in report
    )
