"""Figures for notebooks: what is drawn, in matplotlib and in Plotly."""

import builtins

import matplotlib
import numpy as np
import pytest

import lensjax
from lensjax.core.errors import InputError
from lensjax.curves.simulated import simulated
from lensjax.fit.stacked.weights import stack
from lensjax.measure.kernel import MeasuredKernel
from lensjax.selection.ranking import rank

matplotlib.use("Agg")
BUDGET, TARGET = 12_800, 102_400


@pytest.fixture(scope="module")
def table():
    return simulated(models=7)


@pytest.fixture(scope="module")
def posterior(table):
    return lensjax.fit.fit_joint(table.up_to(BUDGET), TARGET)


@pytest.fixture(scope="module")
def ranking(table):
    return rank(table, BUDGET, TARGET, "joint")


@pytest.fixture
def axes():
    from matplotlib import pyplot

    figure, axes = pyplot.subplots()
    yield axes
    pyplot.close(figure)


def lines(axes):
    """Lines by the number of their points."""
    return [(line.get_xdata(), line.get_ydata()) for line in axes.get_lines()]


def test_curves_of_a_posterior_are_its_medians_best_first_with_the_losses_they_were_fitted_to(posterior, table, axes):
    assert lensjax.plot.curves(posterior, axes=axes) is axes
    curves = [line for line in lines(axes) if len(line[0]) == 64][::-1]
    points = [line for line in lines(axes) if len(line[0]) == 7]
    assert len(curves) == len(points) == 7
    order = np.argsort(posterior.expected_regret(TARGET), kind="stable")
    for (x, y), i in zip(curves, order, strict=True):
        np.testing.assert_allclose(y, posterior.predict(np.asarray(x)).loss[i])
    seen = table.up_to(BUDGET)
    for (x, y), i in zip(points, order, strict=True):
        np.testing.assert_allclose(x, seen.sizes[seen.sizes > 0])
        np.testing.assert_allclose(y, seen.loss[i, seen.sizes > 0])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [table.models[i] for i in order[:5]]
    assert axes.get_xscale() == axes.get_yscale() == "log"


def test_curves_of_a_stack_and_of_a_given_table_have_points_too(posterior, table, axes):
    lensjax.plot.curves(stack(table.up_to(BUDGET), posterior, TARGET), axes=axes)
    assert sum(len(x) == 7 for x, _ in lines(axes)) == 7
    axes.clear()
    lensjax.plot.curves(posterior, table, axes=axes)
    assert axes.get_ylabel() == "test loss, nats per token"
    assert sum(len(x) == (table.sizes > 0).sum() for x, _ in lines(axes)) == 7


def test_a_table_is_drawn_as_it_is(table, axes):
    lensjax.plot.curves(table, axes=axes)
    drawn = sorted(y.tolist() for x, y in lines(axes) if x[0] > 0)
    assert drawn == sorted([row.tolist() for row in table.loss[:, table.sizes > 0]] * 2)  # a line, and points


def test_a_ranking_has_the_choice_at_the_top(ranking, axes):
    lensjax.plot.ranking(ranking, axes=axes)
    (dots,) = [line for line in lines(axes) if len(line[0]) == 7]
    np.testing.assert_allclose(dots[0], ranking.prediction.score[ranking.order])
    assert axes.get_yticklabels()[0].get_text().startswith(ranking.table.models[ranking.choice] + ", P(best) ")
    low, high = axes.get_ylim()
    assert low > high


def test_spectra_are_of_kernels_eigenvalues_or_what_has_them(axes):
    rows = np.random.default_rng(0).normal(size=(6, 9))
    theta = rows @ rows.T
    values = np.linalg.eigvalsh(theta)[::-1] / 6
    kernel = MeasuredKernel("loss", theta, None, None, None, values, None, None, (), 0)
    lensjax.plot.kernel_spectrum({"theta": theta, "values": values, "kernel": kernel}, axes=axes)
    for _, y in lines(axes):
        np.testing.assert_allclose(y, values, rtol=1e-5)
    with pytest.raises(InputError, match=r"shape \(2, 3, 4\); give one \[N, N\]"):
        lensjax.plot.kernel_spectrum(np.zeros((2, 3, 4)))


def test_plotly_draws_the_same(posterior, ranking, table):
    figure = lensjax.plot.curves(posterior, backend="plotly")
    assert sum(trace.mode == "markers" for trace in figure.data) == 7
    assert lensjax.plot.curves(ranking, backend="plotly").data
    assert lensjax.plot.curves(table, backend="plotly").data
    (dots,) = lensjax.plot.ranking(ranking, backend="plotly").data
    np.testing.assert_allclose(dots.x, ranking.prediction.score[ranking.order], rtol=1e-5)
    assert min(dots.error_x.array) > 0
    assert len(lensjax.plot.kernel_spectrum(np.eye(3), backend="plotly").data[0].x) == 3


def test_what_cannot_be_drawn_is_refused(ranking, table, axes, monkeypatch):
    with pytest.raises(InputError, match="no backend 'bokeh'; give matplotlib or plotly"):
        lensjax.plot.curves(table, backend="bokeh")
    with pytest.raises(InputError, match="Axes are matplotlib's"):
        lensjax.plot.curves(table, axes=axes, backend="plotly")
    with pytest.raises(InputError, match="predicts an order and no losses"):
        lensjax.plot.ranking(rank(table, BUDGET, TARGET, "model_size"))
    importing = builtins.__import__

    def without(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return importing(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'lensjax\[plot\]'"):
        lensjax.plot.curves(table)
