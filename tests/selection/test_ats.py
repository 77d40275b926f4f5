import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensjax.curves.table import curve_table
from lensjax.fit.lines import accepted
from lensjax.selection.methods.ats import ats
from lensjax.selection.methods.last_three import last_three

SIZES = 200 * 2 ** np.arange(8)


@pytest.mark.parametrize("method", [ats, last_three], ids=lambda method: method.name)
def test_a_power_law_is_extrapolated_exactly(method):
    loss = 5 * SIZES**-0.1
    assert np.allclose(method.predict(curve_table(["m"], SIZES, [loss]), 1_638_400).score, 5 * 1_638_400**-0.1)


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_the_smallest_size_is_never_accepted_beyond_three_points(points, seed):
    log_loss = np.random.default_rng(seed).normal(0, 0.01, points) - 0.1 * np.arange(points)
    (count,) = accepted(np.arange(points, dtype=float)[None], log_loss[None])
    assert count == points if points <= 3 else 3 <= count < points


def test_stops_at_the_first_point_off_the_line():
    log_d = np.arange(8.0)
    bent = np.where(log_d < 3, 0.0, -0.1 * (log_d - 3)) + 1e-4 * np.array([0, 0, 0, 1, -1, 1, -1, 1])
    assert accepted(log_d[None], bent[None]).tolist() == [5]


def test_missing_points_and_the_pretrained_loss_are_left_out():
    loss = 5 * SIZES.astype(float) ** -0.1
    with_gaps = np.concatenate([[9.0], loss])
    with_gaps[3] = np.nan
    table = curve_table(["m", "short"], [0, *SIZES], [with_gaps, np.r_[1.0, 2.0, np.full(7, np.nan)]])
    predicted = ats.predict(table, 10**6).score
    assert np.isclose(predicted[0], 5 * 10**-0.6)
    assert np.isnan(predicted[1])


def test_last_three_looks_at_three_points_of_each_model_and_joins_two():
    bent = np.array([9.0, 8, 7, 6, 5, *(5 * SIZES[5:] ** -0.2)])
    two = np.r_[np.nan, 5 * 400**-0.3, np.nan, 5 * 1600**-0.3, np.full(4, np.nan)]
    table = curve_table(["bent", "two", "one"], SIZES, [bent, two, np.r_[1.0, np.full(7, np.nan)]])
    predicted = last_three.predict(table, 10**6).score
    np.testing.assert_allclose(predicted[:2], [5 * 10**-1.2, 5 * 10**-1.8])
    assert np.isnan(predicted[2])
