"""SubTuning: models by their last measured loss."""

import numpy as np

from lensjax.curves.table import CurveTable
from lensjax.selection.evidence import Evidence
from lensjax.selection.methods import register
from lensjax.selection.prediction import Prediction


@register("sub_tuning", "test loss at the largest measured size", place=4)
def sub_tuning(table: CurveTable, target: int, evidence: Evidence) -> Prediction:
    """The loss at each model's largest measured size D > 0, unchanged by the target."""
    measured = table.measured & (table.sizes > 0)
    last = measured.shape[1] - 1 - np.argmax(measured[:, ::-1], axis=1) if measured.size else 0
    losses = table.loss[np.arange(len(table.models)), last] if measured.size else np.nan
    return Prediction(np.where(measured.any(axis=1), losses, np.nan))
