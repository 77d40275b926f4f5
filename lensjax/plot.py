"""Figures of curves, rankings and kernels: matplotlib's by default, interactive ones with `backend="plotly"`.

    lensjax.plot.curves(posterior)
    lensjax.plot.ranking(rank(table, budget, target))
    lensjax.plot.kernel_spectrum({"gpt2": theta})

Each function draws into the `axes` that it is given, or into new ones, and returns them; of Plotly it returns a figure.
The first five are in colours that differ in any colour vision, the others grey.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from lensjax.core.errors import InputError
from lensjax.core.sections import DotPlot, Line, LinePlot
from lensjax.core.text import count
from lensjax.curvature.dynamics import spectrum
from lensjax.curves.table import CurveTable
from lensjax.fit.joint.posterior import JointPosterior
from lensjax.fit.posterior import CurvePosterior
from lensjax.fit.stacked.posterior import StackedPosterior
from lensjax.report.figures.curves import curves_figure
from lensjax.report.figures.plots import GREY, PALETTE, SYMBOLS, compact
from lensjax.report.figures.sections import dot_figure, line_figure
from lensjax.selection.ranking import Ranking

__all__ = ["curves", "kernel_spectrum", "ranking"]

Backend = Literal["matplotlib", "plotly"]
_SIZES = 64  # at which fitted curves are drawn
_MARKERS = "osD^v"  # of matplotlib, as Plotly's symbols of the reports
_EXAMPLES, _LOSS = "training examples", "test loss"


@dataclass(frozen=True)
class _Curves:
    """Curves in the order in which they are drawn: lines with bands, and points."""

    lines: Sequence[Line]
    points: Mapping[str, tuple[np.ndarray, np.ndarray]]
    unit: str = ""

    @property
    def plot(self) -> LinePlot:
        y_title = f"{_LOSS}, {self.unit}" if self.unit else _LOSS
        return LinePlot("curves", "Curves", _EXAMPLES, y_title, self.lines)


def curves(
    shown: CurvePosterior | CurveTable | Ranking,
    table: CurveTable | None = None,
    *,
    axes: Any = None,
    backend: Backend = "matplotlib",
) -> Any:
    """Losses against numbers of training examples, both logarithmic.

    Args:
      shown: a posterior, whose median curves are drawn, best at its horizon first, five with 90 % bands; a ranking,
        whose fitted curves are, in its order; or a table, whose points are joined.
      table: measured losses to draw as points with a posterior; by default those that it was fitted to, where it knows
        them.
      axes: of matplotlib, to draw into.
      backend: "matplotlib" or "plotly".

    Returns:
      matplotlib's Axes, or Plotly's Figure.

    Raises:
      InputError: the library is not installed, or axes are given for Plotly.
    """
    if isinstance(shown, Ranking):
        if _is_plotly(backend, axes):
            return curves_figure(shown)
        drawn = _of_ranking(shown)
    elif isinstance(shown, CurveTable):
        drawn = _of_table(shown)
    else:
        drawn = _of_posterior(shown, table)
    if _is_plotly(backend, axes):
        return _with_points(line_figure(drawn.plot), drawn)
    axes = _draw_lines(_axes(axes), drawn.plot)
    for place, line in enumerate(drawn.lines):
        x, y = drawn.points.get(line.name, ((), ()))
        axes.plot(x, y, _marker(place), color=_colour(place), markersize=5)
    _round_ticks(axes)
    return axes


def ranking(shown: Ranking, *, axes: Any = None, backend: Backend = "matplotlib") -> Any:
    """Predicted losses with 90 % intervals, the model to choose at the top, and the probability that each is best.

    Args:
      shown: of `lensjax.selection.ranking.rank`, by a method that predicts losses.
      axes, backend: see `curves`.

    Returns:
      matplotlib's Axes, or Plotly's Figure.

    Raises:
      InputError: the method that ranks predicts no losses; or see `curves`.
    """
    prediction, order = shown.prediction, shown.order
    if not prediction.is_loss:
        raise InputError(f"{shown.method} predicts an order and no losses to draw; rank by joint or stacked.")
    order = order[np.isfinite(prediction.score[order])]
    chances = shown.probability_best
    names = [
        shown.table.models[i] + ("" if chances is None or np.isnan(chances[i]) else f", P(best) {chances[i]:.2f}")
        for i in order
    ]
    score = prediction.score[order]
    lower, upper = (score if end is None else end[order] for end in (prediction.lower, prediction.upper))
    title = f"{_LOSS} at {shown.target:,} examples, {shown.table.unit}"
    if _is_plotly(backend, axes):
        figure = dot_figure(DotPlot("ranking", "Ranking", title, names, score.tolist(), [0.0] * len(order)))
        return figure.update_traces(error_x={"array": compact(upper - score), "arrayminus": compact(score - lower)})
    axes, rows = _axes(axes), np.arange(len(order))
    axes.errorbar(score, rows, xerr=[score - lower, upper - score], fmt="none", ecolor=GREY, linewidth=1)
    axes.plot(score, rows, "o", color=_colour(0), markersize=5)
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    axes.set_xlabel(title)
    return axes


def kernel_spectrum(
    shown: ArrayLike | Any | Mapping[str, Any], *, axes: Any = None, backend: Backend = "matplotlib"
) -> Any:
    """Eigenvalues of kernels per example, Θ / N, largest first, against their rank.

    Args:
      shown: a kernel [N, N]; its eigenvalues [n]; anything that has `eigenvalues`, as measured kernels and those of a
        study's report do; or several of these by name.
      axes, backend: see `curves`.

    Returns:
      matplotlib's Axes, or Plotly's Figure.

    Raises:
      InputError: a kernel is not symmetric, or not finite; or see `curves`.
    """
    several = shown if isinstance(shown, Mapping) else {"Θ": shown}
    lines = []
    for name, one in several.items():
        values = _eigenvalues(one)
        values = values[values > 0]
        lines.append(Line(name, range(1, len(values) + 1), values.tolist()))
    plot = LinePlot("spectra", "NTK spectra", "rank", "eigenvalue of Θ / N", lines)
    if _is_plotly(backend, axes):
        return line_figure(plot)
    return _draw_lines(_axes(axes), plot)


def _eigenvalues(one: Any) -> Float[np.ndarray, " n"]:
    values = np.asarray(getattr(one, "eigenvalues", one), np.float64)
    if values.ndim == 2:
        return spectrum(values)
    if values.ndim != 1:
        raise InputError(f"A kernel has shape {values.shape}; give one [N, N], or its eigenvalues [n].")
    return np.sort(values)[::-1]


def _of_table(table: CurveTable) -> _Curves:
    positive = table.sizes > 0
    lines = []
    for model, losses in zip(table.models, table.loss, strict=True):
        known = positive & np.isfinite(losses)
        lines.append(Line(model, table.sizes[known].tolist(), losses[known].tolist()))
    return _Curves(lines, _points(table), str(table.unit))


def _of_ranking(ranking: Ranking) -> _Curves:
    plain = _of_table(ranking.table)
    if ranking.curves is None:
        return replace(plain, lines=[plain.lines[i] for i in ranking.order])
    fitted = ranking.curves
    bands = zip(ranking.table.models, fitted.loss, fitted.lower, fitted.upper, strict=True)
    lines = [_band(model, fitted.sizes, *parts) for model, *parts in bands]
    return replace(plain, lines=[lines[i] for i in ranking.order])


def _of_posterior(posterior: CurvePosterior, table: CurveTable | None) -> _Curves:
    sizes = np.geomspace(posterior.unit, posterior.horizon, _SIZES)
    losses = posterior.predict(sizes)
    lines = [_band(model, sizes, *parts) for model, *parts in zip(posterior.models, *losses.parts, strict=True)]
    first = np.argsort(posterior.expected_regret(posterior.horizon), kind="stable")
    lines = [lines[i] for i in first]
    if table is not None:
        return _Curves(lines, _points(table), str(table.unit))
    joint = posterior.joint if isinstance(posterior, StackedPosterior) else posterior
    return _Curves(lines, joint.points() if isinstance(joint, JointPosterior) else {})


def _band(model: str, sizes: np.ndarray, loss: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> Line:
    return Line(model, sizes.tolist(), loss.tolist(), lower.tolist(), upper.tolist())


def _points(table: CurveTable) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    shown = table.sizes > 0
    return {model: (table.sizes[shown], losses[shown]) for model, losses in zip(table.models, table.loss, strict=True)}


def _draw_lines(axes: Any, plot: LinePlot) -> Any:
    """Lines and bands in matplotlib, the first ones on top."""
    for place, line in reversed(list(enumerate(plot.lines))):
        first = place < len(PALETTE)
        axes.plot(
            line.x,
            line.y,
            color=_colour(place),
            linewidth=2 if first else 1,
            alpha=1 if first else 0.6,
            label=line.name if first else None,
            zorder=3 - place / (len(plot.lines) + 1),
        )
        if line.lower and first:
            axes.fill_between(line.x, line.lower, line.upper, color=_colour(place), alpha=0.14, linewidth=0)
    axes.set(xscale="log", yscale="log", xlabel=plot.x_title, ylabel=plot.y_title)
    if len(plot.lines) > 1:
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1])
    return axes


def _is_plotly(backend: str, axes: Any) -> bool:
    if backend not in ("matplotlib", "plotly"):
        raise InputError(f"There is no backend {backend!r}; give matplotlib or plotly.")
    if backend == "plotly" and axes is not None:
        raise InputError("Axes are matplotlib's; leave them out, or leave out backend='plotly'.")
    return backend == "plotly"


def _axes(axes: Any) -> Any:
    """Those given, or new ones."""
    if axes is not None:
        return axes
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise InputError(
            "Figures need matplotlib; install it with: pip install 'lensjax[plot]', or give backend='plotly'."
        ) from error
    return pyplot.subplots()[1]


def _round_ticks(axes: Any) -> None:
    """Sizes as 12.8k, and losses as they are, where matplotlib would write 2 × 10⁰."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis, steps, words in (
        (axes.xaxis, (1, 2, 5), count),
        (axes.yaxis, (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8), "{:g}".format),
    ):
        axis.set_major_locator(LogLocator(subs=steps))
        axis.set_major_formatter(FuncFormatter(lambda value, _, words=words: words(value)))
        axis.set_minor_formatter(NullFormatter())


def _with_points(figure: Any, drawn: _Curves) -> Any:
    for place, line in enumerate(drawn.lines):
        x, y = drawn.points.get(line.name, ((), ()))
        marker = {"color": _colour(place), "symbol": SYMBOLS[place] if place < len(SYMBOLS) else "circle", "size": 7}
        figure.add_scatter(
            x=compact(x), y=compact(y), mode="markers", marker=marker, legendgroup=f"line {place}", showlegend=False
        )
    return figure.update_xaxes(ticktext=None, tickformat="~s")


def _colour(place: int) -> str:
    return PALETTE[place] if place < len(PALETTE) else GREY


def _marker(place: int) -> str:
    return _MARKERS[place] if place < len(_MARKERS) else "."
