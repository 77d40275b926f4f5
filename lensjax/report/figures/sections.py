"""Plotly figures of the plots of a section."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from lensjax.core.sections import DotPlot, LinePlot
from lensjax.core.text import count, plotly_text
from lensjax.report.figures.plots import GREY, HIGHLIGHTED, NO_EXTRA, PALETTE, SYMBOLS, add_band, base_layout, compact

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
        if line.lower:
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
    figure.update_xaxes(title_text=x_title, **_x_axis(plot)).update_yaxes(title_text=y_title, **_POWERS)
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


def _colour(place: int) -> str:
    return PALETTE[place] if place < HIGHLIGHTED else GREY


def _x_axis(plot: LinePlot) -> Mapping[str, Any]:
    if not plot.ladder:
        return _POWERS if plot.log_x else {}
    rungs = sorted({size for line in plot.lines for size in line.x})
    return _POWERS | {"tickvals": rungs, "ticktext": [count(size) for size in rungs]}
