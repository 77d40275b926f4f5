"""The files that a study's results were made from, and whether they have changed since."""

from collections import defaultdict
from pathlib import Path

from pydantic import BaseModel

from lensjax.core.artefacts import Damaged, read_sealed, sealed
from lensjax.core.errors import InputError, listing, shorten
from lensjax.core.files import write_files
from lensjax.core.hashes import file_hashes
from lensjax.core.processes import on_first
from lensjax.measure.measurement import FINETUNE, Cell
from lensjax.models.hub import folder_here
from lensjax.models.inputs import model_fingerprint
from lensjax.study.evidence import evidence_asked, evidence_cells
from lensjax.study.folder import INPUTS, read_results
from lensjax.study.spec import StudySpec

_SHOWN = 8  # characters of a hash in a sentence


class _Inputs(BaseModel):
    """Hashes of the files that rows come from, by path."""

    data: dict[str, str]


def check_inputs(spec: StudySpec, out: Path) -> None:
    """Make sure that every candidate still is the model that its results are of.

    Raises:
      InputError: the files of one have changed; says which of its cells used which.
    """

    def check() -> None:
        for name, why in changed_models(spec, out).items():
            raise InputError(
                f"{why[:-1]}; give back the files that it had, or give the candidate {shorten(name)} another name, "
                "under which it is measured anew."
            )

    on_first(check)


def changed_models(spec: StudySpec, out: Path) -> dict[str, str]:
    """The candidates whose files are not those of all their results, and in a sentence which cells used which.

    Models that are not here any more are passed over.

    Raises:
      InputError: a file cannot be read.
    """
    used: dict[str, dict[str, list[Cell]]] = defaultdict(lambda: defaultdict(list))
    for result in read_results(spec, out, {}):
        if result.weights:
            used[result.model][result.weights].append(Cell(FINETUNE, result.model, result.examples, result.seed))
    for cell in evidence_cells(spec, out):
        try:
            asked = evidence_asked(out, cell)
        except Damaged:  # it is told of elsewhere
            continue
        if asked is not None and asked.get("model"):
            used[cell.model][str(asked["model"])].append(cell)
    changed = {}
    for candidate in spec.candidates:
        folder = folder_here(candidate.source) if candidate.name in used else None
        now = None if folder is None else model_fingerprint(folder)
        cells = used[candidate.name]
        if len(cells) > 1 or (now is not None and set(cells) - {now}):
            which = "; ".join(
                f"{found[:_SHOWN]} by {listing([str(c) for c in those])}" for found, those in cells.items()
            )
            is_now = "" if now is None else f", and are {now[:_SHOWN]} now"
            where = shorten(candidate.source, 200)
            changed[candidate.name] = f"The files of {where} have changed: they were used as {which}{is_now}."
    return changed


def note_inputs(spec: StudySpec, out: Path) -> None:
    """Keep the hashes of the files that rows come from, for reports to compare.

    Raises:
      InputError: one cannot be read or written.
    """

    def note() -> None:
        paths = spec.task.source.paths()
        content = _Inputs(data=dict(zip(map(str, paths), file_hashes(paths), strict=True)))
        write_files({out / INPUTS: sealed(content.model_dump())}, follow=False)

    on_first(note)


def changed_data(spec: StudySpec, out: Path) -> list[str]:
    """The files of rows that have changed since the study last ran, in sentences; those that are gone count not.

    Raises:
      InputError: a file cannot be read.
    """
    try:
        kept = read_sealed(out / INPUTS, _Inputs)
    except Damaged:  # the next run makes it again
        kept = None
    known = {} if kept is None else {path: found for path, found in kept.data.items() if Path(path).is_file()}
    now = dict(zip(known, file_hashes([Path(path) for path in known]), strict=True))
    return [
        f"{shorten(path, 200)} has changed since the study last ran: {found[:_SHOWN]} then, {now[path][:_SHOWN]} now."
        for path, found in known.items()
        if now[path] != found
    ]
