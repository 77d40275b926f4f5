"""How far the intervals of a fit can be trusted: the fit without the largest sizes predicts them."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from lensjax.curves.table import CurveTable

FEWEST = 2  # sizes that a fit needs of every model
WIDENINGS = np.geomspace(1, 100, 1000)
CLEARLY = 1.0  # nats by which the errors must be more probable for intervals to be widened


def hold_out(table: CurveTable, steps: int = 1) -> tuple[CurveTable, CurveTable]:
    """Split off the largest sizes of each model. A model with too few points keeps them all.

    Args:
      table: measured curves of M models.
      steps: number of sizes D > 0 that each model loses; at least two are left.

    Returns:
      The table without those sizes, and a table of the largest size of each model that lost some.
    """
    curve = table.measured & (table.sizes > 0)
    after = curve[:, ::-1].cumsum(axis=1)[:, ::-1]  # sizes from each on
    long = (table.points() >= FEWEST + steps)[:, None]
    seen = np.where(long & (after <= steps), np.nan, table.loss)
    last = np.where(long & curve & (after == 1), table.loss, np.nan)
    return replace(table, loss=seen), replace(table, loss=last)


def widening(errors: Float[np.ndarray, " M"], dof: float, sd: float, usual: float = 1.0) -> float:
    """The factor, at least `usual`, by which intervals ought to be wider than predicted.

    Args:
      errors: of losses that a fit did not see, in its standard deviations.
      dof: degrees of freedom of the errors' Student's t, so that one outlier does not widen the intervals of all.
      sd: prior standard deviation of the log of the factor, which keeps it near `usual` where errors are few.
      usual: the factor where nothing clearly speaks against it.

    Returns:
      The most probable scale of the errors, or `usual` where that is not clearly more probable.
    """
    from scipy.stats import t as student  # which is slow to import

    factors = usual * WIDENINGS
    log_density = student.logpdf(errors / factors[:, None], dof).sum(axis=1) - len(errors) * np.log(factors)
    log_density -= 0.5 * (np.log(WIDENINGS) / sd) ** 2
    best = int(np.argmax(log_density))
    return float(factors[best]) if log_density[best] > log_density[0] + CLEARLY else usual


def widenings(errors: Float[np.ndarray, " M"], dof: float, sd: float) -> tuple[float, Float[np.ndarray, " M"]]:
    """`widening` of all models together, and of each, which starts from it.

    Args:
      errors: as for `widening`, one of each model; NaN for models without.
      dof, sd: as for `widening`.
    """
    known = np.isfinite(errors)
    common = widening(errors[known], dof, sd)
    own = [widening(errors[[i]], dof, sd, common) if known[i] else common for i in range(len(errors))]
    return common, np.array(own)
