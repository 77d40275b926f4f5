"""Predictions of selection methods, and the one rule by which all choices are made of them: least expected regret."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel

from lensjax.curves.table import MAX_LOSS, CurveTable
from lensjax.fit.calibration import FEWEST
from lensjax.fit.posterior import CurvePosterior, chances_and_regrets, draws_for

CLOSE = 0.5  # P(best) of a choice below which it is too close to call
CEILING = 2.0  # largest predicted loss of a model over the largest measured
UNSEEN = 0.03  # share of draws in which models take each other's place, where no bend of a curve can have been seen
MIDDLE = 0.01  # share of draws about a model's median, on both sides, in which none takes its place


@dataclass(frozen=True)
class Prediction:
    """A method's prediction for each of M models.

    Attributes:
      score: smaller is better; NaN where the method cannot judge the model.
      is_loss: whether `score` is a predicted test loss at the target (in the unit of the table) or only an order.
      lower, upper: ends of the 90 % interval of the loss, where the method gives one.
      draws: joint draws of the losses at the target, where the method has them; NaN for models it cannot judge. Score,
        interval, P(best), regret and order are then all of these draws; see `predict_from`.
      eligible: which models may be chosen; None for all. `Method.predict` takes it from the table.
      widening: factor by which intervals were widened; see `lensjax.fit.calibration.widening`.
      posterior: the fit behind the prediction, where there is one. If the method ranks, probabilities, regrets, curves
        and law parameters are asked of it.
      assumptions: sentences on what the method assumes and how it is fitted; its summary where there are none.
      cautions: reasons to trust this prediction less that only the method knows.
      findings: computes what the method adds to a study's report, an instance of `Method.findings`.
    """

    score: Float[np.ndarray, " M"]
    is_loss: bool = True
    lower: Float[np.ndarray, " M"] | None = None
    upper: Float[np.ndarray, " M"] | None = None
    draws: Float[np.ndarray, "S M"] | None = None
    eligible: Bool[np.ndarray, " M"] | None = None
    widening: float = 1.0
    posterior: CurvePosterior | None = None
    assumptions: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()
    findings: Callable[[], BaseModel] | None = None

    @property
    def choosable(self) -> Bool[np.ndarray, " M"]:
        """Which models the method can judge, of those that may be chosen."""
        judged = np.isfinite(self.score)
        return judged if self.eligible is None else judged & self.eligible

    @property
    def probability_best(self) -> Float[np.ndarray, " M"] | None:
        """P(each model has the lowest loss of those to choose from); None without draws, NaN for the other models."""
        return None if self._standing is None else self._standing[0]

    @property
    def expected_regret(self) -> Float[np.ndarray, " M"] | None:
        """Expected loss above the lowest of those to choose from; None without draws, NaN for the other models."""
        return None if self._standing is None else self._standing[1]

    @cached_property
    def order(self) -> Int[np.ndarray, " M"]:
        """Positions of the models, best first: by expected regret where there are draws, else by score.

        Equal regrets are ordered by score. Models that the method cannot judge follow, then those not to be chosen.
        """
        key = self.score if self.expected_regret is None else self.expected_regret
        barred = np.zeros(len(self.score), bool) if self.eligible is None else ~self.eligible
        return np.lexsort([self.score, np.where(self.choosable, key, np.inf), barred])

    @property
    def choice(self) -> int | None:
        """Position of the model that the method chooses, the first of `order`; None where it can judge none."""
        return int(self.order[0]) if self.choosable.any() else None

    @cached_property
    def _standing(self) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"]] | None:
        if self.draws is None or not self.choosable.any():
            return None
        return chances_and_regrets(self.draws, self.choosable)


def predict_from(posterior: CurvePosterior, target: int, table: CurveTable | None = None, **fields: Any) -> Prediction:
    """The prediction of a posterior: joint draws of losses at the target, with their medians and 90 % intervals.

    No draw is above `CEILING` times the largest loss measured of its model: a run that comes so far is ended, and a few
    draws out of all reach would decide the expected regret of everything. Two points of each model are no reason to be
    sure of anything: in some draws models then take each other's place, so that no P(best) comes near 1.

    Args:
      posterior: over the curves of some models or all of the table's.
      target: number of training examples.
      table: with the models to predict, NaN where the posterior does not have them; the posterior's own by default.
      fields: further ones of `Prediction`.
    """
    models, highest = posterior.models, np.full(len(posterior.models), MAX_LOSS)
    if table is not None:
        models = table.models
        highest = CEILING * np.nanmax(table.loss, axis=1, initial=0.0, where=table.measured)
    sampled = posterior.sample(target, draws_for(len(posterior.models)))
    draws = np.full((len(sampled), len(models)), np.nan)
    places = {model: place for place, model in enumerate(models)}
    fitted = np.array([places[model] for model in posterior.models], dtype=int)
    draws[:, fitted] = sampled
    if table is not None and table.points().max() <= FEWEST:
        draws[:, fitted] = exchanged(sampled)
    np.minimum(draws, highest, out=draws)
    score, lower, upper = np.quantile(draws, (0.5, 0.05, 0.95), axis=0)
    return Prediction(
        score, lower=lower, upper=upper, draws=draws, widening=posterior.widening, posterior=posterior, **fields
    )


def exchanged(draws: Float[np.ndarray, "S M"]) -> Float[np.ndarray, "S M"]:
    """The draws, in a share `UNSEEN` of which pairs of models take each other's place, while no median changes.

    They do where either stays on its side of its median: for models that are far apart in one draw out of four.
    """
    count, models = draws.shape
    low, high = np.quantile(draws, (0.5 - MIDDLE, 0.5 + MIDDLE), axis=0)
    rng = np.random.default_rng(0)
    rows = rng.choice(count, min(count, round(4 * UNSEEN * count)), replace=False)[:, None]
    order = rng.permuted(np.tile(np.arange(models), (len(rows), 1)), axis=1)
    one, other = order[:, 0 : models - 1 : 2], order[:, 1::2]

    def stays(model: np.ndarray, new: np.ndarray) -> np.ndarray:
        now = draws[rows, model]
        same: np.ndarray = (np.maximum(now, new) < low[model]) | (np.minimum(now, new) > high[model])
        return same

    first, second = draws[rows, one], draws[rows, other]
    swap = stays(one, second) & stays(other, first)
    found = draws.copy()
    found[rows, one], found[rows, other] = np.where(swap, second, first), np.where(swap, first, second)
    return found


def as_measured(prediction: Prediction, measured: Float[np.ndarray, " M"]) -> Prediction:
    """The prediction in which losses that were measured at the target are what was measured.

    Such a run exists: choosing its model is choosing it, noise and all, so that nothing of its loss is uncertain.

    Args:
      prediction: Of M models.
      measured: Their losses at the target; NaN where not measured.
    """
    known = np.isfinite(measured)
    if not prediction.is_loss or not known.any():
        return prediction
    names = (name for name in ("score", "lower", "upper", "draws") if getattr(prediction, name) is not None)
    parts: dict[str, Any] = {name: np.where(known, measured, getattr(prediction, name)) for name in names}
    return replace(prediction, **parts)
