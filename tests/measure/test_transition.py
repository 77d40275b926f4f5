"""Where the power phase begins, on losses that are known."""

import numpy as np
import pytest

from lensjax.core.errors import InputError
from lensjax.measure.transition import residual_transition

LADDER = np.array([200, 400, 800, 1600, 3200, 6400, 12800])


def test_transition_of_ats():
    bent = np.where(LADDER < 1600, 2.0, 2.0 * (LADDER / 1600.0) ** -0.3) * (1 + 1e-4 * (-1) ** np.arange(7))
    assert residual_transition(LADDER, bent) == 1600
    assert residual_transition(LADDER[::-1], bent[::-1]) == 1600
    assert residual_transition(LADDER, (1 + 1e-4 * (-1) ** np.arange(7)) * LADDER**-0.3) is None
    assert residual_transition(LADDER[:3], np.array([3.0, 1.0, 2.0])) is None
    with pytest.raises(InputError, match="has no logarithm"):
        residual_transition(LADDER, LADDER * 0.0)
