"""RectifiedLaw: the rectified scaling law (arXiv 2402.02314), fitted to each model by itself."""

from lensjax.curves.table import CurveTable
from lensjax.fit.per_model import fit_per_model
from lensjax.selection.evidence import Evidence
from lensjax.selection.methods import register
from lensjax.selection.prediction import Prediction


@register("rectified_law", "per-model fit of L = B / (D_l + D^β) + E", place=6)
def rectified_law(table: CurveTable, target: int, evidence: Evidence) -> Prediction:
    """Least squares in log loss, each model by itself; needs two sizes above 0."""
    return Prediction(fit_per_model(table, "rectified").predict(target))
