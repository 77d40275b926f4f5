"""Sections on what the choice costs and gains: loss against cost, and models before fine-tuning."""

import numpy as np

from lensjax.core import text
from lensjax.core.sections import DataTable, FrontPlot, Point, Section
from lensjax.report.figures.plots import highlighted_models, plotted_models
from lensjax.selection.cheaper import COSTS
from lensjax.selection.ranking import Ranking
from lensjax.selection.untuned import gain_sentence

ROWS = 20


def tradeoffs(ranking: Ranking) -> list[Section]:
    """Loss against cost, where costs are known, and gains over models before fine-tuning, where those were measured."""
    found = (_loss_and_cost(ranking), _untuned(ranking))
    return [section for section in found if section is not None]


def _loss_and_cost(ranking: Ranking) -> Section | None:
    name, prediction, unit = ranking.shown_cost, ranking.prediction, ranking.table.unit
    if name is None or not prediction.is_loss:
        return None
    cost, front, chosen = ranking.costs[name], ranking.front, ranking.choice
    shown = [i for i in plotted_models(ranking) if np.isfinite([cost[i], prediction.score[i]]).all()]
    if not shown:
        return None
    unknown = np.full(len(cost), np.nan)
    lower = unknown if prediction.lower is None else prediction.lower
    upper = unknown if prediction.upper is None else prediction.upper
    places = {i: place for place, i in enumerate(highlighted_models(ranking))}
    plot = FrontPlot(
        id="loss-and-cost-plot",
        title="Predicted loss and cost",
        x_title=f"{COSTS[name]} (log scale)",
        y_title=f"predicted loss, {unit}",
        points=[
            Point(
                ranking.table.models[i],
                places.get(i),
                float(cost[i]),
                float(prediction.score[i]),
                float(lower[i]),
                float(upper[i]),
                bool(front[i]),
            )
            for i in shown
        ],
        chosen=ranking.table.models[chosen],
        note="Bars are 90 % intervals." if prediction.lower is not None else "",
    )
    notes = [
        f"Predicted loss at {ranking.target:,} examples against {COSTS[name]}. Along the dotted line, the Pareto "
        "front, no model has a lower expected loss without costing more. The ring is the choice."
    ]
    if ranking.cheaper is not None:
        notes.insert(0, ranking.why)
    rows = [i for k, i in enumerate(shown) if k < ROWS or front[i] or i == chosen]
    if len(rows) < len(shown):
        notes.append(f"The table has the first {ROWS} models and those on the front.")
    return Section("loss-and-cost", "Loss and cost", notes, [plot], [_costs(ranking, rows)])


def _costs(ranking: Ranking, shown: list[int]) -> DataTable:
    """The plot in numbers, with every cost that is known."""
    prediction, cheaper, front = ranking.prediction, ranking.cheaper, ranking.front
    known = [name for name, values in ranking.costs.items() if np.isfinite(values[shown]).any()]
    columns = [*(COSTS[name].capitalize() if name != "flops_per_token" else COSTS[name] for name in known)]
    columns += ["Predicted loss", "On the front"]
    if cheaper is not None and cheaper.probability is not None:
        columns.append(f"P(within {cheaper.margin:g} of the best)")
    rows = []
    for i in shown:
        cells = [text.count(ranking.costs[name][i]) for name in known]
        cells += [text.number(prediction.score[i]), "yes" if front[i] else ""]
        if cheaper is not None and cheaper.probability is not None:
            cells.append(text.percent(cheaper.probability[i]))
        rows.append((ranking.table.models[i], cells))
    return DataTable("Loss and cost of models", columns, rows)


def _untuned(ranking: Ranking) -> Section | None:
    found, prediction, models = ranking.untuned, ranking.prediction, ranking.table.models
    if found is None:
        return None
    known = [i for i in plotted_models(ranking) if np.isfinite(found.loss[i])]
    shown = [i for k, i in enumerate(known) if k < ROWS or i in (found.best, ranking.choice)]
    columns = ["Loss before", f"Predicted at {text.count(ranking.target)}", "Gain"]
    if found.probability is not None:
        columns += ["90 % interval", "P(gain)", "P(better than the best untuned)"]
    rows = []
    for i in shown:
        cells = [text.number(value[i]) for value in (found.loss, prediction.score, found.gain)]
        if found.lower is not None and found.upper is not None and found.probability is not None:
            better = np.nan if found.over_best is None else found.over_best[i]
            cells += [text.interval(found.lower[i], found.upper[i]), text.percent(found.probability[i])]
            cells.append(text.percent(better))
        rows.append((f"{models[i]}, untuned", cells))
    notes = [
        f"Losses before fine-tuning, with the same prompts and on the same test set, in {ranking.table.unit}, and what "
        f"fine-tuning on {ranking.target:,} examples is predicted to gain."
    ]
    if len(shown) < len(known):
        notes.append(f"The table has the first {ROWS} models and the best one before fine-tuning.")
    if sentence := gain_sentence(ranking.table, found, ranking.choice):
        notes.insert(0, sentence)
    return Section(
        "untuned", "Is fine-tuning worth it?", notes, tables=[DataTable("Models before fine-tuning", columns, rows)]
    )
