import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lensjax.fit.posterior import expected_regret, probability_best

LOSSES = st.tuples(st.integers(1, 20), st.integers(1, 6)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(1, 9).map(float))
)


def test_two_draws_of_three_models():
    losses = np.array([[1.0, 2.0, 4.0], [3.0, 2.5, 2.0]])
    np.testing.assert_array_equal(probability_best(losses), [0.5, 0, 0.5])
    np.testing.assert_array_equal(expected_regret(losses), [0.5, 0.75, 1.5])


@settings(max_examples=50, deadline=None)
@given(LOSSES)
def test_choices_of_any_draws(losses):
    probability, regret = probability_best(losses), expected_regret(losses)
    assert probability.shape == regret.shape == (losses.shape[1],)
    assert probability.sum() == pytest.approx(1)
    assert np.all(probability >= 0)
    assert np.all(regret >= 0)
    assert np.all(regret[probability == 1] == 0)  # who is always best is never regretted
    np.testing.assert_allclose(regret - regret[0], losses.mean(axis=0) - losses[:, 0].mean(), atol=1e-12)
