"""Rankings and back-tests as tables on the terminal."""

import math
from collections.abc import Iterable

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lensjax.selection.backtest import Score, means
from lensjax.selection.metrics import METRICS
from lensjax.selection.ranking import Ranking
from lensjax.selection.records import records

SHOWN = 40  # rows of a terminal table
BESIDE = ("ats", "sub_tuning")  # baselines whose choice is always told


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=140)


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _parameters(count: float | None) -> str:
    if count is None:
        return "–"
    unit, letter = next((u, c) for u, c in ((1e9, "B"), (1e6, "M"), (1e3, "k"), (1, "")) if count >= u or u == 1)
    return f"{count / unit:.3g}{letter}"


def print_ranking(ranking: Ranking) -> None:
    """The order, with intervals and what AtS and SubTuning would choose, on standard output."""
    console, rows = _console(), records(ranking)
    places = {name: _places(other.score) for name, other in ranking.baselines.items() if name in BESIDE}
    table = Table(title=escape(_title(ranking)), title_justify="left", title_style="bold")
    loss = "loss" if ranking.prediction.is_loss else "score"
    headings = (
        "",
        "model",
        "size",
        f"at {ranking.budget:,}",
        f"predicted {loss}",
        "90 % interval",
        "P(best)",
        "regret",
    )
    for heading in (*headings, *(f"{name} rank" for name in places)):
        table.add_column(heading, justify="left" if heading == "model" else "right", overflow="fold")
    for row, i in zip(rows[:SHOWN], ranking.order, strict=False):
        interval = "–" if row["lower90"] is None else f"{row['lower90']:.3f}–{row['upper90']:.3f}"
        table.add_row(
            str(row["rank"]),
            escape(row["model"]),
            _parameters(row["parameters"]),
            _cell(row["loss_at_budget"], ".3f"),
            _cell(row["predicted"], ".3f"),
            interval,
            _cell(row["probability_best"], ".2f"),
            _cell(row["expected_regret"], ".3f"),
            *(place[i] for place in places.values()),
        )
    console.print(table)
    if len(rows) > SHOWN:
        console.print(f"… and {len(rows) - SHOWN} more; write them all with --csv, --json or --html.")
    for model, reason in ranking.left_out:
        console.print(f"Left out: {escape(model)} ({reason}).", soft_wrap=True)
    for warning in ranking.warnings:
        console.print(f"[bold]Caution:[/bold] {escape(warning)}", soft_wrap=True)
    choices = [
        f"{name} would choose {ranking.table.models[int(np.nanargmin(other.score))]}"
        for name, other in ranking.baselines.items()
        if name in BESIDE and np.isfinite(other.score).any()
    ]
    console.print(escape(f"Choose {rows[0]['model']}; " + ", ".join(choices) + "."), soft_wrap=True)


def _title(ranking: Ranking) -> str:
    return (
        f"{ranking.table.task}: {len(ranking.table.models)} models by {ranking.method}, measured up to "
        f"{ranking.budget:,} examples, predicted at {ranking.target:,} (nats per token)"
    )


def _places(score: np.ndarray) -> list[str]:
    order = np.argsort(score, kind="stable")
    places = np.empty(len(score), int)
    places[order] = np.arange(1, len(score) + 1)
    return [str(place) if math.isfinite(s) else "–" for place, s in zip(places, score, strict=True)]


def print_means(scores: Iterable[Score]) -> None:
    """Means over budgets of every metric, a table per task, on standard output."""
    console = _console()
    scores = list(scores)
    averages = means(scores)
    methods = list(dict.fromkeys(score.method for score in scores))
    for task in dict.fromkeys(score.task for score in scores):
        budgets = sorted({score.budget for score in scores if score.task == task})
        title = f"{task}: mean over {len(budgets)} budgets, {budgets[0]:,} to {budgets[-1]:,} examples"
        table = Table(title=escape(title), title_justify="left", title_style="bold")
        table.add_column("method")
        for metric in METRICS:
            table.add_column(metric, justify="right")
        for method in methods:
            table.add_row(method, *(_cell(averages.get((task, method, metric)), ".3f") for metric in METRICS))
        console.print(table)
