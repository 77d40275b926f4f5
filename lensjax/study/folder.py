"""A study's folder: whose it is, which command runs the study in it, where results lie, and how they are read."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lensjax.core.artefacts import QUARANTINE, Damaged, digest, read_ours, read_sealed, sealed, set_aside
from lensjax.core.errors import InputError, listing, shorten
from lensjax.core.files import LOCK, is_leftover, locked, make_folder, remove_leftovers, write_files
from lensjax.core.processes import on_first
from lensjax.core.specs import changed_settings, validated
from lensjax.core.version import __version__
from lensjax.curves.table import CurveTable
from lensjax.measure.measurement import FINETUNE, Cell, Measured, Records
from lensjax.study.deaths import MARK
from lensjax.study.evidence import EVIDENCE, evidence_asked, evidence_file, read_evidence
from lensjax.study.inference import INFERENCE
from lensjax.study.journal import JOURNAL, Journal, journal_studies
from lensjax.study.journal import QUARANTINE as ODD_LINES
from lensjax.study.spec import CandidateSpec, StudySpec
from lensjax.tasks.source import as_source
from lensjax.tasks.tokens import TOKENS_VERSION
from lensjax.train.results import CURVES, RESULT, Result, read_result
from lensjax.train.runs import SEARCH, Run, has_model

STUDY = "study.json"
RUNS = "runs"
INPUTS = "inputs.json"
_RUNNING = ".running"  # held by the command that runs the study
_OURS = {LOCK, _RUNNING, MARK, STUDY, JOURNAL, ODD_LINES, INFERENCE, INPUTS, CURVES, EVIDENCE, RUNS, QUARANTINE}
_REPORTS = {"report.html", "report.json", "ranking.csv"}
Say = Callable[[str], None]


class KeptStudy(BaseModel):
    """What a study's folder says of it.

    Attributes:
      lensjax: The version that wrote this.
      identity, name: Of the study.
      spec: Its fields.
    """

    lensjax: str = "before 0.1.0"
    identity: str
    name: str
    spec: dict[str, Any]


@contextmanager
def running(spec: StudySpec, out: Path, say: Say = lambda sentence: None) -> Iterator[Journal]:
    """Within it, this command alone runs the study in a folder, and has its journal.

    Args:
      spec, out: The study and its folder.
      say: Called with a sentence for everything that was damaged, and is mended.

    Raises:
      InputError: the folder holds another study, another command runs it, or it cannot be written.
    """
    with ExitStack() as held:

        def hold() -> list[str]:
            said = open_study(spec, out)
            try:
                held.enter_context(locked(out / _RUNNING, blocking=False))
            except BlockingIOError as error:
                where = shorten(out, 400)
                raise InputError(f"Another command runs the study in {where}; wait for it, or stop it.") from error
            for folder, _, _ in os.walk(out):
                remove_leftovers(Path(folder))
            return said

        for sentence in on_first(hold):
            say(sentence)
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


def open_study(spec: StudySpec, out: Path) -> list[str]:
    """Make a study's folder, or make sure that it holds this study, and keep the spec there.

    Returns:
      What was damaged and is mended, in sentences.

    Raises:
      InputError: it holds another study or something else, or cannot be written.
    """
    _check_a_folder_of_studies(out)
    make_folder(out)
    path, said = out / STUDY, list[str]()
    with locked(out / LOCK):
        try:
            kept = read_sealed(path, KeptStudy, required=False)
        except Damaged as error:
            said.append(set_aside(path, error.why, out))
            kept = None
        _check_is_of(spec, kept, out)
        content = KeptStudy(
            lensjax=__version__, identity=spec.identity, name=spec.name, spec=spec.model_dump(mode="json")
        )
        write_files({path: sealed(content.model_dump())}, follow=False)
    return said


def check_study(spec: StudySpec, out: Path) -> None:
    """Make sure that a folder can hold this study, and write nothing.

    Raises:
      InputError: it holds another study or something else, or cannot be read.
    """

    def check() -> None:
        _check_a_folder_of_studies(out)
        try:
            kept = read_sealed(out / STUDY, KeptStudy, required=False)
        except Damaged:  # a run sees to it
            kept = None
        _check_is_of(spec, kept, out)

    on_first(check)


def _check_a_folder_of_studies(out: Path) -> None:
    if out.exists() and (not out.is_dir() or _is_foreign(out)):
        raise InputError(f"{shorten(out, 400)} is there already and holds something else; give a new folder.")


def _check_is_of(spec: StudySpec, kept: KeptStudy | None, out: Path) -> None:
    """Raise InputError where a folder is another study's; without what it says of that, the journal does."""
    known = journal_studies(out) - {""} if kept is None else {kept.identity}
    if not known or spec.identity in known:
        return
    name = "another study" if kept is None else f"the study {shorten(kept.name)}"
    changed = [] if kept is None else changed_settings(kept.spec, spec.identifying)
    how = f"other settings: {listing(changed)}" if changed else "another name, task or training"
    raise InputError(
        f"{shorten(out, 400)} holds {name}, and this one has {how}; give a new folder, or the spec that it was made "
        "with."
    )


def _is_foreign(out: Path) -> bool:
    """Whether a folder without a study's file holds anything that no study wrote."""
    names = {path.name for path in out.iterdir()}
    others = {name for name in names - _OURS - _REPORTS if not (is_leftover(name) or name.startswith(f"{RUNS}-"))}
    return bool(others) and STUDY not in names


