"""What is damaged in a study's folder: a report leaves it out and says so, a run sets it aside and makes it again."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from lensjax.core.artefacts import Damaged, read_sealed, set_aside
from lensjax.core.errors import one_line, shorten
from lensjax.core.processes import on_first
from lensjax.measure.measurement import FINETUNE, MEASUREMENTS, Cell, Measured, Records
from lensjax.study.evidence import evidence_cells, evidence_file, read_evidence
from lensjax.study.folder import read_results, read_searches, result_digest, result_file, runs_folder
from lensjax.study.journal import Journal
from lensjax.study.spec import StudySpec
from lensjax.train.runs import CLAIM, SPEC, Claim, KeptSpec
from lensjax.train.search import CHOSEN, ChosenRate

LOST = "it is missing"


def find_faults(spec: StudySpec, out: Path, journal: Journal) -> dict[Path, str]:
    """The files of results that are damaged, missing, of another cell, or not those of the journal, and why.

    Raises:
      InputError: a file cannot be read.
    """
    faults: dict[Path, str] = {}
    for cell in _ended(spec, journal):
        known, found = journal.last(cell), result_digest(spec, out, cell)
        if known is not None and known.digest not in ("", found):
            path = result_file(spec, out, cell)
            blocked = next((one for one in path.parents if one.is_relative_to(out) and _is_no_folder(one)), None)
            if blocked is None:
                faults[path] = "the journal tells of another content" if found else LOST
            else:
                faults[blocked] = "it is no folder, and one belongs there"
    told: dict[Path, str] = {}  # more precisely than that the journal tells of another content
    results = read_results(spec, out, told)
    for candidate in spec.candidates:
        read_searches(out, candidate, results, told)
    for cell in evidence_cells(spec, out):
        try:
            measured = read_evidence(out, cell)
        except Damaged as error:
            told[evidence_file(out, cell)] = error.why
        else:
            if measured is not None and (why := _useless(cell, measured)):
                told[evidence_file(out, cell)] = why
    return faults | told


def _is_no_folder(path: Path) -> bool:
    return os.path.lexists(path) and not path.is_dir()


def _useless(cell: Cell, found: Measured) -> str:
    """Why a measurement cannot tell anything of its result, as of one by another version; "" where it can."""

    def read(other: Cell) -> Measured | None:
        return found if (other.kind, other.model) == (cell.kind, cell.model) else None

    try:
        MEASUREMENTS[cell.kind].collect(Records([cell.model], [0, cell.examples], [cell.seed], None, read))
    except KeyError as error:
        return f"it lacks {shorten(error.args[0])}"
    except (TypeError, ValidationError) as error:
        return f"it does not hold what its measurement wrote ({one_line(error)})"
    return ""


def mend(spec: StudySpec, out: Path, journal: Journal) -> list[str]:
    """Set all that is damaged aside, so that it is made again; only the command that runs the study may.

    Returns:
      What was set aside and why, in sentences.

    Raises:
      InputError: a file cannot be read or moved.
    """

    def look() -> list[str]:
        faults = {path: why for path, why in find_faults(spec, out, journal).items() if why != LOST}
        said = [set_aside(path, why, out) for path, why in (faults | dict(_side_faults(spec, out))).items()]
        for path in faults:
            beside = path.with_suffix(".npz")
            if beside.exists():
                set_aside(beside, f"{path.name} beside it was set aside", out)
        return said

    return on_first(look)


def lost_cells(spec: StudySpec, out: Path, journal: Journal) -> list[Cell]:
    """The cells that ended well and whose results are no longer there, with the runs that they need.

    Raises:
      InputError: a file cannot be read.
    """

    def look() -> list[list[Any]]:
        lost = [cell for cell in _ended(spec, journal) if not result_digest(spec, out, cell)]
        runs = [cell._replace(kind=FINETUNE) for cell in lost if cell.examples or cell.kind == FINETUNE]
        return [list(cell) for cell in dict.fromkeys([*runs, *lost])]

    return [Cell(*cell) for cell in on_first(look)]


def _ended(spec: StudySpec, journal: Journal) -> Iterator[Cell]:
    """The cells of the study that ended well."""
    names, kinds = set(spec.names), set(spec.measurements)
    for cell in journal.cells:
        last = journal.last(cell)
        if cell.model in names and cell.kind in kinds and last is not None and last.status == "ok":
            yield cell


def _side_faults(spec: StudySpec, out: Path) -> Iterator[tuple[Path, str]]:
    """The files beside results that are damaged."""
    kinds: list[tuple[Path, type[BaseModel]]] = []
    for candidate in spec.candidates:
        folder = runs_folder(out, candidate)
        of_model = folder / candidate.name
        kinds += [(folder / SPEC, KeptSpec), (of_model / CLAIM, Claim), (of_model / CHOSEN, ChosenRate)]
    for path, kind in dict(kinds).items():
        try:
            read_sealed(path, kind, required=False)
        except Damaged as error:
            yield path, error.why
