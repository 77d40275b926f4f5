"""NLPmetrics: models by heavy-tail metrics of their weights (Yang et al., arXiv 2202.02842)."""

import numpy as np

from lensjax.core.errors import InputError
from lensjax.curves.table import CurveTable
from lensjax.selection.evidence import Evidence
from lensjax.selection.methods import register
from lensjax.selection.prediction import Prediction

WEIGHTS = "weights"


@register("nlp_metrics", "heavy-tail metrics of the pretrained weights", place=8, needs={WEIGHTS: "weight metrics"})
def nlp_metrics(table: CurveTable, target: int, evidence: Evidence) -> Prediction:
    """An order, not a loss: PL_alpha + E_TPL_lambda; NaN where the weights were not looked at."""
    scores = evidence.of(WEIGHTS, table.models)
    if all(score is None for score in scores):
        raise InputError("No model has weight metrics; measure them (evidence.weights in a study).")
    return Prediction(np.array([np.nan if score is None else score for score in scores]), is_loss=False)
