"""AtS, accept then stop: the straight-line method of the rectified scaling law (arXiv 2402.02314, Algorithm 1)."""

import numpy as np
from jaxtyping import Float

from lensjax.curves.table import CurveTable
from lensjax.selection.evidence import Evidence
from lensjax.selection.methods import register
from lensjax.selection.prediction import Prediction

FIRST = 3  # points that are accepted unseen
TOLERANCE = 5.0  # residual standard deviations within which the next smaller point must lie


def accepted(log_d: Float[np.ndarray, " n"], log_loss: Float[np.ndarray, " n"]) -> int:
    """How many of the largest sizes lie on one line in log-log, by accept then stop.

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


@register("ats", "log-log line through the largest sizes (accept then stop)", place=1)
def ats(table: CurveTable, target: int, evidence: Evidence) -> Prediction:
    """Extrapolate each model's accepted points along their line; needs two sizes above 0."""
    positive = table.sizes > 0
    log_d = np.log(table.sizes[positive])
    predicted = np.full(len(table.models), np.nan)
    for i, losses in enumerate(table.loss[:, positive]):
        known = np.isfinite(losses)
        if known.sum() >= 2:
            x, y = log_d[known], np.log(losses[known])
            count = accepted(x, y)
            slope, level = np.polyfit(x[-count:], y[-count:], 1)
            predicted[i] = np.exp(slope * np.log(target) + level)
    return Prediction(predicted)
