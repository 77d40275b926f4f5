"""Straight lines through the last points of curves, log loss over log size."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lensjax.curves.table import CurveTable

FIRST = 3  # points that are accepted unseen
TOLERANCE = 5.0  # residual standard deviations within which the next smaller point must lie


class Lines(NamedTuple):
    """log L = level + slope log D of M models, D in examples; NaN for those with fewer than two sizes above 0."""

    slope: Float[np.ndarray, " M"]
    level: Float[np.ndarray, " M"]

    def predict(self, examples: int) -> Float[np.ndarray, " M"]:
        """Loss of every model at one size."""
        loss: Float[np.ndarray, " M"] = np.exp(self.level + self.slope * np.log(examples))
        return loss


# How many of the largest sizes of M models to use, of log sizes in increasing order and their log losses, which are NaN
# to the left where a model has fewer than n.
Count = Callable[[Float[np.ndarray, "M n"], Float[np.ndarray, "M n"]], Int[np.ndarray, " M"]]


def fit_lines(table: CurveTable, count: Count) -> Lines:
    """Least squares through some of the largest sizes D > 0 of each model.

    Args:
      table: measured curves of M models.
      count: how many of the largest sizes to use.
    """
    positive = table.sizes > 0
    losses = table.loss[:, positive]
    known = np.isfinite(losses)
    to_the_right = np.argsort(known, axis=1, kind="stable")
    x = np.log(table.sizes[positive])[to_the_right]
    y = np.log(np.take_along_axis(losses, to_the_right, axis=1))
    lines = Lines(*np.full((2, len(table.models)), np.nan))
    rows = np.flatnonzero(known.sum(axis=1) >= 2)
    lines.slope[rows], lines.level[rows] = _through_last(x[rows], y[rows], count(x[rows], y[rows]))
    return lines


def last_three(log_d: Float[np.ndarray, "M n"], log_loss: Float[np.ndarray, "M n"]) -> Int[np.ndarray, " M"]:
    """Three, or as many as there are; see `Count`."""
    return np.minimum(3, np.isfinite(log_loss).sum(axis=1))


def accepted(log_d: Float[np.ndarray, "M n"], log_loss: Float[np.ndarray, "M n"]) -> Int[np.ndarray, " M"]:
    """How many of the largest sizes lie on one line, by accept then stop (arXiv 2402.02314, Algorithm 1).

    Starting from the `FIRST` largest sizes, the next smaller one is accepted while it lies within `TOLERANCE`
    residual standard deviations (ddof 0) of the line through those accepted. As published, the smallest size
    is never accepted once there are more than `FIRST`; with `FIRST` points or fewer all are.

    Args:
      log_d, log_loss: see `Count`.
    """
    points = np.isfinite(log_loss).sum(axis=1)
    count = np.minimum(FIRST, points)
    rows = np.flatnonzero(count + 1 < points)
    while rows.size:
        x, y, used = log_d[rows], log_loss[rows], count[rows]
        slope, level = _through_last(x, y, used)
        errors = y - (slope[:, None] * x + level[:, None])
        spread = np.sqrt(np.where(_last(y, used), errors**2, 0).sum(axis=1) / used)
        candidate = np.abs(errors[np.arange(len(rows)), y.shape[1] - used - 1])
        rows = rows[candidate <= TOLERANCE * spread]
        count[rows] += 1
        rows = rows[count[rows] + 1 < points[rows]]
    return count


def _last(values: Float[np.ndarray, "M n"], used: Int[np.ndarray, " M"]) -> np.ndarray:
    """Which of each row's values are its last few."""
    return np.arange(values.shape[1]) >= values.shape[1] - used[:, None]


def _through_last(
    x: Float[np.ndarray, "M n"], y: Float[np.ndarray, "M n"], used: Int[np.ndarray, " M"]
) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"]]:
    """Slopes and levels of the lines through the last few points of each row, by least squares."""
    last = _last(y, used)
    x_mean, y_mean = (np.where(last, values, 0).sum(axis=1) / used for values in (x, y))
    dx, dy = np.where(last, x - x_mean[:, None], 0), np.where(last, y - y_mean[:, None], 0)
    slope = (dx * dy).sum(axis=1) / (dx**2).sum(axis=1)
    return slope, y_mean - slope * x_mean
