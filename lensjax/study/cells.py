"""The cells of a study: those of a rung, those that are left, and whether one has ended."""

from collections.abc import Iterable
from pathlib import Path

from lensjax.core.processes import on_first
from lensjax.measure.measurement import FINETUNE, Cell
from lensjax.study.bench import Bench
from lensjax.study.checks import check_results
from lensjax.study.folder import check_study, is_current, pinned
from lensjax.study.inference import candidates_costs, check_some_left, refused
from lensjax.study.journal import Journal, without_collector
from lensjax.study.spec import StudySpec


def stages(spec: StudySpec, models: Iterable[str], size: int) -> tuple[list[Cell], list[Cell]]:
    """The cells of models on one rung: those that need nothing, and those that need the models these leave."""
    cells = [cell for model in models for cell in spec.cells(model, size)]
    runs = [cell for cell in cells if cell.kind == FINETUNE]
    evidence = [cell for cell in cells if cell.kind != FINETUNE]
    return (runs, evidence) if size else (evidence + runs, [])


def cells_left(spec: StudySpec, out: Path, *, retry: bool = False) -> list[Cell]:
    """The cells that running a study would compute, if no candidate drops out and the budget is large enough.

    Args:
      spec, out, retry: See `run_study`.

    Raises:
      InputError: the folder holds another study or results of other data, or the task cannot be read.
    """
    spec = pinned(spec, out)
    bench = Bench(spec, out)
    names = spec.names
    if spec.constraints is not None:
        costs = candidates_costs(spec)
        check_some_left(spec, costs)
        names = [name for name in names if name not in refused(spec, costs)]
    cells = [cell for size in bench.sizes for stage in stages(spec, names, size) for cell in stage]
    if not out.exists():
        return cells
    with without_collector():  # until the entries of the journal are gone again
        return _cells_left(spec, out, bench, cells, retry)


def _cells_left(spec: StudySpec, out: Path, bench: Bench, cells: list[Cell], retry: bool) -> list[Cell]:
    """Those of some cells that are left by what is in a folder."""
    check_study(spec, out)
    journal = Journal(out, spec.identity, reading=True)
    check_results(spec, out, bench.task)
    forgiven = len(journal.entries) if retry else 0
    return [cell for cell in cells if not has_ended(spec, out, journal, cell, forgiven)]


def has_ended(spec: StudySpec, out: Path, journal: Journal, cell: Cell, forgiven: int = 0) -> bool:
    """Whether a cell failed, or ended well and its result is current; see `Journal.last` for `forgiven`."""
    last = journal.last(cell, forgiven)
    return last is not None and (last.status == "failed" or on_first(lambda: is_current(spec, out, cell)))
