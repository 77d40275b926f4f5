"""Where the power phase of a ladder's test losses begins, as accept then stop sees it."""

import numpy as np
from jaxtyping import Float

from lensjax.core.errors import InputError
from lensjax.curvature.phases import check_rungs
from lensjax.fit.lines import FIRST, accepted


def residual_transition(n: Float[np.ndarray, " rungs"], test_loss: Float[np.ndarray, " rungs"]) -> int | None:
    """The smallest n on the line of log L against log n by accept then stop (AtS, arXiv 2402.02314).

    Args:
      n: Training examples of each rung.
      test_loss: In any unit.

    Returns:
      Training examples; None where AtS sees one phase only: it accepts all sizes but the smallest, which it never does.

    Raises:
      InputError: there are fewer than three rungs of different sizes, or a number is not finite or not above 0.
    """
    sizes, losses = check_rungs(n, test_loss)
    if losses.min() <= 0:
        raise InputError(f"A test loss is {losses.min():g}, which has no logarithm; give losses above 0.")
    order = np.argsort(sizes)
    count = int(accepted(np.log(sizes[order])[None], np.log(losses[order])[None])[0])
    return None if count >= max(len(sizes) - 1, FIRST) else int(sizes[order][-count])
