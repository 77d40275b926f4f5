"""A ranking as one self-contained HTML page."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from lensjax.core import text
from lensjax.core.sections import DataTable
from lensjax.report.figures.curves import BANDS, curves_figure
from lensjax.report.figures.plots import (
    PALETTE,
    PLOTTED,
    agreement_figure,
    beyond_axes,
    highlighted_models,
    measured_figure,
    plotted_models,
)
from lensjax.report.pages.html import Name, Plot, render
from lensjax.report.pages.sections import shown_section, shown_table
from lensjax.report.pages.tradeoffs import tradeoffs
from lensjax.selection.by_metric import MetricPrediction
from lensjax.selection.ranking import Ranking
from lensjax.selection.records import COMPARED, ranks

ROWS = 50
PRINTED_ROWS = 300  # with everything; those below have a line each
LINES = 5_000  # of those
_TICKS = 12  # characters of both that there is room for
_WIDTH, _EDGE = 100.0, 5.0
Scale = tuple[float, float] | None  # losses at both ends of the interval column


def render_ranking(ranking: Ranking) -> str:
    """The ranking as one HTML page that needs no network: plots, styles and scripts are inside it.

    Model names, families and the task's name may hold any text; it is escaped, and the page's content security policy
    runs no script but the page's own and fetches nothing.

    Args:
      ranking: Of any method.

    Returns:
      HTML, the same bytes for the same ranking and the versions named at the foot of the page.
    """
    return render("ranking.html.j2", ranking_context(ranking))


def ranking_context(ranking: Ranking) -> dict[str, Any]:
    """The variables of ranking.html.j2, which the template of a study extends."""
    table, models = ranking.table, [Name.of(model) for model in ranking.table.models]
    scale = _scale(ranking)
    rows, apart = _rows(ranking, models, scale)
    barred = ranking.ineligible
    measured = table.sizes[(table.sizes > 0) & (table.sizes <= ranking.budget)]
    plotted = plotted_models(ranking)
    return {
        "task": text.clean(table.task),
        "unit": table.unit.name,
        "method": text.method_title(ranking.method),
        "is_loss": ranking.prediction.is_loss,
        "metric": None if ranking.metric is None else ranking.metric.metric.name,
        "regret_unit": ranking.regret_unit,
        "budget": ranking.budget,
        "target": ranking.target,
        "ratio": text.count(ranking.target / ranking.budget) if 0 < ranking.budget < ranking.target else "",
        "rungs": len(measured),
        "smallest": int(measured[0]) if len(measured) else 0,
        **_leaders(ranking, rows),
        "tradeoffs": [shown_section(section) for section in tradeoffs(ranking)],
        "ranked": int(np.isfinite(ranking.prediction.score[ranking.choices]).sum()),
        "total": len(ranking.choices),
        "ineligible": [(Name.of(model), text.clean(why)) for model, why in barred[:PRINTED_ROWS]],
        "unsaid_ineligible": max(len(barred) - PRINTED_ROWS, 0),
        "is_close": ranking.is_close,
        "more": "" if ranking.decisive is None else text.clean(ranking.decisive.sentence),
        "warnings": [text.clean(sentence) for sentence in ranking.warnings],
        "compared": _compared(ranking, models),
        "columns": _columns(ranking),
        "baselines": [text.method_title(name) for name in ranking.baselines],
        "ticks": _ticks(scale),
        "rows": rows,
        "lines": _lines(ranking, models),
        "unlisted": max(len(ranking.choices) - PRINTED_ROWS - LINES, 0),
        "apart": apart,
        "row_limit": ROWS,
        "printed_rows": PRINTED_ROWS,
        "curves": _curves_plot(ranking),
        "measured_plot": _measured_plot(ranking),
        "agreements": [_agreement_plot(ranking, k, name) for k, name in enumerate(ranking.baselines)],
        "plotted": len(plotted),
        "plot_limit": PLOTTED,
        "highlighted": len(highlighted_models(ranking)),
        "dash": text.DASH,
        "has_later": bool(table.measured[:, table.sizes > ranking.budget].any()),
        "has_curves": ranking.curves is not None,
        "crosses": ranking.curves is None and ranking.prediction.is_loss,
        "bands": min(BANDS, len(highlighted_models(ranking))) if ranking.curves is not None else 0,
        "losses": _losses(ranking, models, plotted),
        "parameters": _parameters(ranking, plotted),
        "assumptions": [text.clean(sentence) for sentence in ranking.assumptions],
        "left_out": [(Name.of(model), text.clean(why)) for model, why in ranking.left_out[:PRINTED_ROWS]],
        "left_out_total": len(ranking.left_out),
    }


def _ticks(scale: Scale) -> tuple[str, str]:
    """The numbers at both ends of the interval column; none where they would touch."""
    low, high = ("", "") if scale is None else (text.significant(end, 3) for end in scale)
    return (low, high) if len(low) + len(high) <= _TICKS else ("", "")


def _leaders(ranking: Ranking, rows: list[dict[str, object]]) -> dict[str, object]:
    """The row of the chosen model, that of the best other one, and why it is not the best where it is not."""
    judged = [row for row in rows if row["rank"]]
    place = ranking.order.tolist().index(ranking.choice)
    chosen = next((row for row in judged if row["rank"] == place + 1), None)
    others = [row for row in judged if row is not chosen]
    return {
        "chosen": chosen,
        "runner_up": others[0] if others else None,
        "is_best": place == 0,
        "because": text.clean(ranking.why),
    }


def _columns(ranking: Ranking) -> dict[str, bool]:
    """Which optional columns of the ranking table hold anything."""
    table, prediction = ranking.table, ranking.prediction

    def known(values: Float[np.ndarray, " M"] | None) -> bool:
        return values is not None and bool(np.isfinite(values).any())

    return {
        "family": any(table.families),
        "parameters": known(table.parameters),
        "interval": prediction.is_loss and known(prediction.lower) and known(prediction.upper),
        "probability": known(ranking.probability_best),
        "regret": known(ranking.expected_regret),
        "measured": ranking.target > ranking.budget and known(table.column(ranking.target)),
    }


def _rows(
    ranking: Ranking, models: list[Name], scale: Scale
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Rows of the first models that may be chosen, and of the others."""
    table, prediction = ranking.table, ranking.prediction
    optional = (prediction.lower, prediction.upper, ranking.probability_best, ranking.expected_regret)
    lower, upper, best, regret = (np.full(len(models), np.nan) if x is None else x for x in optional)
    at_budget, at_target = table.column(ranking.budget), table.column(ranking.target)
    others = [ranks(other) for other in ranking.baselines.values()]
    colours = dict(zip(highlighted_models(ranking), PALETTE, strict=False))
    choices = ranking.choices
    places = dict(zip(choices[:PRINTED_ROWS].tolist(), range(1, PRINTED_ROWS + 1), strict=False))
    barred = ranking.order[len(choices) :][:PRINTED_ROWS].tolist()
    if ranking.cheaper is not None:  # the choice has its row, wherever it stands
        places.setdefault(ranking.choice, ranking.order.tolist().index(ranking.choice) + 1)
    rows: list[dict[str, object]] = []
    for i in (*places, *barred):
        score = float(prediction.score[i])
        rows.append(
            {
                "rank": places.get(i) if math.isfinite(score) else None,
                "name": models[i],
                "colour": colours.get(i),
                "family": text.clean(table.families[i], 40) or text.DASH,
                "parameters": text.count(table.parameters[i]),
                "at_budget": text.number(at_budget[i]),
                "score": text.number(score) if prediction.is_loss else text.significant(score),
                "interval": text.interval(lower[i], upper[i]),
                "whisker": _whisker(scale, lower[i], score, upper[i]),
                "metric": None if ranking.metric is None else _metric_cells(ranking, ranking.metric, i),
                "probability": text.percent(best[i]),
                "regret": text.regret(regret[i]),
                "at_target": text.number(at_target[i]),
                "others": [rank[i] for rank in others],
            }
        )
    return rows[: len(places)], rows[len(places) :]


