"""What Python and notebooks show of a result: a short repr, a small table, and data frames that carry names."""

import html
import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from lensjax.core.errors import InputError
from lensjax.core.text import clean

Columns = Mapping[str, Any]  # of as many values each: a list, or an array
_ROWS = 30  # of a table in a notebook


class Tabular(ABC):
    """A result that is a table too, with a name in every row.

    A dataclass that is one says `repr=False`, and has a `headline`.
    """

    @property
    @abstractmethod
    def headline(self) -> str:
        """What it is, in a line."""

    @abstractmethod
    def as_columns(self) -> Columns:
        """Its rows, column by column; None or NaN where nothing is known."""

    def to_pandas(self) -> Any:
        """A pandas.DataFrame of its rows.

        Raises:
          InputError: pandas is not installed.
        """
        return _library("pandas").DataFrame(dict(self.as_columns()))

    def to_polars(self) -> Any:
        """A polars.DataFrame of its rows.

        Raises:
          InputError: Polars is not installed.
        """
        return _library("polars").DataFrame(dict(self.as_columns()), strict=False)

    def __repr__(self) -> str:
        return f"<{clean(self.headline)}>"

    def _repr_html_(self) -> str:
        columns = self.as_columns()
        rows = list(zip(*columns.values(), strict=True))
        head = "".join(f"<th>{_escaped(name)}</th>" for name in columns)
        body = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in rows[:_ROWS])
        more = f"<p>… and {len(rows) - _ROWS:,} more rows</p>" if len(rows) > _ROWS else ""
        title = f"<p><b>{_escaped(self.headline)}</b></p>"
        return f"{title}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"Data frames need {name}; install it with: pip install {name}") from error


def _escaped(value: object) -> str:
    return html.escape(clean(value))


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "–"
    if isinstance(value, (bool, str)):
        return _escaped(value)
    if hasattr(value, "is_integer") and not float(value).is_integer():
        return f"{value:.4g}"
    try:
        return f"{int(value):,}"
    except (TypeError, ValueError, OverflowError):
        return _escaped(value)
