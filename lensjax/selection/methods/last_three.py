"""The straight line in log-log through each model's last three points."""

import numpy as np

from lensjax.curves.table import CurveTable
from lensjax.selection.evidence import Evidence
from lensjax.selection.methods import register
from lensjax.selection.prediction import Prediction

POINTS = 3


@register("last_three", "log-log line through the last three sizes", place=1.5)
def last_three(table: CurveTable, target: int, evidence: Evidence) -> Prediction:
    """Least squares through the three largest sizes D > 0 of each model; two points are joined."""
    positive = table.sizes > 0
    log_d, log_loss = np.log(table.sizes[positive]), np.log(table.loss[:, positive])
    predicted = np.full(len(table.models), np.nan)
    for i, y in enumerate(log_loss):
        last = np.flatnonzero(np.isfinite(y))[-POINTS:]
        if len(last) >= 2:
            slope, level = np.polyfit(log_d[last] - log_d[last[-1]], y[last], 1)
            predicted[i] = np.exp(level + slope * (np.log(target) - log_d[last[-1]]))
    return Prediction(predicted)
