"""Task metrics of the pocket zoo: are they told by losses, and does the loss choose as they would?

    python experiments/does_curvature_help/metrics.py [--results FOLDER]

Reads results/with_metrics/TASK.csv, which `measure.py` writes, and writes report.md beside them. See README.md.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from lensjax.core.errors import InputError
from lensjax.core.files import write_files
from lensjax.curves.csv_files import read_curves
from lensjax.curves.metrics import METRICS, Metric
from lensjax.curves.table import CurveTable
from lensjax.selection.by_metric import predict_metric
from lensjax.selection.methods import DEFAULT_METHOD, METHODS
from lensjax.selection.metrics import spearman
from lensjax.selection.prediction import Prediction

HERE = Path(__file__).parent
LEAST = 2  # sizes above 0 that curves are fitted to


@dataclass(frozen=True)
class Prediction90:
    """How predictions of a metric at a size compare with what was measured there.

    Attributes:
      error: Mean of |predicted − measured| over models.
      width: Mean width of 90 % intervals.
      inside, models: Number of models whose measurement lies in its interval, and of all.
    """

    error: float
    width: float
    inside: int
    models: int

    def __str__(self) -> str:
        return f"{self.error:.3f} | {self.width:.3f} | {self.inside} of {self.models}"


def compare(seen: CurveTable, target: int, metric: Metric, losses: Prediction, true: np.ndarray) -> Prediction90 | str:
    """The link's predictions, of given losses, or why there is no link."""
    try:
        found = predict_metric(seen, target, metric, losses)
    except InputError as error:
        return str(error)
    assert found.lower is not None
    assert found.upper is not None
    known = np.isfinite(true) & np.isfinite(found.score)
    inside = (found.lower <= true) & (true <= found.upper)
    error, width = abs(found.score - true)[known].mean(), (found.upper - found.lower)[known].mean()
    return Prediction90(float(error), float(width), int(inside[known].sum()), int(known.sum()))


def backtest(table: CurveTable, metric: Metric) -> list[str]:
    """Rows of the back-test: each pair of a budget and a larger size, from measured and from predicted losses."""
    rows = []
    sizes = [int(size) for size in table.sizes if size > 0]
    for budget, target in itertools.combinations(sizes, 2):
        seen, true = table.up_to(budget), table.metric_column(metric, target)
        both = np.isfinite(true) & (seen.points() >= LEAST)
        if both.sum() < 2:
            continue
        seen, true = seen.select(both), true[both]
        measured = table.select(both).column(target)
        exact = Prediction(measured, draws=np.repeat(measured[None], 4000, axis=0))
        cells = [compare(seen, target, metric, exact, true)]
        if not isinstance(cells[0], str):
            cells.append(compare(seen, target, metric, METHODS[DEFAULT_METHOD].predict(seen, target), true))
        said = f"not linked: {cells[0]} | | | | |" if isinstance(cells[0], str) else f"{cells[0]} | {cells[1]}"
        rows.append(f"| {metric} | {budget:,} | {target:,} | {said} |")
    return rows


def agreement(table: CurveTable, metric: Metric) -> list[str]:
    """Rows on whether models in order of loss are in order of the metric, at every size."""
    rows = []
    for size in (int(one) for one in table.sizes if one > 0):
        loss, value = table.column(size), table.metric_column(metric, size)
        known = np.isfinite(loss) & np.isfinite(value)
        if known.sum() < 2 or not np.ptp(value[known]):
            continue
        names = [name for name, one in zip(table.models, known, strict=True) if one]
        loss, value = loss[known], value[known]
        by_loss, by_value = int(np.argmin(loss)), int(np.argmax(value))
        cost = float(value.max() - value[by_loss])
        error = table.metrics[metric.column].error[known, list(table.sizes).index(size)][by_value]
        rows.append(
            f"| {metric} | {size:,} | {len(names)} | {spearman(-loss, value):+.2f} | {names[by_loss]} "
            f"| {names[by_value]} | {cost:.3f} ± {error:.3f} |"
        )
    return rows


def values(table: CurveTable) -> list[str]:
    """Rows of everything that was measured."""
    rows = []
    for (i, model), (j, size) in itertools.product(enumerate(table.models), enumerate(table.sizes)):
        if np.isfinite(table.loss[i, j]):
            shares = (table.metrics[name] for name in METRICS if name in table.metrics)
            cells = " | ".join(f"{part.value[i, j]:.3f} ± {part.error[i, j]:.3f}" for part in shares)
            rows.append(f"| {model} | {size:,} | {table.loss[i, j]:.3f} | {cells} |")
    return rows


def main(results: Path = HERE / "results" / "with_metrics") -> None:
    """Write report.md of all tasks in a folder.

    Args:
        results: The folder.
    """
    lines = ["# Task metrics of the pocket zoo", "", "Written by `metrics.py`; what it says is in ../../README.md.", ""]
    for file in sorted(results.glob("*.csv")):
        table = read_curves(file)
        metrics = [METRICS[name] for name in METRICS if name in table.metrics]
        names = " | ".join(metric.name for metric in metrics)
        lines += [
            f"## {table.task}",
            "",
            f"| model | examples | {table.unit} | {names} |",
            "|---" * (len(metrics) + 3) + "|",
        ]
        lines += [*values(table), "", "Order by loss and by metric; the cost of choosing by loss is in the metric.", ""]
        lines += [
            "| metric | examples | models | Spearman | first by loss | first by metric | cost |",
            "|---" * 7 + "|",
        ]
        lines += [row for metric in metrics for row in agreement(table, metric)]
        lines += [
            "",
            "The link, fitted up to a budget, at a larger size: of losses that were measured there, and of losses that "
            "the joint fit predicts. Mean error, mean width of 90 % intervals, and measurements inside them.",
            "",
            "| metric | budget | size | error | width | inside | error, both steps | width | inside |",
            "|---" * 9 + "|",
            *(row for metric in metrics for row in backtest(table, metric)),
            "",
        ]
    write_files({results / "report.md": "\n".join(lines)})
    print(f"Wrote {results / 'report.md'}")


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except InputError as error:
        raise SystemExit(str(error)) from error
