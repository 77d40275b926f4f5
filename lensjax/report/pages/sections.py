"""Sections of whoever measures, as the templates show them, and pages that hold nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lensjax.core import text
from lensjax.core.sections import DataTable, DotPlot, FrontPlot, LinePlot, Section
from lensjax.report.figures.sections import dot_figure, front_figure, line_figure
from lensjax.report.pages.html import Name, Plot, render


def shown_section(section: Section, order: Sequence[str] = ()) -> dict[str, Any]:
    """A section for the macro `section` of parts.html.j2.

    Args:
      section: Of anything that was measured.
      order: Models in the order of a ranking, in which lines and rows of models are shown; the others follow.
    """
    return {
        "id": section.id,
        "title": text.clean(section.title),
        "paragraphs": [text.clean(paragraph) for paragraph in section.paragraphs],
        "plots": [shown_plot(plot, order) for plot in section.plots],
        "tables": [shown_table(table, order) for table in section.tables],
    }


def shown_plot(plot: LinePlot | DotPlot | FrontPlot, order: Sequence[str] = ()) -> Plot:
    """A plot for the macro `plot_box`; see `shown_section`."""
    if isinstance(plot, LinePlot):
        places = _places(order)
        lines = sorted(plot.lines, key=lambda line: places.get(line.model or line.name, len(places)))
        figure = line_figure(replace(plot, lines=lines))
    elif isinstance(plot, FrontPlot):
        figure = front_figure(plot)
    else:
        figure = dot_figure(plot)
    title, note = text.clean(plot.title), text.clean(plot.note)
    return Plot(plot.id, title, figure, f"{title}: {note}", note)


def shown_table(table: DataTable, order: Sequence[str] = ()) -> dict[str, Any]:
    """A table for the macro `data_table`; see `shown_section`."""
    places = _places(order)
    return {
        "title": text.clean(table.title),
        "heading": text.clean(table.heading),
        "columns": [text.clean(name) for name in table.columns],
        "wordy": [name in table.words for name in table.columns],
        "rows": [
            (Name.of(name), [text.clean(cell) for cell in cells])
            for name, cells in sorted(table.rows, key=lambda row: places.get(row[0], len(places)))
        ],
    }


def render_measurement(
    heading: str, kind: str, lead: Sequence[str], sections: Sequence[Section], summary: Mapping[str, Any]
) -> str:
    """A page about one measurement of one model on one task.

    Args:
      heading: What was measured, as in "Neural tangent kernel".
      kind: The same in a word, for the title.
      lead: Two texts under the heading: one that the page completes with "on N training examples of …", as in "Of the
        loss of each example", and a sentence.
      sections: What is shown.
      summary: Task, model, examples, and further numbers and texts that are listed at the end; others are left out.

    Returns:
      HTML that needs no network; see `lensjax.report.pages.html.render`.
    """
    facts = [(name.replace("_", " "), value) for name, value in summary.items() if isinstance(value, int | float | str)]
    return render(
        "measurement.html.j2",
        {
            "task": text.clean(summary["task"]),
            "model": text.clean(summary["model"]),
            "examples": summary["examples"],
            "heading": heading,
            "kind": kind,
            "lead": [text.clean(sentence) for sentence in lead],
            "sections": [shown_section(section) for section in sections],
            "facts": [(name, cell(value)) for name, value in facts],
        },
    )


def cell(value: object) -> str:
    """A number or text of a table."""
    return f"{value:.6g}" if isinstance(value, float) else text.clean(value, 200)


def _places(order: Sequence[str]) -> dict[str, int]:
    return {model: place for place, model in enumerate(order)}
