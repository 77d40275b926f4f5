"""Plotly figures of the plots of a section."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from lensjax.core.sections import DotPlot, FrontPlot, LinePlot, Point
from lensjax.core.text import count, plotly_text
from lensjax.report.figures.plots import (
    GREY,
    HIGHLIGHTED,
    MUTED,
    NO_EXTRA,
    PALETTE,
    SYMBOLS,
    add_band,
    base_layout,
    compact,
)

_POWERS = {"type": "log", "exponentformat": "power"}  # 10⁻⁴, where Plotly would write 100µ


def line_figure(plot: LinePlot) -> go.Figure:
    """Lines on common axes: the first few in the colours of a ranking, the rest in grey."""
    figure = go.Figure(layout=base_layout(height=340, small=True))
    x_title, y_title = plotly_text(plot.x_title), plotly_text(plot.y_title)
    hover = f"<b>%{{text}}</b><br>{x_title} %{{x:.4~g}}<br>{y_title} %{{y:.4~g}}{NO_EXTRA}"
    for place, line in reversed(list(enumerate(plot.lines))):
        first = place < HIGHLIGHTED
        x, y = np.asarray(line.x, float), np.asarray(line.y, float)
        shown = (y > 0) & ((x > 0) | (not plot.log_x))
        if line.lower and first:  # others would lie over each other
            add_band(figure, x, np.asarray(line.lower, float), np.asarray(line.upper, float), _colour(place))
        figure.add_scatter(
            x=compact(x[shown]),
            y=compact(y[shown]),
            text=[plotly_text(line.name, 80)] * int(shown.sum()),
            name=plotly_text(line.name, 34) if first else f"{len(plot.lines) - HIGHLIGHTED} others",
            legendgroup=f"line {place}" if first else "others",
            legendrank=place,
            mode="lines+markers" if plot.ladder else "lines",
            line={"color": _colour(place), "width": 2 if first else 1},
            marker={"symbol": SYMBOLS[place] if first else "circle", "size": 8 if first else 4},
            opacity=1 if first else 0.6,
            hovertemplate=hover,
            showlegend=len(plot.lines) > 1 and place <= HIGHLIGHTED,
        )
    figure.update_layout(legend={"y": -0.26})
    figure.update_xaxes(title_text=x_title, **_x_axis(plot))
    figure.update_yaxes(title_text=y_title, **_log_axis(y for line in plot.lines for y in line.y))
    return figure


def dot_figure(plot: DotPlot) -> go.Figure:
    """Values with error bars, the first name at the top."""
    title = plotly_text(plot.x_title)
    figure = go.Figure(layout=base_layout(height=120 + 16 * len(plot.names), small=True))
    figure.add_scatter(
        x=compact(plot.values),
        y=[plotly_text(name) for name in plot.names],
        error_x={"array": compact(plot.errors), "color": GREY, "thickness": 1.2, "width": 0},
        mode="markers",
        marker={"color": PALETTE[0], "size": 7},
        hovertemplate=f"%{{y}}<br>{title} %{{x:.4~g}}{NO_EXTRA}",
        showlegend=False,
    )
    return figure.update_xaxes(title_text=title).update_yaxes(autorange="reversed")


def front_figure(plot: FrontPlot) -> go.Figure:
    """Values with intervals against costs: the first few in the colours of a ranking, the rest in grey.

    No point has its name beside it, where names of near points would overlap on a phone: the legend has the first few,
    hovering the others.
    """
    figure = go.Figure(layout=base_layout(height=380, small=True))
    front = sorted((point for point in plot.points if point.on_front), key=lambda point: point.x)
    steps = {"x": compact(point.x for point in front), "y": compact(point.y for point in front)}
    line = {"color": MUTED, "width": 1.4, "shape": "hv", "dash": "dot"}
    figure.add_scatter(**steps, mode="lines", line=line, name="Pareto front", hoverinfo="skip")
    hover = f"<b>%{{text}}</b><br>%{{customdata}}<br>{plotly_text(plot.y_title)} %{{y:.4~g}}{NO_EXTRA}"
    groups: dict[int, list[Point]] = {}
    for point in plot.points:
        groups.setdefault(HIGHLIGHTED if point.place is None else point.place, []).append(point)
    for place, points in sorted(groups.items(), reverse=True):
        first = place < HIGHLIGHTED
        more = f"{len(points)} other model{'s' * (len(points) > 1)}"
        figure.add_scatter(
            x=compact(point.x for point in points),
            y=compact(point.y for point in points),
            error_y=_intervals(points, _colour(place)),
            text=[plotly_text(point.name, 80) for point in points],
            customdata=[f"{count(point.x)} {plotly_text(plot.x_title)}" for point in points],
            name=f"{place + 1}. {plotly_text(points[0].name, 34)}" if first else more,
            legendrank=place,
            mode="markers",
            marker={
                "color": _colour(place),
                "symbol": SYMBOLS[place] if first else "circle",
                "size": 9 if first else 6,
            },
            opacity=1 if first else 0.6,
            hovertemplate=hover,
        )
    for point in plot.points:
        if point.name == plot.chosen:
            ring = {"symbol": "circle-open", "size": 18, "color": MUTED, "line": {"width": 2}}
            figure.add_scatter(
                x=[point.x], y=[point.y], mode="markers", marker=ring, name="chosen", legendrank=1999, hoverinfo="skip"
            )
    figure.update_layout(legend={"y": -0.2})
    costs = [point.x for point in plot.points]
    ticks = log_ticks(min(costs), max(costs))
    figure.update_xaxes(
        type="log", title_text=plotly_text(plot.x_title), tickvals=ticks, ticktext=[count(tick) for tick in ticks]
    )
    return figure.update_yaxes(title_text=plotly_text(plot.y_title))


def log_ticks(low: float, high: float) -> list[float]:
    """Up to seven round values on a logarithmic axis."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for steps in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3)):
        values = [step * 10.0**decade for decade in decades for step in steps]
        values = [value for value in values if low / 1.3 <= value <= high * 1.3]
        if len(values) <= 7:
            return values
    return [10.0**decade for decade in decades][:: max(1, len(decades) // 6)]


def _intervals(points: Sequence[Point], colour: str) -> dict[str, Any]:
    above = [point.upper - point.y for point in points]
    below = [point.y - point.lower for point in points]
    return {"array": compact(above), "arrayminus": compact(below), "color": colour, "thickness": 1.2, "width": 0}


def _colour(place: int) -> str:
    return PALETTE[place] if place < HIGHLIGHTED else GREY


def _log_axis(values: Iterable[float]) -> Mapping[str, Any]:
    """A logarithmic axis: round values along a few decades, and along more of them powers of ten with none between."""
    above = [value for value in values if value > 0]
    if not above or min(above) * 3 >= max(above):
        return _POWERS
    if min(above) * 1000 <= max(above):
        return _POWERS | {"dtick": int(np.ceil(np.log10(max(above) / min(above)) / 5))}  # that fit a phone
    ticks = log_ticks(min(above), max(above))
    return _POWERS | {"tickvals": ticks, "ticktext": [count(tick) if tick >= 1 else f"{tick:g}" for tick in ticks]}


def _x_axis(plot: LinePlot) -> Mapping[str, Any]:
    if not plot.ladder:
        return _log_axis(x for line in plot.lines for x in line.x) if plot.log_x else {}
    rungs = sorted({size for line in plot.lines for size in line.x})
    return _POWERS | {"tickvals": rungs, "ticktext": [count(size) for size in rungs]}
