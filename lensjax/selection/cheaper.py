"""Loss against cost: which models are worth their cost, and which is the cheapest that is nearly as good as the best.

Both follow the rule of all choices, least expected regret: a model is better than another if its expected loss is
lower. Draws are the ones that the ranking is made of, so neither can contradict it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from lensjax.core import text
from lensjax.core.errors import InputError, shorten
from lensjax.curves.table import CurveTable
from lensjax.selection.prediction import Prediction

CostName = Literal["parameters", "memory", "flops_per_token"]
COSTS: Mapping[CostName, str] = MappingProxyType(  # in sentences and on axes
    {"parameters": "parameters", "memory": "bytes of memory", "flops_per_token": "FLOPs per token"}
)
Costs = Mapping[CostName, Float[np.ndarray, " M"]]  # of M models; NaN where unknown


@dataclass(frozen=True)
class Cheaper:
    """The cheapest of M models whose expected loss is within a margin of the best one's.

    The best one is that of the least expected regret. It is the choice if no cheaper model is within the margin.

    Attributes:
      margin: in the unit of the losses.
      by: name of the cost.
      best: position of the best model.
      choice: position of the chosen one.
      given_up: expected loss of the chosen model less that of the best.
      probability: P(loss ≤ lowest loss of all models to choose from + margin) of each model; NaN for the others. None
        where there are no draws.
      shortfall: expected loss of each model beyond that, likewise: regret that a user with this preference has.
    """

    margin: float
    by: CostName
    best: int
    choice: int
    given_up: float
    probability: Float[np.ndarray, " M"] | None
    shortfall: Float[np.ndarray, " M"] | None


@dataclass(frozen=True)
class Preference:
    """The wish to choose the cheapest model that gives up no more than a margin of expected loss.

    Attributes:
      margin: in the unit of the losses.
      by: the cost that is to be small.
    """

    margin: float
    by: CostName = "parameters"

    def __post_init__(self) -> None:
        if not 0 < self.margin < np.inf:
            raise InputError(f"The margin of loss to give up is {self.margin}; give a positive number, such as 0.02.")

    def among(self, prediction: Prediction, costs: Costs) -> Cheaper:
        """Choose one of M models.

        Models of unknown cost are chosen only where they are the best; neither is another then, as it may cost more.

        Args:
          prediction: with a choice.
          costs: of the models.

        Raises:
          InputError: the method predicts no losses, or no model's cost is known.
        """
        if not prediction.is_loss:
            raise InputError(
                "The method predicts an order of models and no losses, of which a margin could be given up; choose "
                "another method, or leave the margin out."
            )
        cost, best = costs.get(self.by, np.full(len(prediction.score), np.nan)), int(prediction.order[0])
        if not np.isfinite(cost[prediction.choosable]).any():
            raise InputError(f"The models' {COSTS[self.by]} are not known, by which the smallest is chosen; add them.")
        regret = regrets(prediction)
        within = np.flatnonzero((regret - regret[best] <= self.margin) & np.isfinite(cost))
        choice = best
        if np.isfinite(cost[best]):
            choice = int(within[np.lexsort([regret[within], cost[within]])[0]])
        chances, shortfalls = standing_within(prediction, self.margin)
        return Cheaper(self.margin, self.by, best, choice, float(regret[choice] - regret[best]), chances, shortfalls)


def regrets(prediction: Prediction) -> Float[np.ndarray, " M"]:
    """Expected regrets, or without draws predicted losses above the lowest; NaN for models not to choose from."""
    if prediction.expected_regret is not None:
        return prediction.expected_regret
    scores = np.where(prediction.choosable, prediction.score, np.nan)
    above: Float[np.ndarray, " M"] = scores - np.nanmin(scores)
    return above


def standing_within(
    prediction: Prediction, margin: float
) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"]] | tuple[None, None]:
    """P(loss ≤ lowest loss + margin), and the expected loss beyond that, of each of the models to choose from.

    NaN for other models, and None without draws. A margin of 0 gives P(best) and expected regrets.
    """
    if prediction.draws is None:
        return None, None
    chances, shortfalls = np.full((2, len(prediction.score)), np.nan)
    losses = prediction.draws[:, prediction.choosable]
    beyond = losses - losses.min(axis=1, keepdims=True) - margin
    chances[prediction.choosable] = (beyond <= 0).mean(axis=0)
    shortfalls[prediction.choosable] = np.maximum(beyond, 0).mean(axis=0)
    return chances, shortfalls


def on_front(cost: Float[np.ndarray, " M"], regret: Float[np.ndarray, " M"]) -> Bool[np.ndarray, " M"]:
    """The Pareto front: models than which no other is better without costing more, or cheaper without being worse.

    Args:
      cost: of M models; NaN where unknown.
      regret: expected regret of each, or anything that orders expected losses; NaN for models that may not be chosen.

    Returns:
      Whether each model is on the front; never where its cost or regret is not known. Of equal models it is the first.
    """
    front, lowest = np.zeros(len(cost), bool), np.inf
    for i in np.lexsort([regret, cost]):
        if np.isfinite(cost[i]) and regret[i] < lowest:
            front[i], lowest = True, regret[i]
    return front


def costs_of(table: CurveTable, known: Mapping[CostName, Mapping[str, float]] | None = None) -> Costs:
    """Costs of a table's models: its own numbers of parameters, and others by the names of models."""
    costs = {
        name: np.array([float(of.get(model, np.nan)) for model in table.models]) for name, of in (known or {}).items()
    }
    return {"parameters": table.parameters, **costs}


