"""Computing the cells of a study in this process, one after another."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from lensjax.measure.measurement import Cell
from lensjax.study.bench import Bench, Outcome
from lensjax.study.deaths import marked
from lensjax.study.launching import LAUNCHERS, Launch


@LAUNCHERS.register("local")
@contextmanager
def local(bench: Bench) -> Iterator[Launch]:
    """Within it, cells are computed in this process."""

    def launch(cells: Iterable[Cell]) -> Iterator[tuple[Cell, Outcome]]:
        for cell in cells:
            with marked(bench.out, cell):
                outcome = bench.compute(cell)
            yield cell, outcome

    yield launch
