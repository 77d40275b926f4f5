"""AtS, accept then stop: the straight-line method of the rectified scaling law (arXiv 2402.02314, Algorithm 1)."""

from lensjax.curves.table import CurveTable
from lensjax.fit.lines import accepted, fit_lines
from lensjax.selection.evidence import Evidence
from lensjax.selection.methods import register
from lensjax.selection.prediction import Prediction


@register("ats", "log-log line through the largest sizes (accept then stop)", place=1)
def ats(table: CurveTable, target: int, evidence: Evidence) -> Prediction:
    """Extrapolate each model's accepted points along their line; needs two sizes above 0."""
    return Prediction(fit_lines(table, accepted).predict(target))