def too_large(table: CurveTable, limit: float) -> dict[str, str]:
    """The models that have more parameters than allowed, or may have them, and why, for `CurveTable.barring`."""
    reasons = {}
    for model, size in zip(table.models, table.parameters, strict=True):
        unknown = f"its number of parameters is not known, and at most {text.count(limit)} are allowed"
        reasons[model] = beyond(size, limit, "has {} parameters", text.count) if np.isfinite(size) else unknown
    return {model: why for model, why in reasons.items() if why}


def beyond(value: float, limit: float | None, what: str, form: Callable[[float], str], unit: str = "") -> str:
    """Says that a value is beyond its limit, in digits that tell them apart; "" where it is not, or not known.

    Args:
      value, limit: The value, and the most that is allowed.
      what: What it is, with {} for the value, as in "has {} parameters".
      form: Writes either of them.
      unit: That of a whole number, where `form` writes both alike.
    """
    if limit is None or not value > limit:
        return ""
    form = form if form(value) != form(limit) else lambda number: f"{number:,.0f}{unit}"
    return f"it {what.format(form(value))}, and at most {form(limit)} are allowed"


def choice_sentence(table: CurveTable, found: Cheaper, costs: Costs, unit: str | None = None) -> str:
    """Why the chosen model is chosen, in a sentence.

    Args:
      table: of the models.
      found: see `Preference.among`.
      costs: of the models.
      unit: that of regrets, in words; the table's by default.
    """
    chosen, best = (shorten(table.models[i], 100) for i in (found.choice, found.best))
    margin, cost = f"{text.significant(found.margin)} {unit or table.unit}", costs[found.by]
    sizes = [
        f"{text.count(cost[i])} {COSTS[found.by]}" if np.isfinite(cost[i]) else "" for i in (found.choice, found.best)
    ]
    if found.choice == found.best:
        unknown = "" if sizes[0] else f", and its own {COSTS[found.by]} are not known"
        return f"No model that takes fewer {COSTS[found.by]} is expected to be within {margin} of {best}{unknown}."
    chance = ""
    if found.probability is not None:
        likely = text.probability(found.probability[found.choice])
        chance = f"; it is within {margin} of the best model with probability {likely}"
    return (
        f"{chosen} ({sizes[0]}) is the smallest that is expected to be within {margin} of the best, {best} "
        f"({sizes[1]}): it gives up {text.significant(found.given_up, 2)}{chance}."
    )
