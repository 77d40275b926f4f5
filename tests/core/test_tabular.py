"""What notebooks show of results: short reprs, tables, and data frames with names."""

import sys

import numpy as np
import pytest

import lensjax
from lensjax.core.errors import InputError
from lensjax.core.tabular import Tabular
from lensjax.curvature.spectrum import StochasticEstimate
from lensjax.curves.simulated import simulated
from lensjax.measure.approximate import ApproximateKernel
from lensjax.measure.hessian import Hessian
from lensjax.measure.kernel import MeasuredKernel
from lensjax.selection.advice import Advice, NextPoint, Point
from lensjax.selection.ranking import rank
from lensjax.train.results import Result

TARGET = 25_600


@pytest.fixture(scope="module")
def table():
    return simulated(models=4).up_to(6400)


@pytest.fixture(scope="module")
def posterior(table):
    return lensjax.fit.fit_joint(table, TARGET)


@pytest.fixture(scope="module")
def results(table, posterior):
    kernel = MeasuredKernel("loss", np.eye(3), None, None, None, np.full(3, 1 / 3), None, None, (), 0)
    ranking = rank(table, 6400, TARGET, "joint")
    return [table, posterior, posterior.predict(np.array([800, 6400])), ranking, kernel]


def test_reprs_are_a_line(results):
    table, posterior, losses, ranking, kernel = map(repr, results)
    assert table == "<Curves of simulated: 4 models, 200 to 6,400 examples, in nats per token>"
    assert posterior == "<Joint posterior over the curves of 4 models, 200 to 25,600 examples>"
    assert losses == "<Predicted losses of 4 models at 2 sizes, with 90 % intervals>"
    assert ranking.endswith(": 4 models by joint for 25,600 examples>")
    assert kernel == "<Kernel of loss, 3 × 3, largest eigenvalue of Θ / N 0.3333>"


def test_data_frames_hold_the_numbers_by_name(results, table, posterior):
    pytest.importorskip("pandas")
    frames = [result.to_pandas() for result in results]
    row = frames[0].query(f"model == '{table.models[1]}' and examples == 800")
    assert row["loss"].item() == table.column(800)[1]
    assert len(frames[0]) == table.measured.sum()
    np.testing.assert_array_equal(frames[1]["probability_best"], posterior.probability_best(TARGET))
    last = frames[2].query(f"model == '{table.models[3]}' and examples == 6400")
    assert last["upper"].item() == posterior.predict(6400).upper[3, 0]
    assert frames[3]["model"][0] == results[3].table.models[results[3].choice]
    assert frames[3]["expected_regret"].is_monotonic_increasing
    assert list(frames[4]["rank"]) == [1, 2, 3]


def test_polars_gives_the_same(results):
    pytest.importorskip("polars")
    for result in results:
        assert result.to_polars().columns == list(result.as_columns())


def test_tables_of_notebooks_are_short_and_escaped():
    class Long(Tabular):
        headline = "<b>long\x1b"

        def as_columns(self):
            return {"<i>": ["<script>", *["x"] * 49], "y": [None, float("nan"), 0.123456, 1234, *[True] * 46]}

    shown = Long()._repr_html_()
    assert "<script>" not in shown
    assert "<i>" not in shown
    assert "\x1b" not in shown
    assert shown.count("<tr>") == 31
    assert "… and 20 more rows" in shown
    assert "<td>–</td></tr><tr><td>x</td><td>–</td>" in shown
    assert "<td>0.1235</td>" in shown
    assert "<td>1,234</td>" in shown
    assert repr(Long()) == "<<b>long�>"


def test_missing_libraries_are_named(table, monkeypatch):
    for name in ("pandas", "polars"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(InputError, match=f"Data frames need {name}; install it with: pip install {name}"):
            getattr(table, f"to_{name}")()


def test_other_results_are_a_line_and_a_table_too():
    estimate = StochasticEstimate(np.float64(3.0), np.float64(0.5))
    hessian = Hessian(np.array([2.0, 1.0]), np.zeros(2), None, estimate, (), estimate, 9)
    assert repr(hessian) == "<Hessian: trace 3 ± 0.5, largest eigenvalue 2>"
    features = ApproximateKernel(
        "loss", "sketch", 3, np.eye(3), np.full(3, 1 / 3), 3.0, 0.1, None, None, None, None, (), 0
    )
    assert repr(features).startswith("<Kernel of loss, sketch: 3 random features of 3 rows: Θ / N has trace 3 ± 0.1")
    advice = Advice((NextPoint(Point("b", 800), 1e9, 0.01),), "a", 0.02, 0.001, "bits per byte")
    assert repr(advice) == "<Advice: a, expected regret 0.02 bits per byte; next b at 800 examples>"
    assert repr(Advice(())) == "<Advice: no choice yet; nothing to measure>"
    run = Result(model="a", examples=400, loss=1.25, seed=0, size=9, family="gpt2")
    assert repr(run) == "<a on 400 examples, seed 0: test loss 1.2500 nats per token>"
    failed = run.model_copy(update={"loss": None, "status": "failed", "error": "the loss is nan at step 3"})
    assert repr(failed) == "<a on 400 examples, seed 0: failed, the loss is nan at step 3>"
    for result in (hessian, features, advice, run, failed):
        assert result._repr_html_().count("<tr>") == 1 + len(next(iter(result.as_columns().values())))
