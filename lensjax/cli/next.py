"""`lensjax next`: which model to fine-tune on how many examples next."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lensjax.cli.arguments import CurvesFile, Examples, MaxParameters, MetricName, SmallestWithin, UnitName
from lensjax.cli.console import make_console, make_table
from lensjax.cli.curves import check_target, preference, within_size
from lensjax.cli.outputs import output_writer
from lensjax.core.errors import InputError, shorten
from lensjax.core.text import json_text

if TYPE_CHECKING:
    from rich.table import Table

    from lensjax.curves.table import CurveTable
    from lensjax.selection.advice import Advice

SHARE = 8  # target over the largest rung, where neither the user nor the file says more
NEGLIGIBLE = 1e-4  # of regret, in any unit


def next_cells(
    curves: CurvesFile,
    target: Examples,
    max_examples: Examples | None = None,
    top: int = 8,
    unit: UnitName = None,
    metric: MetricName = None,
    max_parameters: MaxParameters = None,
    smallest_within: SmallestWithin = None,
    json: Path | None = None,
) -> None:
    """Say which model to fine-tune on how many examples next.

    Reads the fine-tuning curves measured so far, and orders what could be measured next by how much it is expected to
    lower the regret of the choice, for its cost: 6 × parameters × examples, or examples alone where the file does not
    give the size of every model. Also says which model to choose if nothing more is measured: the one of the lowest
    expected regret, which `lensjax rank` puts first. With --metric or --smallest-within, choice and regret are those of
    that wish, and so are the points to measure.

    Worked examples

    $ lensjax next curves.csv --target 1638400

    $ lensjax next curves.csv --target 1638400 --max-examples 25600 --top 3 --json next.json

    Args:
        target: Number of training examples for which a model is to be chosen.
        max_examples: Largest number of examples to fine-tune on next; by default an eighth of the target, or the
            largest measured if that is more. Rungs are the file's numbers of examples, doubled from the largest.
        top: Number of cells to show.
        json: Write all cells to this file.
    """
    write = output_writer(json, reads=[curves])
    check_target(target)
    from rich.console import Console

    from lensjax.curves.metrics import metric_named
    from lensjax.curves.sources import read_source
    from lensjax.selection.advice import advise, candidate_points, relative_costs
    from lensjax.selection.by_metric import check_metric
    from lensjax.selection.deciding import what_would_decide

    prefer, table = preference(smallest_within), within_size(read_source(curves, unit), max_parameters)
    rungs, larger, max_examples = _rungs(table, target, max_examples)
    if top < 1:
        raise InputError(f"--top is {top}; give 1 or more.")
    costs = relative_costs(table, candidate_points(table, rungs))
    asked = None if metric is None else metric_named(metric)
    if asked is not None:
        check_metric(table, asked)
    with Console(stderr=True).status("Fitting"):
        advice = advise(table, target, costs, prefer=prefer, metric=asked)
        close = what_would_decide(table, target, advice, prefer)
    record = _record(table, target, max_examples, advice) | {"margin": smallest_within}
    record["decisive"], console = None if close is None else close.content(), make_console(120)
    write(lambda: json_text(record))
    if advice.points:
        console.print(_table(record, top))
    for model, why in record["ineligible"].items():
        console.print(f"Not to be chosen, nor measured further: {model}, as {why}.", markup=False, soft_wrap=True)
    said = (
        ""
        if close is None
        else f"It is too close to call: P(best) of the choice is {advice.chance:.2f}. {close.sentence}"
    )
    for sentence in filter(None, (record["remark"], record["why"], said, _sentence(record, larger))):
        console.print(sentence, markup=False, soft_wrap=True)


def _rungs(table: "CurveTable", target: int, max_examples: int | None) -> tuple[list[int], list[int], int]:
    """Sizes that may be measured next, larger ones up to the target, and the bound between them."""
    task, used = shorten(table.task), table.up_to(target)
    sizes = [int(size) for size in used.sizes[used.measured.any(axis=0)] if size > 0]
    if not sizes:
        raise InputError(
            f"Task '{task}' has no loss from 1 to the target of {target} examples; measure two sizes of each model."
        )
    if max_examples is None:
        max_examples = max(sizes[-1], target // SHARE)
    if not 0 < max_examples <= target:
        raise InputError(f"--max-examples is {max_examples}; give a number from 1 to the target of {target}.")
    while 2 * sizes[-1] <= target:
        sizes.append(2 * sizes[-1])
    rungs = [size for size in sizes if size <= max_examples]
    if len(rungs) < 2:
        raise InputError(
            f"Task '{task}' has fewer than two rungs up to --max-examples {max_examples}; give {2 * sizes[0]} or more."
        )
    return rungs, sizes[len(rungs) :], max_examples


def _record(table: "CurveTable", target: int, max_examples: int, advice: "Advice") -> dict[str, Any]:
    """Everything that a program may need of an advice."""
    import numpy as np

    from lensjax.core.version import __version__
    from lensjax.selection.advice import Point, relative_costs

    full_tuning = sum(relative_costs(table, (Point(model, target) for model in table.models)).values())
    cells = [
        {
            "model": one.point.model,
            "examples": one.point.examples,
            "cost": one.cost,
            "share_of_full_tuning": one.cost / full_tuning,
            "expected_drop": one.drop,
            "needed": one.drop is None,
        }
        for one in advice.points
    ]
    return {
        "lensjax": __version__,
        "task": table.task,
        "unit": advice.unit or table.unit.name,
        "target": target,
        "max_examples": max_examples,
        "cost": "FLOPs per token of an example" if np.isfinite(table.parameters).all() else "examples",
        "choice": advice.choice,
        "probability_best": advice.chance,
        "why": advice.why or None,
        "remark": advice.remark or None,
        "ineligible": {model: why for model, why in zip(table.models, table.ineligible, strict=True) if why},
        "expected_regret": advice.regret,
        "expected_regret_error": advice.regret_error,
        "cells": cells,
    }


def _table(record: dict[str, Any], top: int) -> "Table":
    """The first cells."""
    best, rows = record["cells"][0], []
    for place, cell in enumerate(record["cells"][:top], start=1):
        drop = relative = "needed"
        if not cell["needed"]:
            drop = f"{cell['expected_drop']:.2g}"
            whole = best["expected_drop"] / best["cost"]
            relative = f"{cell['expected_drop'] / cell['cost'] / whole:.2f}" if whole > 0 else "–"
        share = f"{100 * cell['share_of_full_tuning']:.2g}"
        rows.append((str(place), cell["model"], f"{cell['examples']:,}", share, drop, relative))
    title = f"{record['task']}: what to measure next, for a choice at {record['target']:,} examples"
    headings = ("", "model", "examples", "% of FullTuning", "drop in regret", "drop per cost")
    caption = f"FullTuning fine-tunes every model on all examples; regret is in {record['unit']}."
    return make_table(title, headings, rows, caption=caption, caption_justify="left")


def _sentence(record: dict[str, Any], larger: list[int]) -> str:
    """What to do; `larger` are rungs beyond those that may be measured."""
    cells, up_to = record["cells"], f"up to {record['max_examples']:,} examples"
    if cells:
        best = cells[0]
        start = f"Fine-tune {best['model']} on {best['examples']:,} examples next"
        if best["needed"]:
            short = len({cell["model"] for cell in cells})
            models = f"{short} model{'s have' if short > 1 else ' has'}"
            return f"{start}: {models} fewer than the two sizes above 0 that a fit needs, and their cells come first."
    beyond = "" if record["margin"] is None else f"beyond {record['margin']:g} "
    regret = (
        f"the expected regret {beyond}of choosing {record['choice']} now is {record['expected_regret']:.4f} "
        f"{record['unit']}"
    )
    if not cells:
        raised = f", or raise --max-examples to {larger[0]}" if larger else ""
        return f"Stop{raised}: every model is measured {up_to}, and {regret}."
    if max(cell["expected_drop"] for cell in cells) < NEGLIGIBLE:
        return f"Stop: {regret}, and no single cell {up_to} is expected to lower it by {NEGLIGIBLE}."
    return (
        f"{start}: that is expected to lower the regret of the choice by {best['expected_drop']:.2g} {record['unit']} "
        f"for {100 * best['share_of_full_tuning']:.2g} % of FullTuning; or stop: {regret}."
    )
