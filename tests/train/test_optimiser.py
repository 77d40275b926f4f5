"""The schedule of learning rates; AdamW itself is held to torch's in test_loop.py."""

import jax.numpy as jnp
import numpy as np
import pytest

from lensjax.train.optimiser import clip, learning_rate, make_optimiser
from lensjax.train.spec import TrainingSpec


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
    ],
)
def test_schedule_rises_over_the_warm_up_and_follows_its_shape(schedule, expected):
    spec = TrainingSpec(schedule=schedule, warmup=0.2)
    rates = [learning_rate(spec, 1.0, step, 10) for step in range(10)]
    np.testing.assert_allclose(rates, expected)


def test_cosine_falls_from_the_peak_to_nothing():
    spec = TrainingSpec(schedule="cosine", warmup=0.0)
    rates = [learning_rate(spec, 2.0, step, 101) for step in range(101)]
    assert rates[0] == 2.0
    assert rates[50] == pytest.approx(2.0 * 0.5 * (1 + np.cos(np.pi * 50 / 101)))
    assert np.all(np.diff(rates) < 0)


def test_biases_and_norms_do_not_decay():
    params = {"up": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "norm": {"scale": jnp.ones(2)}}
    optimiser = make_optimiser(TrainingSpec(weight_decay=0.5))
    gradient = {"up": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}, "norm": {"scale": jnp.zeros(2)}}
    updates, _ = optimiser.update(gradient, optimiser.init(params), params)
    np.testing.assert_array_equal(updates["up"]["kernel"], 0.5)
    np.testing.assert_array_equal(updates["up"]["bias"], 0.0)
    np.testing.assert_array_equal(updates["norm"]["scale"], 0.0)


def test_gradients_are_clipped_by_their_norm_over_all_parameters():
    total = {"a": {"kernel": jnp.full(3, 300.0)}, "b": {"kernel": jnp.full(4, -400.0)}}
    norm = np.sqrt(3 * 30**2 + 4 * 40**2)
    clipped, found = clip(total, jnp.float32(10), 1.0)
    assert float(found) == pytest.approx(norm, rel=1e-6)
    np.testing.assert_allclose(clipped["a"]["kernel"], 30 / norm, rtol=1e-6)
    np.testing.assert_allclose(clipped["b"]["kernel"], -40 / norm, rtol=1e-6)
    whole, _ = clip(total, jnp.float32(10), 1e3)
    np.testing.assert_allclose(whole["a"]["kernel"], 30.0, rtol=1e-6)
    nothing, zero = clip({"a": jnp.zeros(3)}, jnp.float32(10), 1.0)
    assert float(zero) == 0
    np.testing.assert_array_equal(nothing["a"], 0)
