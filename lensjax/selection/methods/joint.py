"""The joint fit: all curves of a task at once, see `lensjax.fit.joint.fitting`."""

from typing import TYPE_CHECKING

import numpy as np

from lensjax.core.errors import listing
from lensjax.curves.table import CurveTable
from lensjax.fit.calibration import FEWEST
from lensjax.selection.evidence import Evidence
from lensjax.selection.methods import register
from lensjax.selection.prediction import Prediction, predict_from

if TYPE_CHECKING:
    from lensjax.fit.joint.posterior import JointPosterior

ASSUMPTIONS = (
    "All models were fitted at once. Their local slopes, -d log L / d log D, share a population, their family's, and "
    "effects of log size and of the loss level; how much of each was learned.",
    "Slopes are positive: more data does not raise the expected loss. Four priors that extrapolate differently are "
    "averaged, weighted by the evidence of two curves: slopes that last, that follow a damped trend, that level off, "
    "and those of a power law with a floor, L = A D^-β + E.",
    "Noise and jumps of the level are Student-t with 3 degrees of freedom; intervals include those of a run that has "
    "not happened yet. The pretrained loss (D = 0) is not on the curve and is not used.",
    "Intervals are widened where those of the same fit without the largest sizes were too narrow for them: of all "
    "models if most were, else of single ones.",
)
UNCHECKED = "No model was measured at three sizes, so that nothing shows whether intervals are wide enough."
NAMED = 3  # points far from the rest, in one caution


@register("joint", "all curves at once: four priors of local slopes averaged", place=7)
def joint(table: CurveTable, target: int, evidence: Evidence) -> Prediction:
    """Fits the models with two sizes above 0."""
    from lensjax.fit.joint.recent import joint_fit  # slow to import

    points = table.points()
    if not (points >= FEWEST).any():
        return Prediction(np.full(len(table.models), np.nan))
    posterior = joint_fit(table.select(points >= FEWEST), target)
    return predict_from(posterior, target, table, assumptions=ASSUMPTIONS, cautions=cautions_of(posterior))


def cautions_of(posterior: "JointPosterior") -> tuple[str, ...]:
    """Reasons to trust a joint fit less: nothing checks its intervals, or points lie far from their curves."""
    unchecked = (UNCHECKED,) if int(posterior.observations.present.sum(axis=1).max()) <= FEWEST else ()
    named = [f"{one.model} at {one.examples:,} examples" for one in posterior.outliers()]
    if not named:
        return unchecked
    return (
        *unchecked,
        f"Far from the rest of their curves are {listing(named, NAMED)}: a run that went wrong, or a sudden fall or "
        "rise. They count for little in the fit; measure them again with another seed.",
    )
