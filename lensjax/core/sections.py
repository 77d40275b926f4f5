"""Neutral parts of a report: whoever measures something says with them what to show, and any page renders them.

    Section("kernels", "Kernels", ["The exact neural tangent kernel …"], [LinePlot(…)], [DataTable(…)])

Texts are plain: a page escapes them, cleans them, and sets names of models as it always does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Line:
    """A line of a plot.

    Attributes:
      name: In the legend and beside the mouse.
      x, y: Its points; on a logarithmic axis, those above 0 are drawn.
      lower, upper: A band around y, where there is one.
      model: The candidate that it shows, where that is not its name; a ranking gives it its place and colour.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    lower: Sequence[float] = ()
    upper: Sequence[float] = ()
    model: str = ""


@dataclass(frozen=True)
class LinePlot:
    """Lines on common axes, of which y is logarithmic: the first few in colours, the rest in grey.

    Attributes:
      id: Of the element, unique in a page.
      title: Above the plot.
      x_title, y_title: Of the axes.
      lines: Drawn in the order of a ranking, where the page has one.
      note: A sentence below the plot.
      ladder: Whether x is the rungs of a ladder, so that points are marked and are the ticks.
      log_x: Whether x is logarithmic too.
    """

    id: str
    title: str
    x_title: str
    y_title: str
    lines: Sequence[Line]
    note: str = ""
    ladder: bool = False
    log_x: bool = True


@dataclass(frozen=True)
class DotPlot:
    """A value with an error bar for each of some names, one below the other.

    Attributes:
      id, title, note: See `LinePlot`.
      x_title: What the values are.
      names, values, errors: From the top; an error is half the length of a bar.
    """

    id: str
    title: str
    x_title: str
    names: Sequence[str]
    values: Sequence[float]
    errors: Sequence[float]
    note: str = ""


@dataclass(frozen=True)
class Point:
    """A point of a plot of value against cost.

    Attributes:
      name: Of a model.
      place: In the ranking, from 0, which gives it its colour; None for a grey one.
      x, y: Cost and value.
      lower, upper: Ends of an interval of y; NaN where there is none.
      on_front: Whether no other point is better in one and as good in the other.
    """

    name: str
    place: int | None
    x: float
    y: float
    lower: float
    upper: float
    on_front: bool


@dataclass(frozen=True)
class FrontPlot:
    """Values against costs, of which x is logarithmic and low is good, with a step along the Pareto front.

    Attributes:
      id, title, note: See `LinePlot`.
      x_title, y_title: Of the axes.
      points: One at least.
      chosen: Name of the point that is ringed; "" for none.
    """

    id: str
    title: str
    x_title: str
    y_title: str
    points: Sequence[Point]
    chosen: str = ""
    note: str = ""


@dataclass(frozen=True)
class DataTable:
    """A table with a name and some cells in each row.

    Attributes:
      title: What it is called.
      columns: Headings of the cells.
      rows: A name, often of a model, and its cells.
      words: Columns that hold sentences, which break over lines.
      heading: Of the names.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    words: Sequence[str] = ()
    heading: str = ""


@dataclass(frozen=True)
class Section:
    """A section of a page: paragraphs, then plots, then tables, under a heading.

    Attributes:
      id: Of the heading, unique in a page.
      title: The heading.
      rings: Numbers of training examples, by model, at which the page draws a ring around a measured loss.
      ring_is: What a ring is, as in "where the power phase begins".
    """

    id: str
    title: str
    paragraphs: Sequence[str] = ()
    plots: Sequence[LinePlot | DotPlot | FrontPlot] = ()
    tables: Sequence[DataTable] = ()
    rings: Mapping[str, int] = field(default_factory=dict)
    ring_is: str = ""
