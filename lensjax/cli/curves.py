"""What commands read of fine-tuning curves."""

from pathlib import Path
from typing import TYPE_CHECKING

from lensjax.core.errors import InputError

if TYPE_CHECKING:
    from lensjax.curves.table import CurveTable


def check_target(target: int) -> None:
    """Check the number of training examples to predict for.

    Raises:
      InputError: it is not from 1 to the largest that a table may hold.
    """
    from lensjax.curves.table import MAX_EXAMPLES

    if not 1 <= target <= MAX_EXAMPLES:
        raise InputError(f"--target is {target}; give a number of training examples from 1 to {MAX_EXAMPLES:.0e}.")


def read_table(source: str) -> "CurveTable":
    """The table in a CSV file, a public benchmark or a simulation.

    Raises:
      InputError: there is none, or it cannot be read.
    """
    from lensjax.curves.csv_files import read_curves
    from lensjax.curves.public import rectified, simulated

    if source.startswith("rectified:"):
        return rectified(source.removeprefix("rectified:"))
    if source == "simulated" and not Path(source).exists():
        return simulated()
    return read_curves(source)
