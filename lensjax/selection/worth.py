"""What models are worth to a choice, given the distribution of their log losses.

A loss is worth itself; where the choice is by a metric, the share that is wrong, as its link to the loss expects it.
With values v_i, of which less is better, the choice c is the model of the lowest, or the cheapest within a margin of
it. Having chosen i instead falls short by

    v_i + margin - v_c   where c is cheaper, as the margin is what its lower cost is worth,
    v_i - v_c            where both cost the same, or cost does not matter,
    v_i - min_j v_j - margin, if that is positive, where i is cheaper than c.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtr

from lensjax.curves.table import CurveTable
from lensjax.selection.by_metric import MetricPrediction
from lensjax.selection.cheaper import Costs, Preference
from lensjax.selection.prediction import Prediction

HIGHEST = 1e30  # loss that no draw exceeds
_TINY = 1e-20  # variance of a log loss that is known
_FINITE = 700.0  # log of a loss that is a number
_GRID = 96  # log losses at which the link is averaged
_LINKS = 500  # draws of the link
_QUADRATURE = 12  # nodes of an expectation over a log loss


class Worth(NamedTuple):
    """What the losses of M models are worth.

    Attributes:
      ranks: places of models in order of cost, the same for equal costs, and M where unknown; all 0 where the cost does
        not matter.
      margin: of value, that a cheaper model may be above the best; 0 likewise.
      ceiling: above which a loss is not worse, as draws do not exceed it.
      log_losses: evenly spaced, at which `wrong` is given.
      wrong: share that is expected to be wrong; None where the loss is the value.
    """

    ranks: Int[np.ndarray, " M"]
    margin: float
    ceiling: Float[np.ndarray, " M"]
    log_losses: Float[np.ndarray, " K"] | None = None
    wrong: Float[np.ndarray, "K M"] | None = None

    @classmethod
    def plain(cls, models: int) -> "Worth":
        """That of losses, of any height, whatever models cost."""
        return cls(np.zeros(models, int), 0.0, np.full(models, HIGHEST))


def worth_of(
    table: CurveTable,
    target: int,
    losses: Prediction,
    linked: MetricPrediction | None,
    prefer: Preference | None,
    costs: Costs,
) -> Worth:
    """What losses are worth to a choice by a metric, or of a cheaper model, or both.

    Args:
      table: of the models.
      target: number of training examples.
      losses: predicted at the target.
      linked: the metric, of those losses, if the choice is by one.
      prefer: the wish for a cheaper model.
      costs: of the models.
    """
    models = len(table.models)
    worth = Worth.plain(models)
    if losses.draws is not None:
        worth = worth._replace(ceiling=2 * np.nan_to_num(losses.draws.max(axis=0), nan=HIGHEST))
    if prefer is not None:
        cost = costs[prefer.by]
        ranks = np.unique(cost, return_inverse=True, equal_nan=True)[1]
        worth = worth._replace(ranks=np.where(np.isfinite(cost), ranks, models), margin=prefer.margin)
    if linked is not None:
        drawn = losses.score[None] if losses.draws is None else losses.draws
        low, high = np.log(np.nanmin(drawn)), np.log(np.nanmax(drawn))
        grid = np.linspace(low - 1.0, high + 1.0, _GRID)
        rows = np.linspace(0, len(linked.link.a) - 1, _LINKS).round().astype(np.int64)
        wrong = np.empty((_GRID, models))
        for k, log_loss in enumerate(grid):
            wrong[k] = 1 - linked.link.expected(np.full((_LINKS, models), np.exp(log_loss)), rows).mean(axis=0)
        measured = 1 - table.metric_column(linked.metric, target)
        worth = worth._replace(log_losses=grid, wrong=np.where(np.isfinite(measured), measured, wrong))
    return worth


def expected_of(
    worth: Worth, mean: Float[np.ndarray, "*n M"], variance: Float[np.ndarray, "*n M"]
) -> Float[np.ndarray, "*n M"]:
    """Expected values of models whose log losses are Gaussian."""
    sd = np.sqrt(np.maximum(variance, _TINY))
    values: np.ndarray
    if worth.wrong is None or worth.log_losses is None:
        height = np.log(worth.ceiling) - mean
        below = np.exp(np.minimum(mean + variance / 2, _FINITE)) * ndtr((height - variance) / sd)
        values = below + worth.ceiling * ndtr(-height / sd)
        return values
    nodes, weights = np.polynomial.hermite_e.hermegauss(_QUADRATURE)
    log_losses = mean[..., None] + sd[..., None] * nodes
    values = np.empty_like(mean)
    for model, wrong in enumerate(worth.wrong.T):
        values[..., model] = np.interp(log_losses[..., model, :], worth.log_losses, wrong) @ (weights / weights.sum())
    return values


def choose(
    worth: Worth, values: Float[np.ndarray, "*n M"], scale: Float[np.ndarray, "*n"] | float
) -> Int[np.ndarray, "*n"]:
    """The model to choose: the cheapest within the margin of the best, as `Preference.among` does.

    Args:
      worth: of the models.
      values: of each, times `scale`; infinite where it may not be chosen.
      scale: a positive number.
    """
    best, ranks = np.argmin(values, axis=-1), worth.ranks
    within = values <= values.min(axis=-1, keepdims=True) + worth.margin * np.asarray(scale)[..., None]
    rank = np.where(within, ranks, len(ranks))
    found = np.argmin(np.where(within & (rank == rank.min(axis=-1, keepdims=True)), values, np.inf), axis=-1)
    chosen: np.ndarray = np.where(ranks[best] < len(ranks), found, best)
    return chosen


def shortfall(
    worth: Worth, values: Float[np.ndarray, "*n M"], scale: Float[np.ndarray, "*n"] | float, chosen: int
) -> Float[np.ndarray, "*n"]:
    """By how much having chosen a model falls short of the choice that the values make, times `scale`."""
    right, ranks, margin = choose(worth, values, scale), worth.ranks, worth.margin * scale
    above = values[..., chosen] - np.take_along_axis(values, right[..., None], axis=-1)[..., 0]
    cheaper = np.maximum(values[..., chosen] - values.min(axis=-1) - margin, 0.0)
    short: np.ndarray = np.where(ranks[right] < ranks[chosen], above + margin, cheaper)
    return np.where(ranks[right] == ranks[chosen], above, short)
