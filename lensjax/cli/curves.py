"""What commands on fine-tuning curves share: checks, and wishes about the size of the model to choose."""

from typing import TYPE_CHECKING

from lensjax.core.errors import InputError, shorten

if TYPE_CHECKING:
    from lensjax.curves.table import CurveTable
    from lensjax.selection.cheaper import Preference


def check_target(target: int) -> None:
    """Check the number of training examples to predict for.

    Raises:
      InputError: it is not from 1 to the largest that a table may hold.
    """
    from lensjax.curves.table import MAX_EXAMPLES

    if not 1 <= target <= MAX_EXAMPLES:
        raise InputError(f"--target is {target}; give a number of training examples from 1 to {MAX_EXAMPLES:.0e}.")


def within_size(table: "CurveTable", largest: str | None) -> "CurveTable":
    """The table in which models with more parameters than --max-parameters may not be chosen.

    Raises:
      InputError: that is not a positive number, or the table gives no model's size.
    """
    if largest is None:
        return table
    import numpy as np

    from lensjax.core.specs import quantity
    from lensjax.selection.cheaper import too_large

    try:
        limit = quantity(largest)
    except ValueError as error:
        raise InputError(f"--max-parameters is {shorten(largest)}; {error}.") from error
    if not np.isfinite(table.parameters).any():
        raise InputError(
            f"Task '{shorten(table.task)}' gives no model's number of parameters; add a column size, or leave "
            "--max-parameters out."
        )
    return table.barring(too_large(table, limit))


def preference(smallest_within: float | None) -> "Preference | None":
    """The wish that --smallest-within expresses.

    Raises:
      InputError: it is not a positive number.
    """
    from lensjax.selection.cheaper import Preference

    if smallest_within is None:
        return None
    try:
        return Preference(smallest_within)
    except InputError as error:
        raise InputError(f"--smallest-within: {error}") from error
