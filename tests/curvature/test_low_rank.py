"""Kernels of low rank, beside the whole kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensjax.core.errors import InputError
from lensjax.core.flops import matmul_flops
from lensjax.curvature.low_rank import lanczos, lanczos_plan, nystrom, nystrom_plan
from lensjax.curvature.ntk import ntk, ntk_flops, ntk_vp, products_plan

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


def test_a_kernel_of_nothing_has_no_error():
    xs = np.ones((5, 3))
    with jax.enable_x64(True):
        for found in (
            nystrom(lambda p, x: 0 * (x @ p), jnp.ones(3), xs, 2),
            lanczos(ntk_vp(lambda p, x: 0 * (x @ p), jnp.ones(3), xs), 2),
        ):
            assert (found.relative_error, found.standard_error) == (0, 0)
            assert not found.values.any()


def test_columns_are_products_where_the_memory_is_small(problem):
    f, params, xs, _ = problem
    with jax.enable_x64(True):
        whole = nystrom(f, params, xs, 2)
        with pytest.raises(InputError, match="these examples need"):
            ntk(f, params, xs, xs[:2], memory_limit=40_000)
        few = nystrom(f, params, xs, 2, memory_limit=40_000)
    assert few.products == whole.products + 2 * OUTPUTS
    np.testing.assert_allclose(few.values, whole.values, rtol=1e-8)


def test_plans_say_how_many_products_there_are(problem):
    f, params, xs, _ = problem
    with jax.enable_x64(True):
        one = products_plan(f, params, xs)
        assert one.batch == N
        assert one.host_bytes == 8 * N * OUTPUTS
        assert one.flops == matmul_flops(ntk_vp(f, params, xs).product, np.zeros((N, OUTPUTS)))
        found, plan = lanczos(ntk_vp(f, params, xs), 6, probes=5), lanczos_plan(f, params, xs, 6, probes=5)
        assert plan.flops == found.products * one.flops
        assert plan.host_bytes == found.vectors.nbytes
        plan = nystrom_plan(f, params, xs, 3)
        assert plan.flops == ntk_flops(f, params, xs, xs[:3], output="full") + 8 * one.flops


def test_bad_input_is_named(problem):
    f, params, xs, _ = problem
    with pytest.raises(InputError, match="41 landmarks are asked for, of 40 examples"):
        nystrom(f, params, xs, 41)
    with pytest.raises(InputError, match="The rank is 81; the kernel has 80 rows"):
        lanczos(ntk_vp(f, params, xs), 81)
    with pytest.raises(InputError, match="from 1 probes; give 2"):
        lanczos(ntk_vp(f, params, xs), 2, probes=1)
