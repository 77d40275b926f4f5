"""How far a running study is: which cells are done, what they showed, and how long the rest will take."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from lensjax.core import text
from lensjax.curves.table import CurveTable
from lensjax.measure.measurement import FINETUNE, Cell
from lensjax.study.journal import Entry

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
      cost: Seconds that a candidate's rung will take, 0 where nothing is known of it; see the runner.
      losses: See `Standing`.
      left: Candidates that are still measured.
    """

    names: Sequence[str]
    sizes: Sequence[int]
    ended: Mapping[Cell, Entry]
    pending: Sequence[Cell]
    cost: Callable[[str, int], float]
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
    """Seconds that a cell will take: as its candidate's largest rung, or else as those of others."""
    own = {one: entry.seconds for one, entry in known.ended.items() if one.kind == cell.kind and entry.status == "ok"}
    if cell.kind == FINETUNE and cell.examples and (took := known.cost(cell.model, cell.examples)):
        return took
    same = [seconds for one, seconds in own.items() if one.examples == cell.examples]
    if same:
        return sum(same) / len(same)
    largest = max((one.examples for one in own if one.examples), default=0)
    if not largest or cell.kind != FINETUNE:
        return None
    last = [seconds for one, seconds in own.items() if one.examples == largest]
    return sum(last) / len(last) * max(cell.examples, 1) / largest
