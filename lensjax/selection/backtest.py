"""Back-tests: predictions of every method at every budget against the losses measured at the target."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from lensjax.core.csv_text import csv_text
from lensjax.core.errors import InputError, listing, shorten
from lensjax.curves.table import CurveTable
from lensjax.selection.methods import METHODS, methods_in_order
from lensjax.selection.metrics import LOSSES, evaluate

RATIOS = (8, 16, 32, 64, 128, 256, 512)  # target over budget, as in the rectified-scaling-law paper
LEAST_RATIO = 2


class Score(NamedTuple):
    """One cell of a back-test.

    Attributes:
      budget: in examples.
      value: a fraction, a loss, or its log by metric.
      unit: of a value that is a loss; "" of others.
    """

    task: str
    method: str
    budget: int
    metric: str
    value: float
    unit: str = ""


def backtest(
    tables: Sequence[CurveTable],
    target: int,
    ratios: Sequence[int] = RATIOS,
    methods: Iterable[str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Score]:
    """Score methods on tasks whose losses at `target` are known; a method at a budget sees nothing above it.

    Args:
      tables: one table per task, with distinct task names; models that may not be chosen are left out.
      target: size to predict for, in examples.
      ratios: budgets are target // ratio examples.
      methods: names in `METHODS`; all that need curves alone by default.
      progress: called with (cells done, cells in all).

    Returns:
      A score per task, method, budget and metric that applies to the method.

    Raises:
      InputError: a task is repeated or was not measured at the target, or a budget holds fewer than two sizes or all.
    """
    known = methods_in_order()
    names = [name for name in known if not METHODS[name].needs] if methods is None else list(methods)
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise InputError(f"There is no method {listing(unknown)}; choose from {listing(known, 20)}.")
    tables = [table.select(table.eligible) for table in tables]
    tasks = [table.task for table in tables]
    for task in tasks:
        if tasks.count(task) > 1:
            raise InputError(f"The task '{shorten(task)}' is given twice; rename one of the files.")
    budgets = sorted({target // ratio for ratio in ratios})
    for table in tables:
        _check(table, target, ratios)
    scores = []
    cells = [(table, budget, name) for table in tables for budget in budgets for name in names]
    for done, (table, budget, name) in enumerate(cells):
        progress(done, len(cells))
        units = dict.fromkeys(LOSSES, table.unit.name)
        prediction = METHODS[name].predict(table.up_to(budget), target)
        for metric, value in evaluate(prediction, table.column(target)).items():
            if np.isfinite(value):
                scores.append(Score(table.task, name, budget, metric, value, units.get(metric, "")))
    progress(len(cells), len(cells))
    return scores


def _check(table: CurveTable, target: int, ratios: Sequence[int]) -> None:
    task = shorten(table.task)
    if min(ratios) < LEAST_RATIO:
        raise InputError(f"A ratio of {min(ratios)} shows methods the losses to predict; give {LEAST_RATIO} or more.")
    if np.isfinite(table.column(target)).sum() < 2:
        raise InputError(
            f"Task '{task}' has fewer than two models measured at the target of {target} examples; choose one "
            f"of the sizes {listing([str(size) for size in table.sizes], 20)}."
        )
    short = [ratio for ratio in ratios if (table.up_to(target // ratio).points() >= 2).sum() < 2]
    if short:
        few = f"fewer than two models with two sizes from 1 to {target // min(short)} examples"
        enough = [
            size
            for size in table.sizes
            if size <= target // LEAST_RATIO and (table.up_to(size).points() >= 2).sum() >= 2
        ]
        mend = f"give ratios of at most {target // int(enough[0])}" if enough else "measure more sizes below the target"
        raise InputError(f"Task '{task}' has {few}; {mend}.")


def to_csv(scores: Iterable[Score]) -> str:
    """Scores as tidy CSV text with the columns task, method, budget, metric, value and unit."""
    return csv_text([Score._fields, *(score._replace(value=f"{score.value:.6g}") for score in scores)])  # type: ignore[arg-type]


def means(scores: Iterable[Score]) -> dict[tuple[str, str, str], float]:
    """Mean over budgets by (task, method, metric)."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for score in scores:
        groups.setdefault((score.task, score.method, score.metric), []).append(score.value)
    return {key: float(np.mean(values)) for key, values in groups.items()}
