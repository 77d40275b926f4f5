"""The straight line in log-log through each model's last three points."""

from lensjax.curves.table import CurveTable
from lensjax.fit import lines
from lensjax.selection.evidence import Evidence
from lensjax.selection.methods import register
from lensjax.selection.prediction import Prediction


@register("last_three", "log-log line through the last three sizes", place=1.5)
def last_three(table: CurveTable, target: int, evidence: Evidence) -> Prediction:
    """Least squares through the three largest sizes D > 0 of each model; two points are joined."""
    return Prediction(lines.fit_lines(table, lines.last_three).predict(target))