def _lines(ranking: Ranking, models: list[Name]) -> list[tuple[Name, str]]:
    """Name and prediction of the models below the printed rows, in order."""
    below = ranking.choices[PRINTED_ROWS : PRINTED_ROWS + LINES].tolist()
    scores, form = ranking.prediction.score, text.number if ranking.prediction.is_loss else text.significant
    return [(models[i], form(float(scores[i]))) for i in below]


def _metric_cells(ranking: Ranking, metric: MetricPrediction, i: int) -> tuple[str, str, str]:
    """A model's metric as measured at the budget, as predicted, and the ends of its interval."""
    measured = ranking.table.metric_column(metric.metric, ranking.budget)[i]
    ends = (np.nan if end is None else end[i] for end in (metric.lower, metric.upper))
    return text.number(measured), text.number(metric.score[i]), text.interval(*ends)


def _scale(ranking: Ranking) -> Scale:
    """Ends of the scale of the interval column, over the rows shown; the widest tenth may run off it."""
    prediction, shown = ranking.prediction, ranking.choices[:ROWS]
    if not prediction.is_loss or prediction.lower is None or prediction.upper is None or not len(shown):
        return None
    score, lower, upper = (
        v[shown][np.isfinite(v[shown])] for v in (prediction.score, prediction.lower, prediction.upper)
    )
    if not (score.size and lower.size and upper.size):
        return None
    low, high = float(lower.min()), max(float(np.quantile(upper, 0.9)), float(score.max()))
    return (low, high) if high > low else None


