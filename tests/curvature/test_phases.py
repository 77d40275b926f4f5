"""Fits of the bound's terms, on terms that are known."""

import numpy as np
import pytest
from scipy import stats

from lensjax.core.errors import InputError
from lensjax.curvature.phases import Decay, find_phases, fit_decay

LADDER = np.array([200, 400, 800, 1600, 3200, 6400, 12800])


def test_a_decay_that_is_known_is_recovered():
    exact = fit_decay(LADDER, 30 * LADDER**-0.3)
    assert exact.beta2 == pytest.approx(0.3)
    assert exact.c2 == pytest.approx(30)
    assert exact.beta3 == pytest.approx(0.65)
    assert exact.c3(2.0, 10) == pytest.approx(np.sqrt(2 * 10 * 30))
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        found = fit_decay(LADDER, 30 * LADDER**-0.3 * np.exp(random.normal(scale=0.2, size=len(LADDER))))
        covered += found.beta2_interval[0] <= 0.3 <= found.beta2_interval[1]
    assert 0.86 <= covered / 400 <= 0.94
    line = stats.linregress(np.log(LADDER), np.log(totals := LADDER ** random.normal(size=7)))
    found = fit_decay(LADDER, totals, level=0.99)
    reach = stats.t.ppf(0.995, 5)
    assert found.beta2 == pytest.approx(-line.slope)
    assert found.beta2_interval == pytest.approx((-line.slope - reach * line.stderr, -line.slope + reach * line.stderr))
    ends = np.exp([line.intercept - reach * line.intercept_stderr, line.intercept + reach * line.intercept_stderr])
    assert found.c2_interval == pytest.approx(ends)
    assert found.beta3_interval == pytest.approx(tuple((np.array(found.beta2_interval) + 1) / 2))


def decay(beta2):
    return Decay(beta2, (beta2, beta2), 1.0, (1.0, 1.0), 0.9, 0.0)


def test_phases_of_terms_that_are_known():
    c3, constant = 0.5, 4.0  # equal at n = 8 ** (1 / 0.35) = 380
    gap = c3 * LADDER**-0.4 + constant * LADDER**-0.75
    given = find_phases(LADDER, gap, decay(-0.2), c3)
    assert given.constant == pytest.approx(constant)
    assert given.names == ("pre-power", *["power"] * 6)
    assert given.transition == pytest.approx((constant / c3) ** (1 / 0.35))
    fitted = find_phases(LADDER, gap, decay(-0.2), 50 * c3, scale=None)
    assert (fitted.scale, fitted.constant) == pytest.approx((1 / 50, constant))
    assert fitted.transition == pytest.approx(given.transition)
    np.testing.assert_allclose(fitted.hessian + fitted.remainder, gap)


def test_where_there_is_no_transition_it_is_said_why():
    enough = find_phases(LADDER, 0.1 * LADDER**-0.4, decay(-0.2), 1.0)
    assert (enough.constant, enough.transition, set(enough.names)) == (0, None, {"power"})
    assert "leaves nothing of the gap" in enough.reason
    none = find_phases(LADDER, LADDER**-0.75 - 1e-4 * LADDER**-0.4, decay(-0.2), 1.0, scale=None)
    assert (none.scale, none.transition, set(none.names)) == (0, None, {"pre-power"})
    assert "the whole gap to the remainder" in none.reason
    negative = find_phases(LADDER, -1.0 / LADDER, decay(-0.2), 1.0, scale=None)
    assert (negative.scale, negative.constant, negative.transition) == (0, 0, None)
    assert "nothing to share out" in negative.reason
    fast = find_phases(LADDER, LADDER**-0.75 + LADDER**-0.9, decay(0.8), 1.0)
    assert fast.transition is None
    assert "β₂ is 1/2 or more" in fast.reason


def test_ladders_that_cannot_be_fitted_are_refused():
    with pytest.raises(InputError, match="Sizes above 0: 2; fine-tune on 3 or more"):
        fit_decay([200, 400, 400], [1, 2, 3])
    with pytest.raises(InputError, match="not finite"):
        fit_decay(LADDER[:3], [1, np.nan, 3])
    with pytest.raises(InputError, match="size not above 0"):
        fit_decay([0, 200, 400], [1, 2, 3])
    with pytest.raises(InputError, match="one value a rung"):
        fit_decay(LADDER, [1, 2, 3])
    with pytest.raises(InputError, match="at n = 400 is 0 and has no logarithm"):
        fit_decay(LADDER[:3], [1, 0, 3])
    with pytest.raises(InputError, match="level is 1"):
        fit_decay(LADDER[:3], [1, 2, 3], level=1)
    with pytest.raises(InputError, match="C₃ is nan"):
        find_phases(LADDER, LADDER * 0.0, decay(0.1), np.nan)
    with pytest.raises(InputError, match="not finite"):
        find_phases(LADDER, LADDER * np.inf, decay(0.1), 1.0)
