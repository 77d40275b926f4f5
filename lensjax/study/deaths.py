"""Deaths of a process: which cell it was computing is on disk, so that the next start can tell.

A process that the system kills, as for lack of memory, says nothing. The mark that it leaves does.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lensjax.core.artefacts import Damaged, read_sealed, sealed
from lensjax.core.files import write_files
from lensjax.core.processes import is_first, on_first
from lensjax.measure.measurement import Cell
from lensjax.study.journal import Journal

MARK = "computing.json"
TRIES = 3  # of a cell that processes die of, the first one included


class _Mark(BaseModel):
    """The cell that a process is computing."""

    cell: Cell


@contextmanager
def marked(out: Path, cell: Cell) -> Iterator[None]:
    """Within it, a mark in the study's folder says that this process computes a cell.

    Raises:
      InputError: it cannot be written.
    """
    path = out / MARK
    if is_first():
        write_files({path: sealed({"cell": list(cell)})}, follow=False)
    try:
        yield
    finally:
        if is_first():
            path.unlink(missing_ok=True)


def note_deaths(out: Path, journal: Journal, tries: int = TRIES) -> str:
    """Note in the journal what an earlier process died of, if it did, and give a cell up that killed too many.

    Args:
      out: The study's folder, which no other command uses now.
      journal: Its journal.
      tries: Number of deaths in a row after which a cell counts as failed.

    Returns:
      A sentence on it; "" where no process died.

    Raises:
      InputError: the journal cannot be written.
    """
    path = out / MARK

    def read() -> list[Any] | None:
        try:
            mark = read_sealed(path, _Mark)
        except Damaged:  # such as one that was cut off
            mark = None
        return None if mark is None else list(mark.cell)

    found, said = on_first(read), ""
    if found is not None:
        cell, why = Cell(*found), "the process ended while computing this cell"
        journal.add(cell=cell, status="died", error=why)
        deaths = journal.deaths(cell)
        said = f"{cell}: {why}, as it does when the system kills it for lack of memory; it is tried again."
        if deaths >= tries:
            why = f"the process ended {deaths} times while computing this cell, as for lack of memory"
            journal.add(cell=cell, status="failed", error=why)
            said = f"{cell}: failed, {why}."
    if is_first():
        path.unlink(missing_ok=True)
    return said
