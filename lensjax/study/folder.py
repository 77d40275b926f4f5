"""A study's folder: whose it is, which command runs the study in it, where results lie, and how they are read."""

import io
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lensjax import __version__
from lensjax.core.errors import InputError, shorten
from lensjax.core.files import LOCK, locked, make_folder, read_json, write_files
from lensjax.core.processes import on_first
from lensjax.core.specs import validated
from lensjax.curves.table import CurveTable
from lensjax.measure.measurement import FINETUNE, Cell, Measured, Records, selectable
from lensjax.study.journal import Journal
from lensjax.study.spec import CandidateSpec, StudySpec
from lensjax.tasks.source import as_source
from lensjax.tasks.tokens import TOKENS_VERSION
from lensjax.train.results import Result, read_result
from lensjax.train.runs import MODEL, SEARCH, Run

EVIDENCE = "evidence"  # folder of all results but those of runs
STUDY = "study.json"
_RUNNING = ".running"  # held by the command that runs the study


@contextmanager
def running(spec: StudySpec, out: Path) -> Iterator[Journal]:
    """Within it, this command alone runs the study in a folder, and has its journal.

    Raises:
      InputError: the folder holds another study, another command runs it, or it cannot be written.
    """
    with ExitStack() as held:

        def hold() -> None:
            open_study(spec, out)
            try:
                held.enter_context(locked(out / _RUNNING, blocking=False))
            except BlockingIOError as error:
                where = shorten(out, 400)
                raise InputError(f"Another command runs the study in {where}; wait for it, or stop it.") from error

        on_first(hold)
        yield Journal(out, spec.identity)


def pinned(spec: StudySpec, out: Path) -> StudySpec:
    """A study whose source is what it was when its folder was made, or where there is none, what it is now.

    Raises:
      InputError: the source cannot be reached.
    """

    def pin() -> dict[str, Any]:
        try:
            kept: object = read_study_folder(out).task.source if out.exists() else None
        except InputError:  # which opening it says
            kept = None
        return spec.task.source.pinned(kept).model_dump(mode="json")

    source = as_source(on_first(pin))
    return spec.model_copy(update={"task": spec.task.model_copy(update={"source": source})})


def open_study(spec: StudySpec, out: Path) -> None:
    """Make a study's folder, or make sure that it holds this study, and keep the spec there.

    Raises:
      InputError: it holds another study or something else, or cannot be written.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / STUDY).exists())):
        raise InputError(f"{shorten(out, 400)} is there already and holds something else; give a new folder.")
    make_folder(out)
    with locked(out / LOCK):
        kept = read_json(out / STUDY)
        if kept is not None and kept.get("identity") != spec.identity:
            raise InputError(
                f"{shorten(out, 400)} holds the study {shorten(kept.get('name'))}, and this one has another name, "
                "task or training; give a new folder, or the spec that it was made with."
            )
        content: dict[str, Any] = {"lensjax": __version__, "identity": spec.identity, "name": spec.name}
        content["spec"] = spec.model_dump(mode="json")
        write_files({out / STUDY: json.dumps(content, indent=2, ensure_ascii=False) + "\n"})


def read_study_folder(out: Path) -> StudySpec:
    """The spec in a study's folder.

    Args:
      out: The folder that `lensjax run` wrote.

    Raises:
      InputError: it holds no study, or one that this version of LensJAX cannot read; says which version can.
    """
    content, path = read_json(out / STUDY), out / STUDY
    if content is None:
        raise InputError(f"{shorten(out, 400)} holds no study; give the folder that `lensjax run` wrote.")
    spec = content.get("spec")
    try:
        return validated(StudySpec, spec if isinstance(spec, dict) else {}, path)
    except InputError as error:
        writer = f"LensJAX {shorten(content['lensjax'])}" if "lensjax" in content else "LensJAX before 0.1.0"
        raise InputError(
            f"{error} {writer} wrote it, and this is {__version__}; read it with that version, or run the study again "
            "with its spec."
        ) from error


def runs_folder(out: Path, candidate: CandidateSpec) -> Path:
    """The folder of a candidate's fine-tuning runs; all candidates without training settings of their own share one."""
    return out / (f"runs-{candidate.name}" if candidate.training else "runs")


