"""ModelSize: models by their number of parameters."""

import numpy as np

from lensjax.curves.table import CurveTable
from lensjax.selection.evidence import Evidence
from lensjax.selection.methods import register
from lensjax.selection.prediction import Prediction


@register("model_size", "bigger is better: -log parameters", place=3)
def model_size(table: CurveTable, target: int, evidence: Evidence) -> Prediction:
    """An order, not a loss; NaN where the size is unknown."""
    return Prediction(-np.log(table.parameters), is_loss=False)
