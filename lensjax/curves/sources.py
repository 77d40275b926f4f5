"""Curves by what a user types: a CSV file, a public benchmark or a simulation."""

from pathlib import Path

from lensjax.core.errors import InputError, shorten
from lensjax.curves.csv_files import read_curves
from lensjax.curves.public import rectified
from lensjax.curves.simulated import simulated
from lensjax.curves.table import CurveTable
from lensjax.curves.units import NATS_PER_TOKEN, UNITS

RECTIFIED, SIMULATED = "rectified:", "simulated"


def read_source(source: str, unit: str | None = None) -> CurveTable:
    """The table that a source names.

    Args:
      source: path of a CSV file; "rectified:NAME" for a public benchmark; or "simulated", where no file is called so.
      unit: key in `UNITS` of what to read losses in; see `lensjax.curves.csv_files.read_curves`.

    Raises:
      InputError: there is no such file or benchmark, it is not a table of curves, or it has no losses in the unit.
    """
    made_up = source == SIMULATED and not Path(source).exists()
    if not made_up and not source.startswith(RECTIFIED):
        return read_curves(source, unit=None if unit is None else UNITS[unit])
    if unit not in (None, NATS_PER_TOKEN.key):
        raise InputError(f"The losses of {shorten(source)} are known in {NATS_PER_TOKEN} alone; ask for those.")
    return simulated() if made_up else rectified(source.removeprefix(RECTIFIED))
