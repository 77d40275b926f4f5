"""How far the intervals of a fit can be trusted: the fit without the largest sizes predicts them."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from lensjax.curves.table import CurveTable

FEWEST = 2  # sizes that a fit needs of every model
WIDENINGS = np.geomspace(1, 100, 1000)
AT_ONCE = 256  # errors, of which densities under all widenings are held
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
    return float(_widenings(errors[None], dof, sd, usual)[0])


def _widenings(errors: Float[np.ndarray, "G M"], dof: float, sd: float, usual: float) -> Float[np.ndarray, " G"]:
    """`widening` of G groups of errors, each by itself."""
    from scipy.stats import t as student  # which is slow to import

    factors = usual * WIDENINGS
    log_density = np.concatenate(
        [
            student.logpdf(errors[:, None, :] / some[:, None], dof).sum(axis=-1) - errors.shape[1] * np.log(some)
            for some in np.array_split(factors, 1 + errors.size // AT_ONCE)
        ],
        axis=1,
    )
    log_density -= 0.5 * (np.log(WIDENINGS) / sd) ** 2
    best = np.argmax(log_density, axis=1)
    clear = log_density[np.arange(len(best)), best] > log_density[:, 0] + CLEARLY
    return np.where(clear, factors[best], usual)


def widenings(errors: Float[np.ndarray, " M"], dof: float, sd: float) -> tuple[float, Float[np.ndarray, " M"]]:
    """`widening` of all models together, and of each, which starts from it.

    Args:
      errors: as for `widening`, one of each model; NaN for models without.
      dof, sd: as for `widening`.
    """
    known = np.isfinite(errors)
    common = widening(errors[known], dof, sd)
    own, places = np.full(len(errors), common), np.flatnonzero(known)
    for some in np.array_split(places, 1 + len(places) // AT_ONCE):
        own[some] = _widenings(errors[some, None], dof, sd, common)
    return common, own