def _whisker(scale: Scale, lower: float, score: float, upper: float) -> dict[str, object] | None:
    """Where to draw an interval and its centre in the interval column, in its SVG units."""
    if scale is None or not math.isfinite(score):
        return None

    def at(value: float) -> float:
        share = (value - scale[0]) / (scale[1] - scale[0])
        return round(_EDGE + min(max(share, 0.0), 1.0) * (_WIDTH - 2 * _EDGE), 1)

    known = math.isfinite(lower) and math.isfinite(upper)
    return {
        "low": at(lower) if known else None,
        "high": at(upper) if known else None,
        "centre": at(score) if score <= scale[1] else None,
        "beyond": known and upper > scale[1],
    }


def _compared(ranking: Ranking, models: list[Name]) -> list[dict[str, object]]:
    """First choices of the plain methods of the literature, beside that of the ranking."""
    return [
        {"method": text.method_title(name), "name": models[choice], "same": choice == ranking.choice}
        for name in COMPARED
        if name in ranking.baselines and (choice := ranking.baselines[name].choice) is not None
    ]


def _curves_plot(ranking: Ranking) -> Plot:
    task, target = text.clean(ranking.table.task, 60), text.count(ranking.target)
    best = ", ".join(text.clean(ranking.table.models[i], 60) for i in highlighted_models(ranking))
    label = (
        f"Line chart of test loss in {ranking.table.unit} against training examples on {task}, both on logarithmic "
        f"scales, with the budget of {text.count(ranking.budget)} and the target of {target} examples marked. In "
        f"colour, best first: {best or 'none'}. The tables of this page hold the numbers."
    )
    return Plot("curves", "Curves", curves_figure(ranking), label)


def _agreement_plot(ranking: Ranking, k: int, name: str) -> Plot:
    title, ours = text.method_title(name), text.method_title(ranking.method)
    figure = agreement_figure(ranking, name)
    by_loss = ranking.baselines[name].is_loss and ranking.prediction.is_loss
    what = "predicted loss" if by_loss else "rank"
    notes = []
    unjudged = len(plotted_models(ranking)) - sum(len(trace.x) for trace in figure.data)
    beyond = beyond_axes(figure)
    if beyond:
        notes.append(f"{beyond} beyond the axes")
    if unjudged:
        notes.append(f"{unjudged} without a prediction")
    label = f"Scatter plot of each model's {what} under {ours} against {title}; the ranking table has the ranks."
    return Plot(f"agreement-{k}", title, figure, label, ", ".join(notes))


def _measured_plot(ranking: Ranking) -> Plot | None:
    """Predicted against measured, where the file already holds losses at the target."""
    measured = ranking.table.column(ranking.target)
    known = np.isfinite(measured) & np.isfinite(ranking.prediction.score)
    if ranking.target <= ranking.budget or not ranking.prediction.is_loss or not known.any():
        return None
    label = (
        f"Scatter plot of the predicted against the measured loss at {text.count(ranking.target)} examples, "
        "with 90 % intervals; the ranking table has the numbers."
    )
    return Plot("measured", "Predicted and measured", measured_figure(ranking), label)


def _losses(ranking: Ranking, models: list[Name], plotted: list[int]) -> dict[str, object]:
    table = ranking.table
    return {
        "sizes": [(int(size), bool(size > ranking.budget)) for size in table.sizes],
        "rows": [(models[i], [text.number(loss) for loss in table.loss[i]]) for i in plotted],
    }


def _parameters(ranking: Ranking, plotted: list[int]) -> dict[str, Any] | None:
    if not ranking.parameters:
        return None
    columns = ranking.parameters.values()
    rows = [(ranking.table.models[i], [text.significant(column[i]) for column in columns]) for i in plotted]
    return shown_table(DataTable("Law parameters", list(ranking.parameters), rows, heading="Model"))
