"""The joint fit stacked with simpler methods, see `lensjax.fit.stacked`."""

import numpy as np

from lensjax.curves.table import CurveTable
from lensjax.fit.calibration import FEWEST
from lensjax.selection.evidence import Evidence
from lensjax.selection.methods import register
from lensjax.selection.methods.joint import ASSUMPTIONS, cautions_of
from lensjax.selection.prediction import Prediction, predict_from

STACKED = (
    "Its medians are averaged with lines through each model's last sizes (AtS and the last three), with a fall that "
    "is the same for all models, and with none (SubTuning). Weights and widths were set on other tasks and are "
    "changed by how well each would have predicted this table's largest sizes from the others."
)


@register("stacked", "the joint fit, lines and the last loss, weighted by how well they back-test", place=7.5)
def stacked(table: CurveTable, target: int, evidence: Evidence) -> Prediction:
    """Fits the models with two sizes above 0."""
    from lensjax.fit.joint.recent import joint_fit  # slow to import
    from lensjax.fit.stacked.weights import stack

    points = table.points()
    if not (points >= FEWEST).any():
        return Prediction(np.full(len(table.models), np.nan))
    fitted = table.select(points >= FEWEST)
    joint = joint_fit(fitted, target)
    said = {"assumptions": (*ASSUMPTIONS, STACKED), "cautions": cautions_of(joint)}
    return predict_from(stack(fitted, joint, target), target, table, **said)
