"""The tasks on which decisions are judged: what is seen of each, and what is to be predicted.

A task, in the sense of leaving one out, is everything of one name in `Case.task`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from lensjax.core.errors import InputError
from lensjax.curves.csv_files import read_curves
from lensjax.curves.lcdb import lcdb
from lensjax.curves.public import available, rectified
from lensjax.curves.simulated import simulated_task
from lensjax.curves.table import CurveTable

TARGET = 1_638_400
RATIOS = (16, 32, 64, 128, 256)  # target over budget
ALL_RATIOS = (8, *RATIOS, 512)
HEADLINE, OTHERS = (5, 8), (4, 6, 10, 12)  # models in a set
ZOO = Path(__file__).parents[1] / "does_curvature_help" / "results"
ENOUGH = 3  # models that a choice needs to be one


@dataclass(frozen=True)
class Case:
    """Predict `truth`, the losses at `target`, from `table`.

    Attributes:
      task: what is left out together.
      part: of the task, for tables.
      name: of no other case.
    """

    task: str
    part: str
    name: str
    table: CurveTable
    target: int
    truth: Float[np.ndarray, " M"]


def all_cases(sets: int, other_sets: int, every: int, simulated: int) -> list[Case]:
    """Every case, of the tasks whose files are at hand.

    Args:
      sets: random sets of 5 and of 8 of the public models for each task and budget.
      other_sets: of 4, 6, 10 and 12.
      every: step through the data sets of LCDB.
      simulated: simulated tasks.
    """
    found = [*public_sets(HEADLINE, sets), *public_sets(OTHERS, other_sets), *public_all(), *zoo()]
    try:
        found += learners(every)
    except InputError as error:
        print(error)
    return [one for one in [*found, *made(simulated)] if one is not None]


def case(task: str, part: str, name: str, table: CurveTable, budget: int, target: int) -> Case | None:
    """The models with two sizes within the budget and a loss at the target; None where there are too few."""
    seen, truth = table.up_to(budget), table.column(target)
    keep = (seen.points() >= 2) & np.isfinite(truth)
    if keep.sum() < ENOUGH:
        return None
    return Case(task, part, f"{name}-{budget}-{target}", seen.select(keep), target, truth[keep])


def public_sets(sizes: tuple[int, ...], sets: int) -> Iterator[Case | None]:
    """Random sets of the 30 public models, others for each size, budget and number, the same for all tasks."""
    for number in range(sets):
        for models in sizes:
            for ratio in RATIOS:
                for name in available():
                    table = rectified(name)
                    rng = np.random.default_rng([models, ratio, number])
                    chosen = np.sort(rng.choice(len(table.models), models, replace=False))
                    part = f"sets of {models}"
                    yield case(name, part, f"{name}-{models}x{number}", table.select(chosen), TARGET // ratio, TARGET)


def public_all() -> Iterator[Case | None]:
    """All 30 public models."""
    for name in available():
        for ratio in ALL_RATIOS:
            yield case(name, "all", f"{name}-30", rectified(name), TARGET // ratio, TARGET)


def zoo() -> Iterator[Case | None]:
    """Curves of our own small models, to every size from 1,600 where four of them were measured."""
    for path in (*sorted(ZOO.glob("*.csv")), *sorted(ZOO.glob("eight_epochs/*.csv"))):
        name = path.stem if path.parent == ZOO else f"{path.stem}, 8 epochs"
        table = read_curves(path)
        for target in (int(size) for size in table.sizes if size >= 1600):
            for ratio in (4, 8, 16):
                if target // ratio >= 400 and np.isfinite(table.column(target)).sum() >= 4:
                    yield case(
                        "zoo", name, f"zoo-{name.replace(', ', '-').replace(' ', '-')}", table, target // ratio, target
                    )


def learners(every: int) -> Iterator[Case | None]:
    """Tabular learners, to the largest size at which four in five were measured."""
    for table in lcdb()[::every]:
        target = int(table.sizes[table.measured.sum(axis=0) >= 0.8 * len(table.models)][-1])
        for ratio in (4, 16):
            if target // ratio >= 64:
                yield case("lcdb", f"1/{ratio}", table.task, table, target // ratio, target)


def made(count: int) -> Iterator[Case | None]:
    """Simulated tasks of all kinds."""
    for seed in range(count):
        one = simulated_task(seed)
        yield case("simulated", one.kind, one.table.task, one.table, one.budget, one.target)
