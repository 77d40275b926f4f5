"""Files of what a study measures besides curves: a JSON file of numbers for each cell, and its arrays beside it."""

import hashlib
import io
import itertools
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeInt

from lensjax.core.artefacts import Damaged, read_ours, read_sealed, sealed
from lensjax.core.files import write_files
from lensjax.measure.measurement import Cell, Measured, selectable
from lensjax.study.spec import StudySpec

EVIDENCE = "evidence"  # folder of all results but those of runs
_NAME = "lensjax"  # among arrays: of what they are


class _Kept(BaseModel):
    """The numbers of a cell, beside those of its measurement.

    Attributes:
      cell: The cell.
      asked: Everything that they depend on.
      arrays: SHA-256 of the file of arrays; "" where there is none.
      bytes: Its size; None of earlier versions.
    """

    model_config = ConfigDict(extra="allow")

    cell: Cell
    asked: dict[str, Any]
    arrays: str
    bytes: NonNegativeInt | None = None


def evidence_file(out: Path, cell: Cell) -> Path:
    """The JSON file of a cell's result; arrays lie beside it, under the same name with .npz."""
    name = f"{cell.kind}-{cell.examples}-seed-{cell.seed}" if cell.examples or cell.seed else cell.kind
    return out / EVIDENCE / cell.model / f"{name}.json"


def evidence_cells(spec: StudySpec, out: Path) -> Iterator[Cell]:
    """The cells besides runs whose results are on disk, of candidates of the study."""
    for name, kind in itertools.product(spec.names, selectable()):
        for path in sorted((out / EVIDENCE / name).glob(f"{kind}*.json")):
            named = re.fullmatch(rf"{re.escape(kind)}(?:-(\d+)-seed-(\d+))?", path.stem)  # see `evidence_file`
            if named is not None:
                yield Cell(kind, name, int(named[1] or 0), int(named[2] or 0))


def read_evidence(out: Path, cell: Cell) -> Measured | None:
    """The result of a cell, with what it was asked for in the field `asked`; None where there is none.

    Raises:
      Damaged: a file does not hold what was written, or is that of another cell.
      InputError: a file cannot be read.
    """
    kept = _read(out, cell)
    if kept is None:
        return None
    summary = {"asked": kept.asked, **(kept.model_extra or {})}
    if not kept.arrays:
        return Measured(summary)
    beside = evidence_file(out, cell).with_suffix(".npz")
    content = read_ours(beside, kept.bytes) or b""
    if hashlib.sha256(content).hexdigest() != kept.arrays:
        raise Damaged(beside, "its content is not what was written")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as packed:
            arrays = dict(packed)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise Damaged(beside, "it does not hold arrays") from error
    named = arrays.pop(_NAME, None)  # earlier versions wrote none
    if named is not None and str(named) != _name(kept.cell, kept.asked):
        raise Damaged(beside, "it is of another cell")
    return Measured(summary, arrays)


def evidence_asked(out: Path, cell: Cell) -> dict[str, Any] | None:
    """Everything that a cell's result depends on, without looking into its arrays; None where there is none.

    Raises:
      Damaged: the file does not hold what was written, is that of another cell, or lacks its arrays.
      InputError: it cannot be read.
    """
    kept = _read(out, cell)
    return None if kept is None else kept.asked


def _read(out: Path, cell: Cell) -> _Kept | None:
    path = evidence_file(out, cell)
    kept = read_sealed(path, _Kept)
    if kept is not None and kept.cell != cell:
        raise Damaged(path, f"it is of {kept.cell}")
    if kept is not None and kept.arrays and not path.with_suffix(".npz").exists():
        raise Damaged(path, f"{path.stem}.npz beside it is missing")
    return kept


def write_evidence(out: Path, cell: Cell, measured: Measured) -> None:
    """Write the result of a cell, all of it or nothing.

    Args:
      out: The study's folder.
      cell: The cell.
      measured: Its result; the summary says in `asked` what it depends on.

    Raises:
      InputError: the folder is missing or not writable, or the disk is full.
    """
    path, packed, contents = evidence_file(out, cell), b"", dict[Path, str | bytes]()
    if measured.arrays:
        file, named = io.BytesIO(), {_NAME: np.array(_name(cell, measured.summary["asked"]))}
        np.savez_compressed(file, **measured.arrays, **named)  # type: ignore[arg-type]
        contents[path.with_suffix(".npz")] = packed = file.getvalue()
    beside = {"arrays": hashlib.sha256(packed).hexdigest(), "bytes": len(packed)} if packed else {"arrays": ""}
    contents[path] = sealed({"cell": list(cell), **beside, **measured.summary})
    write_files(contents, follow=False)


def _name(cell: Cell, asked: Mapping[str, Any]) -> str:
    """What arrays say of themselves: of which cell they are, and everything that they depend on."""
    return json.dumps([list(cell), asked], sort_keys=True)
