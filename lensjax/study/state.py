"""How far a study is, by its journal and its files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lensjax.core.errors import InputError
from lensjax.core.files import may_write
from lensjax.measure.measurement import FINETUNE, Cell
from lensjax.study import schema
from lensjax.study.cells import has_ended, stages
from lensjax.study.folder import read_results
from lensjax.study.inference import Costs, read_costs, refused, too_costly
from lensjax.study.inputs import changed_data, changed_models
from lensjax.study.journal import QUARANTINE, Entry, Journal
from lensjax.study.mending import find_faults
from lensjax.study.spec import StudySpec
from lensjax.tasks.task import load_task
from lensjax.train.results import Result

_MENDS = (
    ("chat template", "Mend or remove the row and run the study in a new folder (--out), or leave the candidate out."),
    ("the process ended", "Lower batch_size, or raise accumulation or remat, if it was for lack of memory."),
    ("out of memory", "Lower batch_size, or raise accumulation, remat or the number of devices, for this candidate."),
    ("RESOURCE_EXHAUSTED", "Measure this evidence on fewer examples, or give the candidate a mesh of more devices."),
    ("is nan", "Lower learning_rate in the candidate's training, or raise warmup."),
    ("is inf", "Lower learning_rate in the candidate's training, or raise warmup."),
)


@dataclass(frozen=True)
class StudyState:
    """The cells that are done and left, and the candidates that dropped out.

    Attributes:
      spec, out: The study and its folder.
      journal: Its lines, oldest first.
      results: Of fine-tuning; see `read_results`.
      sizes, target: Rungs of the ladder and the target, in training examples.
      failures: Cells whose last try failed, with that entry.
      eliminated: Candidates that are measured no further, with the largest rung that had been measured then.
      costs: Of candidates at inference; none in folders of earlier versions.
      pending: Cells that are left; None where the strategy chooses them as it goes.
      ended_by: See `schema.StudyProgress`.
      faults: What is wrong with files that are damaged or missing, and left out.
      damage: All that, faults of the journal, and changes of the inputs, in sentences.
    """

    spec: StudySpec
    out: Path
    journal: Sequence[Entry]
    results: Sequence[Result]
    sizes: Sequence[int]
    target: int
    failures: dict[Cell, Entry]
    eliminated: dict[str, int]
    costs: Costs
    pending: Sequence[Cell] | None
    ended_by: str | None
    faults: dict[Path, str]
    damage: Sequence[str]

    @property
    def done(self) -> set[Cell]:
        """Cells that ended, well or badly."""
        return {entry.cell for entry in self.journal if entry.cell is not None and entry.status != "died"}

    @property
    def failed(self) -> dict[str, Entry]:
        """Candidates that are measured no further because a run failed, and how it failed."""
        return {cell.model: entry for cell, entry in self.failures.items() if cell.kind == FINETUNE}

    @property
    def barred(self) -> dict[str, str]:
        """Candidates that exceed the constraints, and how: they are shown, if they were measured, but never chosen."""
        return too_costly(self.spec, self.costs)

    @property
    def refused(self) -> dict[str, str]:
        """Those of them that are not measured."""
        return refused(self.spec, self.costs)

    @property
    def progress(self) -> schema.StudyProgress:
        """How many cells are done and left."""
        left = None if self.pending is None else len(self.pending)
        return schema.StudyProgress.model_validate({"done": len(self.done), "left": left, "ended_by": self.ended_by})

    def failed_cells(self) -> Iterator[schema.Failure]:
        """Cells that failed, why, and what to do."""
        for cell, entry in self.failures.items():
            mend = next(
                (mend for sign, mend in _MENDS if sign in entry.error), "Mend the cause that the message names."
            )
            again = "" if "--out" in mend else " Then run the study again with --retry."
            yield schema.Failure(model=cell.model, cell=str(cell), error=entry.error, mend=f"{mend}{again}")


def read_state(spec: StudySpec, out: Path) -> StudyState:
    """How far the study in a folder is.

    Args:
      spec, out: The study and its folder.

    Raises:
      InputError: a file of it cannot be read, or neither the target nor the task's data is known.
    """
    journal = Journal(out, spec.identity, reading=True)
    available = _available(spec)
    sizes = spec.ladder(available)
    last = {cell: entry for cell in journal.cells if (entry := journal.last(cell)) is not None}
    failures = {cell: entry for cell, entry in last.items() if entry.status == "failed" and cell.model in spec.names}
    eliminated = _eliminated(journal.entries)
    costs = read_costs(spec, out)
    gone = {cell.model for cell in failures if cell.kind == FINETUNE} | set(eliminated) | set(refused(spec, costs))
    left = [name for name in spec.names if name not in gone]
    ended_by = _ended(journal.entries)
    pending: list[Cell] | None = []
    if ended_by is None:
        # Of an adaptive study only the first rungs are known beforehand.
        known = sizes[:3] if spec.strategy == "adaptive" else sizes
        cells = [cell for size in known for stage in stages(spec, left, size) for cell in stage]
        pending = [cell for cell in cells if not has_ended(spec, out, journal, cell)]
        if not pending:
            pending, ended_by = (None, None) if spec.strategy == "adaptive" else ([], "ladder")
    damage = []
    if journal.quarantined:
        how = f"were set aside, in {QUARANTINE}" if may_write(out) else "are left out"
        damage.append(f"{journal.quarantined} damaged lines of the journal {how}.")
    faults = find_faults(spec, out, journal)
    for path, why in faults.items():
        damage.append(f"{path.relative_to(out)} is left out ({why}); lensjax run makes it again.")
    damage += [*changed_models(spec, out).values(), *changed_data(spec, out)]
    return StudyState(
        spec=spec,
        out=out,
        journal=journal.entries,
        results=read_results(spec, out, dict(faults)),
        sizes=sizes,
        target=spec.target or available,
        failures=failures,
        eliminated=eliminated,
        costs=costs,
        pending=pending,
        ended_by=ended_by,
        faults=faults,
        damage=damage,
    )


def _available(spec: StudySpec) -> int:
    """Examples to train on at most; a report does not need the data where the target is given."""
    try:
        return load_task(spec.task).available(spec.counted)
    except InputError:
        if spec.target is None:
            raise
        return spec.target


def _eliminated(entries: Sequence[Entry]) -> dict[str, int]:
    """Candidates that were eliminated and not measured again under other rules, with the largest rung until then."""
    eliminated: dict[str, int] = {}
    largest = 0
    for entry in entries:
        if entry.run is not None:
            largest = max(largest, entry.run.examples)
            eliminated.pop(entry.run.model, None)
        eliminated |= dict.fromkeys(entry.eliminated, largest)
    return eliminated


def _ended(entries: Sequence[Entry]) -> str | None:
    """Why measuring ended; None where it goes on."""
    for entry in reversed(entries):
        if entry.decision:
            # A spent budget is the only decision without a basis in curves.
            return "rule" if entry.stop else None if entry.basis else "budget"
        if entry.run is not None:
            return None
    return None
