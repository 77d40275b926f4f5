"""Predictions of a task metric in two steps: the loss by a method, and the metric by its link to the loss."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lensjax.core.errors import InputError, shorten
from lensjax.core.specs import Interval
from lensjax.curves.metrics import Metric
from lensjax.curves.table import CurveTable
from lensjax.fit.link import Link, NotLinked, fit_link
from lensjax.selection.prediction import Prediction, as_measured

DIGITS = 9  # of shares: what differs by less is equal, or rounding would decide between models that are always right


@dataclass(frozen=True)
class MetricPrediction:
    """A metric of M models at the target.

    Attributes:
      metric: Which; more is better.
      wrong: The prediction of the share that is wrong, 1 − metric, so that one rule of choice holds for metrics and
        losses: less is better, and regrets are in shares.
      link: The second step.
      models: Number of models and of points that the link was fitted to.
    """

    metric: Metric
    wrong: Prediction
    link: Link
    points: int

    @property
    def score(self) -> Float[np.ndarray, " M"]:
        """Medians of the metric; NaN where the method cannot judge a model."""
        return 1 - self.wrong.score

    @property
    def lower(self) -> Float[np.ndarray, " M"] | None:
        """Lower ends of 90 % intervals, of both steps; None where the method has no draws of losses."""
        return None if self.wrong.upper is None else 1 - self.wrong.upper

    @property
    def upper(self) -> Float[np.ndarray, " M"] | None:
        """Upper ends, likewise."""
        return None if self.wrong.lower is None else 1 - self.wrong.lower

    def summary(self) -> dict[str, Interval]:
        """The link's numbers: medians and 90 % intervals."""
        link = self.link
        parts = {"slope": link.b, "intercept": link.a, "shape": link.shape, "scatter": link.rho, "between": link.omega}
        if self.metric.by_chance:
            parts["chance"] = link.chance
        ends = {name: np.quantile(draws, (0.5, 0.05, 0.95)) for name, draws in parts.items()}
        return {name: Interval(value=v, lower=low, upper=up) for name, (v, low, up) in ends.items()}

    def content(self) -> dict[str, Any]:
        """The link for JSON."""
        numbers = {name: interval.model_dump() for name, interval in self.summary().items()}
        return {"points": self.points, "loss_scale": self.link.scale, **numbers}

    @property
    def assumptions(self) -> tuple[str, ...]:
        """Sentences on what the second step assumes."""
        link, slope = self.link, self.summary()["slope"]
        return (
            f"{self.metric.name.capitalize()} is a sigmoid of the loss, with one slope for all models and an offset "
            f"for each, fitted to {self.points} measured points: at a loss of {link.scale:.3g}, the middle of what was "
            f"measured, its log odds rise by {slope} for each e-fold that the loss falls. Intervals are of both steps: "
            "draws of losses, draws of the link, and the scatter of runs about it.",
            f"Models are in order of expected regret: the share by which each falls short of the best {self.metric}.",
        )


def check_metric(table: CurveTable, metric: Metric) -> None:
    """Raise InputError if a table does not hold a metric."""
    task = shorten(table.task)
    if metric.column not in table.metrics:
        held = " or ".join(table.metrics) or "none"
        raise InputError(
            f"The curves of task '{task}' do not hold {metric.name} (metrics there are: {held}); give a tidy CSV with "
            f"a column {metric.column}, as `lensjax curve` writes it, or rank by loss."
        )


def predict_metric(table: CurveTable, target: int, metric: Metric, prediction: Prediction) -> MetricPrediction:
    """The metric at the target, of a prediction of losses; what was measured there is taken as measured.

    Args:
      table: Measured curves, of which all is looked at, with the metric.
      target: Number of training examples.
      metric: Which.
      prediction: Of the losses of the table's models at the target.

    Raises:
      NotLinked: The measured losses do not tell the metric; the sentence says why.
      InputError: The table does not hold the metric, or the prediction is of no losses.
    """
    check_metric(table, metric)
    if not prediction.is_loss:
        raise InputError(
            f"Ranking by {metric.name} takes a method that predicts losses, which the metric is linked to; choose "
            "another, such as joint."
        )
    shares = table.metrics[metric.column]
    used = (table.sizes > 0)[None, :] & table.measured & np.isfinite(shares.value)
    parts = (np.where(used, part, np.nan) for part in (table.loss, *shares))
    try:
        link = fit_link(*parts, by_chance=metric.by_chance)
    except NotLinked as error:
        raise NotLinked(f"{metric.name.capitalize()} cannot be told from the loss: {error}.") from error
    judged = np.isfinite(prediction.score)
    losses = prediction.score[None, :] if prediction.draws is None else prediction.draws
    rows = np.resize(np.arange(len(losses)), len(link.a)) if prediction.draws is None else np.arange(len(losses))
    draws = _draws(link, np.where(judged, losses, 1.0)[rows])
    draws[:, ~judged] = np.nan
    score, lower, upper = np.quantile(draws, (0.5, 0.05, 0.95), axis=0)
    several: dict[str, Any] = {} if prediction.draws is None else {"lower": lower, "upper": upper, "draws": draws}
    wrong = Prediction(score, eligible=prediction.eligible, **several)
    wrong = as_measured(wrong, 1 - table.metric_column(metric, target))
    return MetricPrediction(metric, wrong, link, int(used.sum()))


def _draws(link: Link, losses: Float[np.ndarray, "S M"]) -> Float[np.ndarray, "S M"]:
    """Draws of 1 − metric, of draws of losses, each with a draw of the link."""
    rows: Int[np.ndarray, " S"] = np.resize(np.arange(len(link.a)), len(losses))
    return np.round(1 - link.measured(losses, rows), DIGITS)
