"""What a kernel says of training, against solving it step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from lensjax.core.errors import InputError
from lensjax.curvature.dynamics import alignment, effective_rank, kernel_drift, kernel_growth, residual_loss, spectrum


@pytest.fixture
def problem():
    with jax.enable_x64(True):
        random = np.random.default_rng(0)
        jacobian = random.normal(size=(6, 20))
        yield jacobian @ jacobian.T, random.normal(size=6), random.normal(size=6)


def test_residuals_are_those_of_the_matrix_exponential(problem):
    theta, f0, y = problem
    times = np.array([0.0, 0.3, 2.0, 50.0])
    expected = [np.sum((expm(-0.1 * theta * t / 6) @ (f0 - y)) ** 2) / 6 for t in times]
    np.testing.assert_allclose(residual_loss(theta, f0, y, times, 0.1), expected, rtol=1e-10)
    assert float(residual_loss(theta, f0, y, 0.3, 0.1)) == pytest.approx(expected[1])


def test_residuals_are_those_of_gradient_descent_on_a_linear_model(problem):
    theta, f0, y = problem
    jacobian, eta = np.linalg.cholesky(theta), 1e-3
    w = np.zeros(6)
    for _ in range(500):
        w -= eta * jacobian.T @ (f0 + jacobian @ w - y) / 6
    left = np.mean((f0 + jacobian @ w - y) ** 2)
    assert float(residual_loss(theta, f0, y, 500.0, eta)) == pytest.approx(left, rel=1e-2)


def test_residuals_are_differentiable_in_time_and_rate(problem):
    theta, f0, y = problem
    in_time = jax.grad(lambda t: residual_loss(theta, f0, y, t, 0.1))(1.0)
    in_rate = jax.grad(lambda eta: residual_loss(theta, f0, y, 1.0, eta))(0.1)
    step = 1e-6
    ends = residual_loss(theta, f0, y, jnp.array([1 - step, 1 + step]), 0.1)
    assert float(in_time) == pytest.approx(float(ends[1] - ends[0]) / (2 * step), rel=1e-6)
    assert float(in_rate) == pytest.approx(float(in_time) * 10, rel=1e-9)  # only their product matters


def test_rank_alignment_and_drift(problem):
    theta, f0, _ = problem
    np.testing.assert_allclose(spectrum(theta), np.linalg.eigvalsh(theta)[::-1] / 6, rtol=1e-10)
    assert effective_rank(np.eye(5)) == pytest.approx(5)
    assert effective_rank(np.outer(f0, f0)) == pytest.approx(1)
    assert alignment(np.outer(f0, f0), f0) == pytest.approx(1)
    assert alignment(np.outer(f0, f0), np.roll(f0, 1) - f0 * (np.roll(f0, 1) @ f0) / (f0 @ f0)) == pytest.approx(0)
    assert kernel_drift(theta, 3 * theta) == pytest.approx(0, abs=1e-12)
    assert kernel_growth(theta, 3 * theta) == pytest.approx(3)
    assert kernel_drift(np.diag([1.0, 0.0]), np.diag([0.0, 1.0])) == pytest.approx(1)


def test_what_is_no_kernel_is_refused(problem):
    theta, f0, y = problem
    with pytest.raises(InputError, match=r"shapes \(6, 6\), \(6,\) and \(5,\)"):
        residual_loss(theta, f0, y[:5], 1.0)
    with pytest.raises(InputError, match="not finite"):
        residual_loss(theta * np.nan, f0, y, 1.0)
    with pytest.raises(InputError, match="not symmetric"):
        residual_loss(np.triu(theta), f0, y, 1.0)
    with pytest.raises(InputError, match=r"shapes \(6, 6\) and \(5, 5\)"):
        kernel_drift(theta, theta[:5, :5])
