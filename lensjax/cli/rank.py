"""`lensjax rank`: an order of models from their fine-tuning curves."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lensjax.cli.arguments import CurvesFile, Examples, MaxParameters, MethodName, MetricName, SmallestWithin, UnitName
from lensjax.cli.console import make_console, make_table, progress_bar
from lensjax.cli.curves import check_target, preference, within_size
from lensjax.cli.outputs import output_writer
from lensjax.selection.methods import DEFAULT_METHOD

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lensjax.selection.ranking import Ranking

SHOWN = 40  # rows of the table


def rank(
    curves: CurvesFile,
    target: Examples,
    budget: Examples | None = None,
    method: MethodName = DEFAULT_METHOD,
    unit: UnitName = None,
    metric: MetricName = None,
    max_parameters: MaxParameters = None,
    smallest_within: SmallestWithin = None,
    json: Path | None = None,
    csv: Path | None = None,
    html: Path | None = None,
) -> None:
    """Rank models by what choosing each is expected to cost.

    Reads fine-tuning curves (one row per model and a column per number of examples, or tidy rows
    model,examples,bits_per_byte or model,examples,loss), uses the sizes up to the budget, and predicts the loss at
    the target. The order is by expected regret: the loss above the best model that choosing a model costs on average.

    Worked examples

    $ lensjax rank curves.csv --target 1638400

    $ lensjax rank curves.csv --budget 12800 --target 1638400 --html report.html --json ranking.json

    $ lensjax rank results/curves.csv --target 51200 --metric exact_match

    $ lensjax rank rectified:flan --budget 12800 --target 1638400 --method ats

    $ lensjax rank curves.csv --target 1638400 --max-parameters 1.5B --smallest-within 0.02

    Args:
        target: Number of training examples to predict the loss for.
        budget: Largest number of training examples to look at; by default the largest measured up to the target.
        method: Method that ranks; all the others are shown beside it.
        json: Write everything that is known of every model to this file.
        csv: Write one row per model, best first, to this file.
        html: Write a self-contained report page to this file.
    """
    write = output_writer(json, csv, html, reads=[curves])
    check_target(target)
    from lensjax.curves.metrics import metric_named
    from lensjax.curves.sources import read_source
    from lensjax.selection.deciding import decisive
    from lensjax.selection.ranking import rank as rank_models
    from lensjax.selection.records import ranking_csv, ranking_json

    prefer, table = preference(smallest_within), within_size(read_source(curves, unit), max_parameters)
    if budget is None:
        budget = max((int(size) for size in table.sizes if 0 < size <= target), default=target)
    with progress_bar("Fitting") as progress:
        asked = None if metric is None else metric_named(metric)
        ranking = rank_models(table, budget, target, method, progress, metric=asked, prefer=prefer)
    ranking = replace(ranking, decisive=decisive(ranking))
    write(lambda: ranking_json(ranking), lambda: ranking_csv(ranking), lambda: _page(ranking))
    print_ranking(ranking)


def print_ranking(ranking: "Ranking") -> None:
    """Print the order with intervals, cautions, and what AtS and SubTuning would choose.

    Args:
      ranking: Of any method; the first 40 models are shown.
    """
    from rich.markup import escape

    from lensjax.core.text import DASH, count
    from lensjax.selection.ranking import OWN_TOKENS
    from lensjax.selection.records import COMPARED, ranks, records
    from lensjax.selection.untuned import gain_sentence

    def cell(value: float | None, form: str) -> str:
        return DASH if value is None else format(value, form)

    rows = records(ranking)
    by, shown = ranking.metric, rows[:SHOWN]
    others = {name: prediction for name, prediction in ranking.baselines.items() if name in COMPARED}
    beside = others if by is None else {}  # those order by loss
    places = [ranks(prediction, ties="ordinal") for prediction in beside.values()]

    def interval(row: "Mapping[str, Any]", start: str = "") -> str:
        low, high = row[f"{start}lower90"], row[f"{start}upper90"]
        return DASH if low is None else f"{low:.3f}–{high:.3f}"

    cells = [
        (
            DASH if row["rank"] is None else str(row["rank"]),
            row["model"],
            DASH if row["parameters"] is None else count(row["parameters"]),
            *([cell(row["loss_untuned"], ".3f")] if ranking.untuned is not None else []),
            cell(row["loss_at_budget"], ".3f"),
            cell(row["predicted"], ".3f"),
            interval(row),
            *(() if by is None else (cell(row["metric_at_budget"], ".3f"), cell(row["metric_predicted"], ".3f"))),
            *(() if by is None else (interval(row, "metric_"),)),
            cell(row["probability_best"], ".2f"),
            cell(row["expected_regret"], ".3f"),
            *(cell(place[i], "d") for place in places),
        )
        for row, i in zip(shown, ranking.order, strict=False)
    ]
    if ranking.untuned is not None and ranking.untuned.best is not None:
        untuned, before = ranking.untuned.best, ranking.untuned.loss[ranking.untuned.best]
        blank = [DASH] * len(cells[0])
        blank[1:6] = [f"{ranking.table.models[untuned]} untuned", DASH, f"{before:.3f}", DASH, f"{before:.3f}"]
        cells.append(tuple(blank))  # which is as good at any size
    title = (
        f"{ranking.table.task}: {len(ranking.table.models)} models by {ranking.method}, measured up to "
        f"{ranking.budget:,} examples, predicted at {ranking.target:,} ({ranking.table.unit}"
        f"{'' if by is None else f', in order of {by.metric}'})"
    )
    predicted = f"predicted {'loss' if ranking.prediction.is_loss else 'score'}"
    at_budget, before = f"at {ranking.budget:,}", ["untuned"] if ranking.untuned is not None else []
    of_metric = () if by is None else (f"{by.metric} {at_budget}", f"predicted {by.metric}", "90 % interval")
    headings = ("", "model", "size", *before, at_budget, predicted, "90 % interval", *of_metric, "P(best)", "regret")
    console = make_console()
    console.print(make_table(title, (*headings, *(f"{name} rank" for name in beside)), cells))
    if len(rows) > SHOWN:
        console.print(f"… and {len(rows) - SHOWN} more; write them all with --csv, --json or --html.")
    for model, reason in ranking.ineligible[:SHOWN]:
        console.print(f"[bold]Not to be chosen:[/bold] {escape(model)}, as {escape(reason)}.", soft_wrap=True)
    for model, reason in ranking.left_out[:SHOWN]:
        console.print(f"Left out: {escape(model)} ({reason}).", soft_wrap=True)
    for what, found in (("not to be chosen", ranking.ineligible), ("left out", ranking.left_out)):
        if len(found) > SHOWN:
            console.print(f"… and {len(found) - SHOWN:,} more are {what}; --json names them all.")
    if OWN_TOKENS in ranking.assumptions:
        console.print(OWN_TOKENS, soft_wrap=True)
    for warning in ranking.warnings:
        console.print(f"[bold]Caution:[/bold] {escape(warning)}", soft_wrap=True)
    choices = [
        f"{name} would choose {ranking.table.models[choice]}"
        for name, prediction in others.items()
        if (choice := prediction.choice) is not None
    ]
    told = (
        "" if ranking.decisive is None else ranking.decisive.sentence,
        ranking.why,
        "" if ranking.untuned is None else gain_sentence(ranking.table, ranking.untuned, ranking.choice),
    )
    for sentence in filter(None, told):
        console.print(escape(sentence), soft_wrap=True)
    chosen = ranking.table.models[ranking.choice]
    best = f"Too close to call: {chosen} leads" if ranking.is_close else f"Choose {chosen}"
    console.print(escape("; ".join([best, *filter(None, [", ".join(choices)])]) + "."), soft_wrap=True)


def _page(ranking: "Ranking") -> str:
    from lensjax.report.pages.ranking import render_ranking

    return render_ranking(ranking)
