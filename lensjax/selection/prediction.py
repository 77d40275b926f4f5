"""Predictions of selection methods."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel

from lensjax.curves.table import CurveTable
from lensjax.fit.posterior import CurvePosterior


@dataclass(frozen=True)
class Prediction:
    """A method's prediction for each of M models.

    Attributes:
      score: smaller is better; NaN where the method cannot judge the model.
      is_loss: whether `score` is a predicted test loss at the target (nats per token) or only an order.
      lower, upper: ends of the 90 % interval of the loss, where the method gives one.
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
    widening: float = 1.0
    posterior: CurvePosterior | None = None
    assumptions: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()
    findings: Callable[[], BaseModel] | None = None


def predict_from(posterior: CurvePosterior, target: int, table: CurveTable | None = None, **fields: Any) -> Prediction:
    """The prediction of a posterior: medians and 90 % intervals of losses at the target.

    Args:
      posterior: over the curves of some models or all of the table's.
      target: number of training examples.
      table: with the models to predict, NaN where the posterior does not have them; the posterior's own by default.
      fields: further ones of `Prediction`.
    """
    models = posterior.models if table is None else table.models
    losses, ends = posterior.predict(target), np.full((3, len(models)), np.nan)
    ends[:, [models.index(model) for model in posterior.models]] = np.stack(losses.parts)[:, :, 0]
    score, lower, upper = ends
    return Prediction(score, lower=lower, upper=upper, widening=posterior.widening, posterior=posterior, **fields)