def read_study_folder(out: Path) -> StudySpec:
    """The spec in a study's folder.

    Args:
      out: The folder that `lensjax run` wrote.

    Raises:
      InputError: it holds no study, or one that this version of LensJAX cannot read; says which version can.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{shorten(out, 400)} is not a folder; give the name of one.")
    path = out / STUDY
    again = f"run the study again with its spec and --out {shorten(out, 400)}, which makes it anew"
    try:
        kept = read_sealed(path, KeptStudy, required=False)
    except Damaged as error:
        raise InputError(f"{shorten(path, 400)} is damaged ({error.why}); {again}.") from error
    if kept is None and (out / JOURNAL).exists():
        raise InputError(f"{shorten(path, 400)} is missing; {again}.")
    if kept is None:
        raise InputError(f"{shorten(out, 400)} holds no study; give the folder that `lensjax run` wrote.")
    try:
        return validated(StudySpec, kept.spec, path)
    except InputError as error:
        raise InputError(
            f"{error} LensJAX {shorten(kept.lensjax)} wrote it, and this is {__version__}; read it with that version, "
            "or run the study again with its spec."
        ) from error


def runs_folder(out: Path, candidate: CandidateSpec) -> Path:
    """The folder of a candidate's fine-tuning runs; all candidates without training settings of their own share one."""
    return out / (f"{RUNS}-{candidate.name}" if candidate.training else RUNS)


def run_folder(out: Path, candidate: CandidateSpec, cell: Cell) -> Path:
    """The folder of the fine-tuning run of a cell's rung and seed."""
    return Run.of(runs_folder(out, candidate) / candidate.name, cell.examples, cell.seed).folder


def result_file(spec: StudySpec, out: Path, cell: Cell) -> Path:
    """The file that holds a cell's result."""
    if cell.kind == FINETUNE:
        return run_folder(out, spec.candidate(cell.model), cell) / RESULT
    return evidence_file(out, cell)


def result_digest(spec: StudySpec, out: Path, cell: Cell) -> str:
    """A hash of the file that holds a cell's result; "" where there is none."""
    content = read_ours(result_file(spec, out, cell))
    return "" if content is None else digest(content)


def study_records(
    spec: StudySpec, out: Path, sizes: Sequence[int], curves: CurveTable | None, faults: dict[Path, str] | None = None
) -> Records:
    """Everything that was measured, for measurements to read back.

    Args:
      spec, out: The study and its folder.
      sizes: Rungs of the ladder.
      curves: Losses of the candidates that have any.
      faults: Gets what is wrong with evidence that is damaged, in place of an error.
    """

    def read(cell: Cell) -> Measured | None:
        if faults is not None and evidence_file(out, cell) in faults:
            return None
        try:
            return read_evidence(out, cell)
        except Damaged as error:
            if faults is None:
                raise
            faults[error.path] = error.why
            return None

    return Records(spec.names, sizes, spec.seeds, curves, cache(read))


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
    try:
        if cell.kind == FINETUNE:
            folder = run_folder(out, spec.candidate(cell.model), cell)
            return read_result(folder) is not None and (not is_awaited(spec, out, cell) or has_model(folder))
        asked = evidence_asked(out, cell)
        return asked is not None and settings_of(spec, cell).items() <= asked.items()
    except Damaged:
        return False


def is_awaited(spec: StudySpec, out: Path, run: Cell) -> bool:
    """Whether a cell whose result is not on disk needs the model of a run.

    Raises:
      InputError: a result cannot be read.
    """
    return not all(is_current(spec, out, cell) for cell in spec.cells_at(run))


def read_results(spec: StudySpec, out: Path, faults: dict[Path, str] | None = None) -> list[Result]:
    """Every result of fine-tuning that is on disk, candidate by candidate.

    Args:
      spec, out: The study and its folder.
      faults: Gets what is wrong with each file that is damaged or of another run, in place of an error; files that are
        in it already are left out.

    Raises:
      Damaged: a file is.
      InputError: one cannot be read.
    """
    results: list[Result] = []
    for candidate in spec.candidates:
        folder = runs_folder(out, candidate) / candidate.name
        runs = (_result(run, candidate, faults) for run in sorted(folder.glob("examples-*")))
        results += sorted((run for run in runs if run is not None), key=lambda run: (run.seed, run.examples))
    return [result for result in results if result.seed in spec.seeds]


def _result(run: Path, candidate: CandidateSpec, faults: dict[Path, str] | None) -> Result | None:
    """The result in the folder of a candidate's run; see `read_results`."""
    if faults is not None and run / RESULT in faults:
        return None
    try:
        result = read_result(run)
        if result is not None and result.model != candidate.name:
            raise Damaged(run / RESULT, f"it is of the model {shorten(result.model)}")
        return result
    except Damaged as error:
        if faults is None:
            raise
        faults[error.path] = error.why
        return None


def read_searches(
    out: Path, candidate: CandidateSpec, results: Sequence[Result], faults: dict[Path, str] | None = None
) -> list[Result]:
    """The runs by which a candidate's learning rate was chosen, without the one that is a rung's result too.

    Args:
      out, candidate: The study's folder, and the candidate.
      results: See `read_results`.
      faults: See `read_results`.

    Raises:
      Damaged: a file is.
      InputError: one cannot be read.
    """
    folder = runs_folder(out, candidate) / candidate.name / SEARCH
    runs = (_result(run, candidate, faults) for run in sorted(folder.glob("*")))
    return [run for run in runs if run is not None and run not in results]
