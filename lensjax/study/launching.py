"""Launchers compute cells that do not depend on each other: in this process, on a cluster, or wherever one is added.

# lensjax/study/launchers/my_launcher.py
@LAUNCHERS.register("my_launcher")
@contextmanager
def my_launcher(bench: Bench) -> Iterator[Launch]:
    yield lambda cells: ((cell, bench.compute(cell)) for cell in cells)
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from lensjax.core.registry import Registry

if TYPE_CHECKING:  # so that the command line knows the names without importing what computes
    from lensjax.measure.measurement import Cell
    from lensjax.study.bench import Bench, Outcome

# Gives each cell and how it ended, in the order in which they end.
Launch = Callable[[Iterable["Cell"]], Iterator[tuple["Cell", "Outcome"]]]

# Within its context, cells of a bench's study can be launched; raises InputError where it cannot start.
Launcher = Callable[["Bench"], AbstractContextManager[Launch]]

LAUNCHERS: Registry[Launcher] = Registry("launcher", "lensjax.study.launchers", "lensjax.launchers")
