"""CSV whose texts no spreadsheet takes for formulas."""

import csv
import io
from collections.abc import Iterable, Sequence

_FORMULAS = "=+-@\t\r"  # a cell that begins with one may be computed


def csv_text(rows: Iterable[Sequence[object]], *, quoted: bool = False) -> str:
    """Rows as CSV, with an apostrophe before every text that begins as a formula does; `cell_text` takes it away.

    Args:
      rows: Cells, of which None is blank.
      quoted: Whether to quote all cells, not only those that need it.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL)
    writer.writerows([_escaped(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return text.getvalue()


def cell_text(cell: str) -> str:
    """The text of a cell that `csv_text` may have written an apostrophe before."""
    return cell[1:] if cell[:1] == "'" and cell[1:2] and cell[1] in _FORMULAS + "'" else cell


def _escaped(cell: str) -> str:
    if not cell or cell[0] not in _FORMULAS + "'":
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
