"""How far a running study is: which cells are done, what they showed, and how long the rest will take."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from lensjax.core import text
from lensjax.curves.table import CurveTable
from lensjax.measure.measurement import FINETUNE, Cell
from lensjax.study.journal import Entry
from lensjax.study.spec import StudySpec
from lensjax.train.loop import planned_steps

Mark = Literal["done", "failed", "waiting", "dropped"]


@dataclass(frozen=True)
class Standing:
    """How far a running study is.

    Attributes:
      names, sizes: Candidates, and the rungs of the ladder.
      marks: How far each candidate is on each rung; one that is eliminated, refused or failed before is dropped.
      losses: Test losses of those that are done, in bits per byte, or nats per token where those alone are known.
      done, total: Number of cells that have ended, and of all if no further candidate drops out.
      seconds_left: Of computing, by what cells took so far; None where that is not known yet.
      next: The cell that is computed now.
    """

    names: Sequence[str]
    sizes: Sequence[int]
    marks: Mapping[tuple[str, int], Mark]
    losses: Mapping[tuple[str, int], float]
    done: int
    total: int
    seconds_left: float | None
    next: Cell | None = None

    @property
    def sentence(self) -> str:
        """Cells that are done, and time left, as in "7 of 20 done, about 5 min left"."""
        left = "" if not self.seconds_left else f", about {text.duration(self.seconds_left)} left"
        return f"{self.done:,} of {self.total:,} done{left}"


Watch = Callable[[Standing], None]


@dataclass(frozen=True)
class Known:
    """What the runner of a study knows.

    Attributes:
      names, sizes: See `Standing`.
      ended: The last entry of every cell that has ended.
      pending: Cells that are still to be computed, in their order.
      searched: Seconds that the choice of each candidate's learning rate took, which are in those of its first rung.
      steps: Steps that a run of a candidate on a number of examples takes at most.
      weights: Operations of each candidate by token, by which others tell of one that is not trained yet.
      losses: See `Standing`.
      left: Candidates that are still measured.
    """

    names: Sequence[str]
    sizes: Sequence[int]
    ended: Mapping[Cell, Entry]
    pending: Sequence[Cell]
    searched: Mapping[str, float] = field(default_factory=dict)
    steps: Callable[[str, int], int] = lambda model, examples: examples
    weights: Mapping[str, float] = field(default_factory=dict)
    losses: Mapping[tuple[str, int], float] = field(default_factory=dict)
    left: Iterable[str] = ()


def standing(known: Known) -> Standing:
    """How far a study is by what its runner knows."""
    waiting = {(cell.model, cell.examples) for cell in known.pending}
    failed = {(cell.model, cell.examples) for cell, entry in known.ended.items() if entry.status == "failed"}
    done = {(cell.model, cell.examples) for cell in known.ended if cell.kind == FINETUNE}

    def mark(place: tuple[str, int]) -> Mark:
        if place in failed:
            return "failed"
        if place in waiting:
            return "waiting"
        return "done" if place in done else "waiting" if place[0] in known.left else "dropped"

    return Standing(
        names=known.names,
        sizes=known.sizes,
        marks={(name, size): mark((name, size)) for name in known.names for size in known.sizes},
        losses=known.losses,
        done=len(known.ended),
        total=len(known.ended) + len(known.pending),
        seconds_left=_seconds(known),
        next=next(iter(known.pending), None),
    )


def losses_of(table: CurveTable) -> dict[tuple[str, int], float]:
    """The measured losses of a table by model and number of examples."""
    return {
        (name, int(size)): float(loss)
        for name, row in zip(table.models, table.loss, strict=True)
        for size, loss in zip(table.sizes, row, strict=True)
        if np.isfinite(loss)
    }


def _seconds(known: Known) -> float | None:
    """Seconds that the pending cells will take."""
    total = 0.0
    for cell in known.pending:
        took = _alike(cell, known)
        if took is None:
            return None
        total += took
    return total


def _alike(cell: Cell, known: Known) -> float | None:
    """Seconds that a cell will take, by its candidate's own cells, or else by those of others and their sizes."""
    own = _by_own(cell, known)
    if own is not None:
        return own
    weight = known.weights.get(cell.model, 1.0)
    others = [
        took * weight / known.weights.get(name, 1.0)
        for name in known.names
        if name != cell.model and (took := _by_own(cell._replace(model=name), known, searching=True)) is not None
    ]
    return sum(others) / len(others) if others else None


def _by_own(cell: Cell, known: Known, *, searching: bool = False) -> float | None:
    """Seconds that a cell will take by the like cells of its candidate, None where there are none.

    Of runs, the test takes as long on every rung, and training as many of the largest rung's steps as are planned.

    Args:
      cell, known: The cell, and what is known.
      searching: Whether a run on the first rung chooses a learning rate too.
    """
    took: dict[int, list[float]] = {}
    for one, entry in known.ended.items():
        if (one.kind, one.model, entry.status) == (cell.kind, cell.model, "ok"):
            took.setdefault(one.examples, []).append(entry.seconds)
    mean = {examples: sum(each) / len(each) for examples, each in took.items()}
    if cell.kind != FINETUNE or not cell.examples:
        return mean.get(cell.examples)
    first = min((size for size in known.sizes if size), default=0)
    if first in mean and not (searching and cell.examples == first):
        mean[first] = max(mean[first] - known.searched.get(cell.model, 0.0) / len(took[first]), 0.0)
    trained = [examples for examples in mean if examples]
    if not trained:
        return None
    near = cell.examples if cell.examples in mean else max(trained)
    test = min(mean.get(0, 0.0), mean[near])
    return test + (mean[near] - test) * known.steps(cell.model, cell.examples) / known.steps(cell.model, near)


def steps_by(spec: StudySpec) -> Callable[[str, int], int]:
    """Steps that a run of a candidate on a number of examples takes if it is not stopped early."""
    training = {one.name: spec.finetune_spec(one).training for one in spec.candidates}

    def steps(model: str, examples: int) -> int:
        return planned_steps(training[model], math.ceil(examples / training[model].batch_size))[0]

    return steps