def run_folder(out: Path, candidate: CandidateSpec, cell: Cell) -> Path:
    """The folder of the fine-tuning run of a cell's rung and seed."""
    return Run.of(runs_folder(out, candidate) / candidate.name, cell.examples, cell.seed).folder


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
    """The result of a cell; None where there is none.

    Raises:
      InputError: a file cannot be read.
    """
    path = evidence_file(out, cell)
    summary = read_json(path)
    if summary is None:
        return None
    beside = path.with_suffix(".npz")
    if not beside.exists():
        return Measured(summary)
    try:
        with np.load(beside, allow_pickle=False) as arrays:
            return Measured(summary, dict(arrays))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"Cannot read {beside}; remove it and {path.name}, and they are made again.") from error


def study_records(spec: StudySpec, out: Path, sizes: Sequence[int], curves: CurveTable | None) -> Records:
    """Everything that was measured, for measurements to read back.

    Args:
      spec, out: The study and its folder.
      sizes: Rungs of the ladder.
      curves: Losses of the candidates that have any.
    """
    return Records(spec.names, sizes, spec.seeds, curves, cache(lambda cell: read_evidence(out, cell)))


def write_evidence(out: Path, cell: Cell, measured: Measured) -> None:
    """Write the result of a cell, all of it or nothing.

    Raises:
      InputError: the folder is missing or not writable, or the disk is full.
    """
    path, contents = evidence_file(out, cell), dict[Path, str | bytes]()
    if measured.arrays:
        packed = io.BytesIO()
        np.savez_compressed(packed, **measured.arrays)  # type: ignore[arg-type]
        contents[path.with_suffix(".npz")] = packed.getvalue()
    contents[path] = json.dumps(measured.summary, indent=2, ensure_ascii=False) + "\n"
    write_files(contents)


def settings_of(spec: StudySpec, cell: Cell) -> dict[str, Any]:
    """What a cell's result depends on: the measurement's settings, a candidate's own training, how tokens are made."""
    settings = spec.measurements[cell.kind].deciding() | {"tokens": TOKENS_VERSION}
    candidate = spec.candidate(cell.model)
    if cell.examples and candidate.training:  # what all candidates share is the same throughout a study
        settings["training"] = spec.finetune_spec(candidate).deciding()["training"]
    return settings


def is_current(spec: StudySpec, out: Path, cell: Cell) -> bool:
    """Whether a cell's result is on disk and of the spec's present settings, with the model if other cells need it.

    Raises:
      InputError: it cannot be read.
    """
    if cell.kind == FINETUNE:
        folder = run_folder(out, spec.candidate(cell.model), cell)
        return ((folder / MODEL).is_dir() or not is_awaited(spec, out, cell)) and read_result(folder) is not None
    asked = (read_json(evidence_file(out, cell)) or {}).get("asked")
    return isinstance(asked, dict) and settings_of(spec, cell).items() <= asked.items()


def is_awaited(spec: StudySpec, out: Path, run: Cell) -> bool:
    """Whether a cell whose result is not on disk needs the model of a run.

    Raises:
      InputError: a result cannot be read.
    """
    return not all(is_current(spec, out, cell) for cell in spec.cells_at(run))


def read_results(spec: StudySpec, out: Path) -> list[Result]:
    """Every result of fine-tuning that is on disk, candidate by candidate.

    Raises:
      InputError: one cannot be read.
    """
    results: list[Result] = []
    for candidate in spec.candidates:
        folder = runs_folder(out, candidate) / candidate.name
        runs = (read_result(run) for run in sorted(folder.glob("examples-*")))
        results += sorted((run for run in runs if run is not None), key=lambda run: (run.seed, run.examples))
    return [result for result in results if result.seed in spec.seeds]


def read_searches(out: Path, candidate: CandidateSpec, results: Sequence[Result]) -> list[Result]:
    """The runs by which a candidate's learning rate was chosen, without the one that is a rung's result too.

    Raises:
      InputError: one cannot be read.
    """
    folder = runs_folder(out, candidate) / candidate.name / SEARCH
    runs = (read_result(run) for run in sorted(folder.glob("*")))
    return [run for run in runs if run is not None and run not in results]
