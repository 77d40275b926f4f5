import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lensjax.curves.table import curve_table
from lensjax.selection.methods.ats import accepted, ats

SIZES = 200 * 2 ** np.arange(8)


def test_a_power_law_is_extrapolated_exactly():
    loss = 5 * SIZES**-0.1
    assert np.allclose(ats.predict(curve_table(["m"], SIZES, [loss]), 1_638_400).score, 5 * 1_638_400**-0.1)


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_the_smallest_size_is_never_accepted_beyond_three_points(points, seed):
    log_loss = np.random.default_rng(seed).normal(0, 0.01, points) - 0.1 * np.arange(points)
    count = accepted(np.arange(points, dtype=float), log_loss)
    assert count == points if points <= 3 else 3 <= count < points


def test_stops_at_the_first_point_off_the_line():
    log_d = np.arange(8.0)
    bent = np.where(log_d < 3, 0.0, -0.1 * (log_d - 3)) + 1e-4 * np.array([0, 0, 0, 1, -1, 1, -1, 1])
    assert accepted(log_d, bent) == 5


def test_missing_points_and_the_pretrained_loss_are_left_out():
    loss = 5 * SIZES.astype(float) ** -0.1
    with_gaps = np.concatenate([[9.0], loss])
    with_gaps[3] = np.nan
    table = curve_table(["m", "short"], [0, *SIZES], [with_gaps, np.r_[1.0, 2.0, np.full(7, np.nan)]])
    predicted = ats.predict(table, 10**6).score
    assert np.isclose(predicted[0], 5 * 10**-0.6)
    assert np.isnan(predicted[1])
