"""Kernels of low rank, beside the whole kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensjax.core.errors import InputError
from lensjax.curvature.low_rank import lanczos, nystrom
from lensjax.curvature.ntk import ntk, ntk_vp

N, OUTPUTS = 40, 2


@pytest.fixture(scope="module")
def problem():
    """A function of few inputs, whose kernel falls off quickly, and the kernel."""
    with jax.enable_x64(True):
        random = np.random.default_rng(0)
        params = {
            "a": jnp.asarray(random.normal(size=(3, 50)) / 2),
            "b": jnp.asarray(random.normal(size=(50, OUTPUTS))),
        }
        xs = random.normal(size=(N, 3)) / 2

        def f(params, x):
            return jnp.tanh(x @ params["a"]) @ params["b"] / np.sqrt(50)

        theta = ntk(f, params, xs, output="full").transpose(0, 2, 1, 3).reshape(N * OUTPUTS, N * OUTPUTS)
        yield f, params, xs, theta


def within(found, theta):
    """The error there is, and whether the estimate is near it."""
    truth = np.linalg.norm(theta - (found.vectors * found.values) @ found.vectors.T) / np.linalg.norm(theta)
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(len(found.values)), atol=1e-8)
    return truth, abs(found.relative_error - truth) <= 4 * found.standard_error


@pytest.mark.parametrize("batch_size", [None, 16])
def test_lanczos_finds_the_largest_eigenvalues(problem, batch_size):
    f, params, xs, theta = problem
    found = lanczos(ntk_vp(f, params, xs, batch_size), 6, probes=50)
    values = np.linalg.eigvalsh(theta)
    np.testing.assert_allclose(found.values, values[::-1][:6], rtol=1e-8)
    best = np.sqrt(np.sum(values[:-6] ** 2)) / np.linalg.norm(theta)
    truth, near = within(found, theta)
    assert truth == pytest.approx(best, rel=1e-6)
    assert near


def test_lanczos_goes_on_where_the_kernel_has_a_lower_rank_than_is_asked_for(problem):
    xs = np.random.default_rng(3).normal(size=(40, 3))
    with jax.enable_x64(True):
        params = jnp.asarray(np.random.default_rng(0).normal(size=3))
        found = lanczos(ntk_vp(lambda p, x: x @ p, params, xs), 10)
    np.testing.assert_allclose(found.values[:3], np.linalg.eigvalsh(xs @ xs.T)[:-4:-1], rtol=1e-10)
    assert np.abs(found.values[3:]).max() < 1e-10
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(10), atol=1e-8)
    assert found.relative_error < 1e-8


def test_nystrom_is_exact_where_all_are_landmarks_and_near_where_many_are(problem):
    f, params, xs, theta = problem
    whole = nystrom(f, params, xs, N)
    assert whole.relative_error < 1e-4
    few, more = (nystrom(f, params, xs, landmarks, probes=100) for landmarks in (4, 16))
    errors = [within(found, theta) for found in (few, more)]
    assert errors[1][0] < 0.5 * errors[0][0]
    assert errors[0][1]
    assert errors[1][1]


def test_bad_input_is_named(problem):
    f, params, xs, _ = problem
    with pytest.raises(InputError, match="41 landmarks are asked for, of 40 examples"):
        nystrom(f, params, xs, 41)
    with pytest.raises(InputError, match="The rank is 81; the kernel has 80 rows"):
        lanczos(ntk_vp(f, params, xs), 81)
    with pytest.raises(InputError, match="from 1 probes; give 2"):
        lanczos(ntk_vp(f, params, xs), 2, probes=1)
