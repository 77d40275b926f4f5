"""Straight lines through the last points of curves, log loss over log size."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

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


def fit_lines(table: CurveTable, count: Callable[[Float[np.ndarray, " n"], Float[np.ndarray, " n"]], int]) -> Lines:
    """Least squares through some of the largest sizes D > 0 of each model.

    Args:
      table: measured curves of M models.
      count: how many of the largest sizes to use, of log sizes in increasing order and their log losses.
    """
    positive = table.sizes > 0
    log_d = np.log(table.sizes[positive])
    lines = Lines(*np.full((2, len(table.models)), np.nan))
    for i, losses in enumerate(table.loss[:, positive]):
        known = np.isfinite(losses)
        if known.sum() >= 2:
            x, y = log_d[known], np.log(losses[known])
            used = count(x, y)
            lines.slope[i], lines.level[i] = np.polyfit(x[-used:], y[-used:], 1)
    return lines


def last_three(log_d: Float[np.ndarray, " n"], log_loss: Float[np.ndarray, " n"]) -> int:
    """Three, or as many as there are."""
    return min(3, len(log_d))


def accepted(log_d: Float[np.ndarray, " n"], log_loss: Float[np.ndarray, " n"]) -> int:
    """How many of the largest sizes lie on one line, by accept then stop (arXiv 2402.02314, Algorithm 1).

    Starting from the `FIRST` largest sizes, the next smaller one is accepted while it lies within `TOLERANCE`
    residual standard deviations (ddof 0) of the line through those accepted. As published, the smallest size
    is never accepted once there are more than `FIRST`; with `FIRST` points or fewer all are.

    Args:
      log_d, log_loss: points by increasing size.
    """
    count = min(FIRST, len(log_d))
    while count + 1 < len(log_d):
        slope, level = np.polyfit(log_d[-count:], log_loss[-count:], 1)
        spread = np.std(log_loss[-count:] - (slope * log_d[-count:] + level))
        candidate = -count - 1
        if abs(log_loss[candidate] - (slope * log_d[candidate] + level)) > TOLERANCE * spread:
            break
        count += 1
    return count
