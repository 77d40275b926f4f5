"""The command line. Commands import what they need when they run, so that `lensjax --help` is immediate."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from lensjax.cli import curvature as cli_curvature
from lensjax.cli import data as cli_data
from lensjax.cli import finetune as cli_finetune
from lensjax.cli import models as cli_models
from lensjax.cli import next as cli_next
from lensjax.cli import plan as cli_plan
from lensjax.cli import report as cli_report
from lensjax.cli import study as cli_study
from lensjax.core.compiled import keep_compiled_programs
from lensjax.core.errors import InputError
from lensjax.core.files import check_writable

if TYPE_CHECKING:
    from lensjax.curves.table import CurveTable

MethodName = Literal["zero_shot", "model_size", "sub_tuning", "vanilla_law", "rectified_law", "ats", "joint"]


def rank(
    curves: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CURVES.csv")],
    target: int,
    budget: int | None = None,
    method: MethodName = "joint",
    json: Path | None = None,
    csv: Path | None = None,
    html: Path | None = None,
) -> None:
    """Rank models by predicted test loss after fine-tuning on all the data.

    Reads fine-tuning curves (one row per model and a column per number of examples, or tidy rows
    model,examples,loss), uses the sizes up to the budget, and predicts the loss at the target.

    Worked examples

    $ lensjax rank curves.csv --target 1638400

    $ lensjax rank curves.csv --budget 12800 --target 1638400 --html report.html --json ranking.json

    $ lensjax rank rectified:flan --budget 12800 --target 1638400 --method ats

    Args:
        curves: CSV file of fine-tuning curves, or rectified:flan or rectified:gigaword for a public benchmark (fetched
            once), or 'simulated' for curves made up to try the command.
        target: Number of training examples to predict the loss for.
        budget: Largest number of training examples to look at; by default the largest measured up to the target.
        method: Method that ranks; all the others are shown beside it.
        json: Write everything that is known of every model to this file.
        csv: Write one row per model, best first, to this file.
        html: Write a self-contained report page to this file.
    """
    outputs = [path for path in (json, csv, html) if path is not None]
    check_writable(outputs, [curves])
    check_target(target)
    from lensjax.core.files import write_files
    from lensjax.report.terminal import print_ranking
    from lensjax.selection.ranking import rank as rank_models
    from lensjax.selection.records import ranking_csv, ranking_json

    table = read_table(curves)
    if budget is None:
        sizes = [int(size) for size in table.sizes if 0 < size <= target]
        budget = max(sizes, default=target)
    with progress_bar("Fitting") as progress:
        ranking = rank_models(table, budget, target, method, progress)
    print_ranking(ranking)
    contents = {}
    if json is not None:
        contents[json] = ranking_json(ranking)
    if csv is not None:
        contents[csv] = ranking_csv(ranking)
    if html is not None:
        from lensjax.report.pages.ranking import render_ranking

        contents[html] = render_ranking(ranking)
    write_files(contents)
    for path in outputs:
        print(f"Wrote {path}")


def evaluate(
    curves: Annotated[list[str], tyro.conf.Positional, tyro.conf.arg(metavar="CURVES.csv [MORE.csv ...]")],
    target: int,
    ratios: str = "8,16,32,64,128,256,512",
    csv: Path | None = None,
) -> None:
    """Back-test every method on curves whose loss at the target was measured.

    Every method sees only the sizes up to target / ratio; its predictions are compared with the losses measured at
    the target. Prints means over the budgets, and writes every cell as tidy CSV: task,method,budget,metric,value.

    Worked examples

    $ lensjax evaluate flan.csv gigaword.csv --target 1638400 --csv scores.csv

    $ lensjax evaluate curves.csv --target 102400 --ratios 8,16,32

    Args:
        curves: CSV files of fine-tuning curves (or rectified:NAME), one per task; a task is named after its file.
        target: Number of training examples whose measured loss is the truth.
        ratios: Target over budget, separated by commas.
        csv: Write every cell to this file.
    """
    outputs = [] if csv is None else [csv]
    check_writable(outputs, curves)
    check_target(target)
    if not curves:
        raise InputError("No file of curves is named; give one or more.")
    from lensjax.core.files import write_files
    from lensjax.report.terminal import print_means
    from lensjax.selection.backtest import backtest, to_csv

    try:
        divisors = sorted({int(ratio) for ratio in ratios.split(",")})
    except ValueError:
        divisors = [0]
    if divisors[0] < 1:
        raise InputError(f"--ratios is '{ratios}'; give whole numbers from 1 up, separated by commas, as in 8,16,32.")
    tables = [read_table(source) for source in curves]
    with progress_bar("Evaluating") as progress:
        scores = backtest(tables, target, divisors, progress=progress)
    print_means(scores)
    write_files({path: to_csv(scores) for path in outputs})
    for path in outputs:
        print(f"Wrote {path}")


def check_target(target: int) -> None:
    """Raise InputError where a number of examples to predict for cannot be one."""
    from lensjax.curves.table import MAX_EXAMPLES

    if not 1 <= target <= MAX_EXAMPLES:
        raise InputError(f"--target is {target}; give a number of training examples from 1 to {MAX_EXAMPLES:.0e}.")


def read_table(source: str) -> "CurveTable":
    """The table in a CSV file, a public benchmark or a simulation."""
    from lensjax.curves.csv_files import read_curves
    from lensjax.curves.public import rectified, simulated

    if source.startswith("rectified:"):
        return rectified(source.removeprefix("rectified:"))
    if source == "simulated" and not Path(source).exists():
        return simulated()
    return read_curves(source)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        job = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(job, completed=done, total=total)


def _commands() -> tyro.extras.SubcommandApp:
    models = tyro.extras.SubcommandApp()
    models.command(name="list")(cli_models.list_families)
    models.command(cli_models.show)
    models.command(cli_models.check)
    models.command(cli_models.export)
    study = tyro.extras.SubcommandApp()
    study.command(cli_study.init)
    data = tyro.extras.SubcommandApp()
    data.command(cli_data.show)
    data.command(cli_data.fetch)
    commands = tyro.extras.SubcommandApp()
    commands.command(study, name="study", help="Begin a study.")
    commands.command(cli_plan.plan)
    commands.command(cli_study.run)
    commands.command(cli_report.report)
    commands.command(rank)
    commands.command(evaluate)
    commands.command(name="next")(cli_next.next_cells)
    commands.command(cli_finetune.finetune)
    commands.command(cli_finetune.curve)
    commands.command(cli_curvature.ntk)
    commands.command(cli_curvature.hessian)
    commands.command(data, name="data", help="Show a task's data, or fetch some to try.")
    commands.command(models, name="models", help="List, show, check and export language models.")
    return commands


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; bad input exits with status 2 and one sentence on standard error."""
    keep_compiled_programs()
    try:
        _commands().cli(
            prog="lensjax",
            description="Which of these language models should we fine-tune on our data?",
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except InputError as error:
        print(f"lensjax: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("lensjax: interrupted; nothing was written.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone, as `| head` does
