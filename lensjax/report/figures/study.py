"""Plotly figures of a study: where phases begin, and kernels and terms of the bound of all candidates."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from lensjax.core.text import count, plotly_text
from lensjax.report.figures.plots import (
    GREY,
    HIGHLIGHTED,
    NO_EXTRA,
    PALETTE,
    SYMBOLS,
    base_layout,
    compact,
    highlighted_models,
    plotted_models,
)
from lensjax.selection.ranking import Ranking

Line = tuple[str, Sequence[float], Sequence[float]]


def mark_phases(figure: go.Figure, ranking: Ranking, begins: Mapping[str, int]) -> go.Figure:
    """Rings around the points of `curves_figure` at which power phases begin, by model."""
    table, coloured = ranking.table, highlighted_models(ranking)
    groups = {i: f"model {k}" for k, i in enumerate(coloured)}
    for i in plotted_models(ranking):
        size = begins.get(table.models[i])
        if size is None:
            continue
        figure.add_scatter(
            x=[size],
            y=compact(table.column(size)[[i]]),
            mode="markers",
            marker={
                "color": PALETTE[coloured.index(i)] if i in coloured else GREY,
                "symbol": "circle-open",
                "size": 17,
                "line": {"width": 2},
            },
            legendgroup=groups.get(i, "others"),
            showlegend=False,
            hoverinfo="skip",  # the point inside it is what is read
        )
    return figure


def lines_figure(x_title: str, y_title: str, lines: Sequence[Line], *, ladder: bool = False) -> go.Figure:
    """Lines of candidates, both axes logarithmic: the first few in the colours of the ranking, the rest in grey.

    Args:
      x_title, y_title: Of the axes.
      lines: Name, x and y of each; what is not above 0 is left out.
      ladder: Whether x is of a ladder's rungs: points are marked, and they are the ticks.
    """
    figure = go.Figure(layout=base_layout(height=340, small=True))
    hover = f"<b>%{{text}}</b><br>{x_title} %{{x:.4~g}}<br>{y_title} %{{y:.4~g}}{NO_EXTRA}"
    for place, (name, x, y) in reversed(list(enumerate(lines))):
        first = place < HIGHLIGHTED
        shown = (np.asarray(x) > 0) & (np.asarray(y) > 0)
        figure.add_scatter(
            x=compact(np.asarray(x)[shown]),
            y=compact(np.asarray(y)[shown]),
            text=[plotly_text(name, 80)] * int(shown.sum()),
            name=plotly_text(name, 34) if first else f"{len(lines) - HIGHLIGHTED} others",
            legendgroup=f"line {place}" if first else "others",
            legendrank=place,
            mode="lines+markers" if ladder else "lines",
            line={"color": PALETTE[place] if first else GREY, "width": 2 if first else 1},
            marker={"symbol": SYMBOLS[place] if first else "circle", "size": 8 if first else 4},
            opacity=1 if first else 0.6,
            hovertemplate=hover,
            showlegend=len(lines) > 1 and place <= HIGHLIGHTED,
        )
    figure.update_layout(legend={"y": -0.26})
    log = {"type": "log", "exponentformat": "power"}  # 10⁻⁴, where Plotly would write 100µ
    figure.update_xaxes(title_text=x_title, **log).update_yaxes(title_text=y_title, **log)
    if ladder:
        rungs = sorted({size for _, x, _ in lines for size in x})
        figure.update_xaxes(tickvals=rungs, ticktext=[count(size) for size in rungs])
    return figure
