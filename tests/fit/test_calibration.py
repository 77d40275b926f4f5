import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensjax.curves.table import curve_table
from lensjax.fit.calibration import hold_out, widening, widenings

DOF, SD = 3.0, 0.8


@pytest.mark.parametrize("scale", [2.0, 5.0, 20.0])
def test_the_scale_of_many_errors_is_found(scale):
    errors = scale * np.random.default_rng(0).standard_t(DOF, 4000)
    assert widening(errors, DOF, SD) == pytest.approx(scale, rel=0.05)


def test_errors_as_large_as_foreseen_or_smaller_widen_nothing():
    errors = np.random.default_rng(1).standard_normal(1000)
    assert widening(errors, DOF, SD) == 1.0
    assert widening(0 * errors, DOF, SD) == 1.0


def test_errors_that_may_be_chance_widen_nothing():
    assert widening(np.array([2.4, -1.3, -1.6, -1.0, 0.1]), DOF, SD) == 1.0
    assert widening(np.array([4.6, -3.3, -2.6, -4.7, -3.7]), DOF, SD) > 2.5


def test_one_error_says_little_and_one_of_many_hardly_anything():
    assert 1 < widening(np.array([5.0]), DOF, SD) < 2.5
    calm = np.random.default_rng(2).standard_normal(30)
    assert widening(np.append(calm, 50.0), DOF, SD) == 1.0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=1, max_size=20), st.floats(1, 5))
def test_larger_errors_never_widen_less(errors, times):
    errors = np.array(errors)
    before, after = widening(errors, DOF, SD), widening(times * errors, DOF, SD)
    assert 1 <= before <= after
    assert widening(-errors[::-1], DOF, SD) == pytest.approx(before, rel=0.01)


def test_many_models_have_the_widenings_that_each_has_by_itself():
    errors = 3 * np.random.default_rng(0).standard_t(3, 600)
    errors[::7] = np.nan
    common, own = widenings(errors, DOF, SD)
    known = errors[np.isfinite(errors)]
    assert common == widening(known, DOF, SD)
    np.testing.assert_array_equal(own[::7], common)
    for i in (1, 300, 599):
        assert own[i] == widening(errors[[i]], DOF, SD, common)


def test_the_largest_sizes_of_models_that_can_spare_them_are_held_out():
    nan = np.nan
    loss = np.array([[5.0, 4.0, 3.0, 2.0], [5.0, 4.0, 3.0, nan], [5.0, 4.0, nan, 3.0], [nan, 4.0, 3.5, nan]])
    table = curve_table("abcd", [0, 100, 200, 400], loss)
    seen, last = hold_out(table)
    np.testing.assert_array_equal(seen.loss, [[5, 4, 3, nan], [5, 4, 3, nan], [5, 4, nan, 3], [nan, 4, 3.5, nan]])
    np.testing.assert_array_equal(np.argwhere(last.measured), [[0, 3]])
    deeper, last = hold_out(curve_table("ab", [50, 100, 200, 400], loss[:2]), 2)
    np.testing.assert_array_equal(deeper.loss, [[5, 4, nan, nan], [5, 4, 3, nan]])
    np.testing.assert_array_equal(last.loss, [[nan, nan, nan, 2], [nan] * 4])
