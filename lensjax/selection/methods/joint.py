"""The joint fit: all curves of a task at once, see `lensjax.fit.joint.fitting`."""

import numpy as np

from lensjax.curves.table import CurveTable
from lensjax.fit.calibration import FEWEST
from lensjax.fit.joint.recent import joint_fit
from lensjax.selection.evidence import Evidence
from lensjax.selection.methods import register
from lensjax.selection.prediction import Prediction, predict_from

ASSUMPTIONS = (
    "All models were fitted at once. Their local slopes, -d log L / d log D, share a population, their family's, and "
    "effects of log size and of the loss level; how much of each was learned.",
    "Four priors that extrapolate differently are averaged with equal weight: the rectified law "
    "L = B / (D_l + D^β) + E, and slopes that drift about a constant in three ways.",
    "Noise and jumps of the level are Student-t with 3 degrees of freedom; intervals include those of a run that has "
    "not happened yet. The pretrained loss (D = 0) is not on the curve and is not used.",
    "All intervals are widened where those of the same fit without the largest sizes were too narrow for them.",
)
UNCHECKED = "No model was measured at three sizes, so that nothing shows whether intervals are wide enough."


@register("joint", "all curves at once: law and local-slope priors averaged", place=7)
def joint(table: CurveTable, target: int, evidence: Evidence) -> Prediction:
    """Fits the models with two sizes above 0."""
    points = table.points()
    if not (points >= FEWEST).any():
        return Prediction(np.full(len(table.models), np.nan))
    posterior = joint_fit(table.select(points >= FEWEST), target)
    cautions = (UNCHECKED,) if points.max() <= FEWEST else ()
    return predict_from(posterior, target, table, assumptions=ASSUMPTIONS, cautions=cautions)
