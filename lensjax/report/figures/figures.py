"""Pages of figures of one model on one task, with what was measured under them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup

from lensjax.core import text
from lensjax.report.figures.plots import NO_EXTRA, PALETTE, SYMBOLS, base_layout, compact, figure_json
from lensjax.report.pages.html import Plot, render


@dataclass(frozen=True)
class Table:
    """A table of a page: what it is called, its columns and its rows, as texts or numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


def render_figures(
    heading: str,
    kind: str,
    what: str,
    more: str,
    plots: Sequence[Plot],
    summary: Mapping[str, Any],
    table: Table | None = None,
) -> str:
    """The page.

    Args:
      heading: What it is of, as in "Neural tangent kernel".
      kind: The same in a word, for the title.
      what, more: Sentences under the heading, of which the first ends with the examples and the task.
      plots: The figures.
      summary: Task, model, examples and what else is to be listed; values that are no number or text are left out.
      table: To be shown before that list.
    """
    facts = [(name.replace("_", " "), value) for name, value in summary.items() if isinstance(value, int | float | str)]
    return render(
        "figures.html.j2",
        {
            "task": text.clean(summary["task"]),
            "model": text.clean(summary["model"]),
            "examples": summary["examples"],
            "heading": heading,
            "kind": kind,
            "what": what,
            "more": more,
            "plots": plots,
            "facts": [(name, _shown(value)) for name, value in facts],
            "rows_title": "" if table is None else table.title,
            "columns": [] if table is None else table.columns,
            "rows": [] if table is None else [[_shown(value) for value in row] for row in table.rows],
        },
    )


def plot(name: str, title: str, figure: go.Figure, note: str) -> Plot:
    """A figure with its title and the note under it."""
    return Plot(name, title, Markup(figure_json(figure)), f"{title}: {note}", note)


def log_log(x_title: str, y_title: str, lines: Mapping[str, tuple[np.ndarray, np.ndarray]], mode: str) -> go.Figure:
    """Lines by their names, both axes logarithmic; a name is shown where there are several.

    Args:
      x_title, y_title: Of the axes.
      lines: (x, y) of each, above 0.
      mode: Plotly's: "lines", "markers" or "lines+markers".
    """
    figure = go.Figure(layout=base_layout(height=340, small=True))
    for number, (name, (x, y)) in enumerate(lines.items()):
        figure.add_scatter(
            x=compact(x),
            y=compact(y),
            name=text.plotly_text(name),
            mode=mode,
            line={"color": PALETTE[number % len(PALETTE)], "width": 2},
            marker={"symbol": SYMBOLS[number % len(SYMBOLS)], "size": 8},
            hovertemplate=f"{x_title} %{{x:.4~g}}<br>{y_title} %{{y:.4~g}}{NO_EXTRA}",
            showlegend=len(lines) > 1,
        )
    figure.update_xaxes(type="log", title_text=x_title).update_yaxes(type="log", title_text=y_title)
    return figure


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return text.clean(str(value), 200)
