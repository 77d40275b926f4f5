"""Rankings as plain records, CSV and JSON, and places of models under every method."""

import math
from typing import Any, Literal

import numpy as np
from scipy.stats import rankdata

from lensjax.core.csv_text import csv_text
from lensjax.core.text import clean, json_text
from lensjax.core.version import __version__
from lensjax.selection.by_metric import MetricPrediction
from lensjax.selection.prediction import Prediction
from lensjax.selection.ranking import Ranking

COMPARED = ("ats", "sub_tuning")  # plain methods of the literature, whose choice is shown beside every ranking


def ranks(prediction: Prediction, ties: Literal["min", "ordinal"] = "min") -> list[int | None]:
    """Rank of each model, 1 for the one to choose first; None where the method cannot judge one.

    Args:
      prediction: Of M models.
      ties: Whether models that are equally good share the better rank, or keep the order of `Prediction.order`.
    """
    judged = prediction.choosable
    if ties == "ordinal":
        places = np.empty(len(judged))
        places[prediction.order] = np.arange(1, len(judged) + 1)
    else:
        key = prediction.score if prediction.expected_regret is None else prediction.expected_regret
        places = rankdata(np.where(judged, key, np.nan), "min", nan_policy="omit")
    return [int(place) if known else None for place, known in zip(places, judged, strict=True)]


def records(ranking: Ranking) -> list[dict[str, Any]]:
    """One flat record per model, best first; None where nothing is known.

    Returns:
      Rank, model, family, parameters, losses in the unit of the table, what is known of the metric where one ranks,
      probability_best, expected_regret, why it may not be chosen, costs, whether it is on the Pareto front of loss and
      cost, what fine-tuning gains over the model before, and the score of each baseline by its name. Models that may
      not be chosen come last, without a rank.
    """
    prediction, measured = ranking.prediction, ranking.table.column(ranking.budget)
    cheaper, before, front = ranking.cheaper, ranking.untuned, ranking.front
    at, rows = _at, []
    for place, i in enumerate(ranking.order, start=1):
        why = ranking.table.ineligible[i]
        row = {
            "rank": None if why else place,
            "model": ranking.table.models[i],
            "family": ranking.table.families[i] or None,
            "parameters": at(ranking.table.parameters, i),
            "loss_at_budget": at(measured, i),
            "predicted": at(prediction.score, i),
            "lower90": at(prediction.lower, i),
            "upper90": at(prediction.upper, i),
            **({} if ranking.metric is None else _of_metric(ranking, ranking.metric, i)),
            "probability_best": at(ranking.probability_best, i),
            "expected_regret": at(ranking.expected_regret, i),
            "ineligible": why or None,
            "memory": at(ranking.costs.get("memory"), i),
            "flops_per_token": at(ranking.costs.get("flops_per_token"), i),
            "on_front": bool(front[i]),
            "probability_within": at(None if cheaper is None else cheaper.probability, i),
            "loss_untuned": at(None if before is None else before.loss, i),
            "gain": at(None if before is None else before.gain, i),
            "gain_lower90": at(None if before is None else before.lower, i),
            "gain_upper90": at(None if before is None else before.upper, i),
            "probability_gain": at(None if before is None else before.probability, i),
        }
        rows.append(row | {name: at(other.score, i) for name, other in ranking.baselines.items()})
    return rows


def _at(values: np.ndarray | None, i: int) -> float | None:
    return None if values is None or not math.isfinite(values[i]) else float(values[i])


def _of_metric(ranking: Ranking, metric: MetricPrediction, i: int) -> dict[str, float | None]:
    """What is known of a model's metric."""
    return {
        "metric_at_budget": _at(ranking.table.metric_column(metric.metric, ranking.budget), i),
        "metric_predicted": _at(metric.score, i),
        "metric_lower90": _at(metric.lower, i),
        "metric_upper90": _at(metric.upper, i),
    }


def ranking_csv(ranking: Ranking) -> str:
    """Records as CSV with the unit of losses, one row per model, best first; blank where nothing is known."""
    rows = [row | {"unit": ranking.table.unit.name} for row in records(ranking)]
    return csv_text([list(rows[0]), *([clean(x) if isinstance(x, str) else x for x in row.values()] for row in rows)])


def ranking_json(ranking: Ranking) -> str:
    """Everything that a program may need of a ranking: records with fitted laws, and what frames them."""
    laws, before = ranking.parameters, ranking.untuned
    models = [
        row | {"law": {name: float(values[i]) for name, values in laws.items()} or None}
        for row, i in zip(records(ranking), ranking.order, strict=True)
    ]
    content = {
        "lensjax": __version__,
        "task": ranking.table.task,
        "unit": ranking.table.unit.name,
        "budget": ranking.budget,
        "target": ranking.target,
        "method": ranking.method,
        "predicts_loss": ranking.prediction.is_loss,
        "ranked_by": "loss" if ranking.metric is None else ranking.metric.metric.column,
        "link": None if ranking.metric is None else ranking.metric.content(),
        "too_close_to_call": ranking.is_close,
        "decisive": None if ranking.decisive is None else ranking.decisive.content(),
        "choice": ranking.table.models[ranking.choice],
        "why": ranking.why or None,
        "front_of": ranking.shown_cost,
        "best_untuned": None if before is None or before.best is None else ranking.table.models[before.best],
        "models": models,
        "left_out": [{"model": model, "reason": reason} for model, reason in ranking.left_out],
        "warnings": list(ranking.warnings),
        "assumptions": list(ranking.assumptions),
    }
    return json_text(content)
