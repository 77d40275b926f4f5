"""`lensjax evaluate`: every method back-tested on curves whose outcome is known."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from lensjax.cli.arguments import Examples, UnitName
from lensjax.cli.console import make_console, make_table, progress_bar
from lensjax.cli.curves import check_target
from lensjax.cli.outputs import output_writer
from lensjax.core.errors import InputError

if TYPE_CHECKING:
    from lensjax.selection.backtest import Score


def evaluate(
    curves: Annotated[list[str], Positional, arg(metavar="CURVES.csv [MORE.csv ...]")],
    target: Examples,
    ratios: str = "8,16,32,64,128,256,512",
    unit: UnitName = None,
    csv: Path | None = None,
) -> None:
    """Back-test every method on curves that reach the target.

    Every method sees only the sizes up to target / ratio; its predictions are compared with the losses measured at
    the target. Prints means over the budgets, and writes every cell as tidy CSV: task,method,budget,metric,value,unit.

    Worked examples

    $ lensjax evaluate flan.csv gigaword.csv --target 1638400 --csv scores.csv

    $ lensjax evaluate curves.csv --target 102400 --ratios 8,16,32

    Args:
        curves: CSV files of fine-tuning curves (or rectified:NAME), one per task; a task is named after its file.
        target: Number of training examples whose measured loss is the truth.
        ratios: Target over budget, separated by commas.
        csv: Write every cell to this file.
    """
    write = output_writer(csv, reads=curves)
    check_target(target)
    if not curves:
        raise InputError("No file of curves is named; give one or more.")
    from lensjax.curves.sources import read_source
    from lensjax.selection.backtest import LEAST_RATIO, backtest, to_csv

    try:
        divisors = sorted({int(ratio) for ratio in ratios.split(",")})
    except ValueError:
        divisors = [0]
    if divisors[0] < LEAST_RATIO:
        raise InputError(
            f"--ratios is '{ratios}'; give whole numbers from {LEAST_RATIO} up, separated by commas, as in 8,16,32."
        )
    tables = [read_source(source, unit) for source in curves]
    with progress_bar("Evaluating") as progress:
        scores = backtest(tables, target, divisors, progress=progress)
    write(lambda: to_csv(scores))
    print_means(scores, {table.task: table.unit.name for table in tables})


def print_means(scores: Sequence["Score"], units: Mapping[str, str]) -> None:
    """Print means over budgets of every metric, a table per task.

    Args:
      scores: As `lensjax.selection.backtest.backtest` returns them.
      units: Of the losses of each task.
    """
    from lensjax.core.text import DASH
    from lensjax.selection.backtest import means
    from lensjax.selection.metrics import LOSSES, METRICS

    console, averages = make_console(), means(scores)
    for task in dict.fromkeys(score.task for score in scores):
        budgets = sorted({score.budget for score in scores if score.task == task})
        title = f"{task}: mean over {len(budgets)} budgets, {budgets[0]:,} to {budgets[-1]:,} examples"
        title += f"; {' and '.join(LOSSES)} in {units[task]}"
        rows = []
        for method in dict.fromkeys(score.method for score in scores):
            values = (averages.get((task, method, metric)) for metric in METRICS)
            rows.append((method, *(DASH if value is None else f"{value:.3f}" for value in values)))
        console.print(make_table(title, ("method", *METRICS), rows, words=("method",)))
