"""Curves by what a user types: a CSV file, a public benchmark or a simulation."""

from pathlib import Path

from lensjax.curves.csv_files import read_curves
from lensjax.curves.public import rectified
from lensjax.curves.simulated import simulated
from lensjax.curves.table import CurveTable

RECTIFIED, SIMULATED = "rectified:", "simulated"


def read_source(source: str) -> CurveTable:
    """The table that a source names.

    Args:
      source: path of a CSV file; "rectified:NAME" for a public benchmark; or "simulated", where no file is called so.

    Raises:
      InputError: there is no such file or benchmark, or it is not a table of curves.
    """
    if source.startswith(RECTIFIED):
        return rectified(source.removeprefix(RECTIFIED))
    if source == SIMULATED and not Path(source).exists():
        return simulated()
    return read_curves(source)
