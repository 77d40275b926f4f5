import csv
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lensjax.core.errors import InputError
from lensjax.curves import public as datasets
from lensjax.curves.simulated import simulated
from lensjax.selection.backtest import Score, backtest, means, to_csv

TARGET = 1_638_400
PUBLISHED = {"AtS": "ats", "SubTuning": "sub_tuning", "ZeroShot": "zero_shot", "ModelSize": "model_size"}
METRIC = {"PearCorr": "pearson", "RelAcc": "relative_accuracy"}
needs_curves = pytest.mark.skipif(
    not {"flan", "gigaword"} <= set(datasets.available()), reason="set LENSJAX_BENCHMARKS to the public curves"
)


@pytest.fixture(scope="module")
def scores():
    """The joint fit and published methods on two public tasks at every published budget."""
    tables = [datasets.rectified(task) for task in ("flan", "gigaword")]
    return {score[:4]: score.value for score in backtest(tables, TARGET, methods=["joint", *PUBLISHED.values()])}


@needs_curves
@pytest.mark.parametrize("name", PUBLISHED)
def test_baselines_equal_every_published_cell(scores, name):
    path = Path(os.environ["LENSJAX_BENCHMARKS"], "rectified", "published_cells.csv")
    if not path.exists():
        pytest.skip("published_cells.csv is not beside the curves")
    with path.open() as file:
        cells = [row for row in csv.DictReader(file) if row["method"] == name]
    assert len(cells) == 28
    for cell in cells:
        key = cell["dataset"], PUBLISHED[name], TARGET // int(cell["budget_ratio"]), METRIC[cell["metric"]]
        assert 100 * scores[key] == pytest.approx(float(cell["percent"]), abs=0.1), key


@needs_curves
def test_joint_method_keeps_what_it_reached(scores):
    def mean(task, metric):
        return np.mean([v for (t, m, _, k), v in scores.items() if (t, m, k) == (task, "joint", metric)])

    assert mean("flan", "pearson") >= 0.67
    assert mean("flan", "relative_accuracy") >= 0.91
    assert mean("flan", "log_rmse") <= 0.132
    assert mean("gigaword", "pearson") >= 0.955
    assert mean("gigaword", "relative_accuracy") >= 0.97
    assert mean("gigaword", "log_rmse") <= 0.045
    assert 0.85 <= (mean("flan", "coverage90") + mean("gigaword", "coverage90")) / 2 <= 0.95


@needs_curves
def test_joint_method_is_nowhere_far_below_ats(scores):
    for (task, method, budget, metric), value in scores.items():
        if (method, metric) == ("joint", "pearson"):
            assert value >= scores[task, "ats", budget, "pearson"] - 0.02, (task, budget)


def test_a_method_at_a_budget_sees_nothing_above_it():
    table = simulated(models=6)
    later = table.loss.copy()
    later[:, (table.sizes > 12_800) & (table.sizes < TARGET)] *= 0.5
    methods = ("sub_tuning", "ats", "vanilla_law")
    plain = backtest([table], TARGET, [128], methods)
    assert plain == backtest([replace(table, loss=later)], TARGET, [128], methods)
    assert {score.budget for score in plain} == {12_800}


def test_scores_round_trip_through_csv():
    scores = [Score("task, one", "ats", 800, "pearson", 0.5), Score("task, one", "ats", 1600, "pearson", 1.0, "bits")]
    rows = list(csv.DictReader(to_csv(scores).splitlines()))
    assert list(rows[0]) == ["task", "method", "budget", "metric", "value", "unit"]
    assert [float(row["value"]) for row in rows] == [0.5, 1.0]
    assert [row["unit"] for row in rows] == ["", "bits"]
    assert means(scores) == {("task, one", "ats", "pearson"): 0.75}


def test_bad_input_is_one_sentence():
    table = simulated(models=3)
    with pytest.raises(InputError, match="fewer than two models measured at the target"):
        backtest([table], 5)
    with pytest.raises(InputError, match=r"to 204 examples; give ratios of at most 4096\."):
        backtest([table], TARGET, [8, 8000])
    with pytest.raises(InputError, match="measure more sizes below the target"):
        backtest([table], 400, [2])
    with pytest.raises(InputError, match="ratio of 1 shows methods the losses"):
        backtest([table], TARGET, [1, 8])
    with pytest.raises(InputError, match="given twice"):
        backtest([table, table], TARGET)
    with pytest.raises(InputError, match="no method nope"):
        backtest([table], TARGET, methods=["nope"])
