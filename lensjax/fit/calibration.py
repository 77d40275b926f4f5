"""How far the intervals of a fit can be trusted, by the largest sizes that were measured."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float
from scipy.stats import t as student

from lensjax.curves.table import CurveTable

FEWEST = 2  # sizes that a fit needs of every model
WIDENINGS = np.geomspace(1, 100, 1000)
CLEARLY = 1.0  # nats by which the errors must be more probable for intervals to be widened


def hold_out(table: CurveTable, steps: int = 1) -> tuple[CurveTable, CurveTable]:
    """The table without some of the largest sizes of each model, and with the largest of those alone.

    A model that two sizes D > 0 would not be left of keeps all of its own.
    """
    curve = table.measured & (table.sizes > 0)
    after = curve[:, ::-1].cumsum(axis=1)[:, ::-1]  # sizes from each on
    long = (table.points() >= FEWEST + steps)[:, None]
    seen = np.where(long & (after <= steps), np.nan, table.loss)
    last = np.where(long & curve & (after == 1), table.loss, np.nan)
    return replace(table, loss=seen), replace(table, loss=last)


def widening(errors: Float[np.ndarray, " M"], dof: float, sd: float) -> float:
    """How many times wider than predicted intervals ought to be, at least 1.

    Args:
      errors: of losses that a fit did not see, in its standard deviations.
      dof: errors are Student-t, so that one that is far off does not widen the intervals of all.
      sd: prior standard deviation of the log of what is sought, which keeps it near 1 where errors are few.

    Returns:
      The most probable scale of the errors, where it is above 1 and they are clearly more probable by it, or 1.
    """
    log_density = student.logpdf(errors / WIDENINGS[:, None], dof).sum(axis=1) - len(errors) * np.log(WIDENINGS)
    log_density -= 0.5 * (np.log(WIDENINGS) / sd) ** 2
    best = int(np.argmax(log_density))
    return float(WIDENINGS[best]) if log_density[best] > log_density[0] + CLEARLY else 1.0
