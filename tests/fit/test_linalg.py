from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from lensjax.fit.linalg import cholesky, float64_on_cpu, inverse_and_log_det

EPS = np.finfo(np.float64).eps
BATCHES = [(), (1,), (7,), (2, 3), (2, 1, 3), (0,), (2, 0)]
each_batch = pytest.mark.parametrize("batch", BATCHES, ids=str)
each_n = pytest.mark.parametrize("n", [1, 2, 3, 8, 17, 60])
# Compiled once per shape; without jit every call would compile its loop anew.
invert, factorise = jax.jit(inverse_and_log_det), jax.jit(cholesky)


@pytest.fixture(autouse=True)
def double_precision():
    with float64_on_cpu():
        yield


def positive_definite(n, batch=(), seed=0):
    a = np.random.default_rng(seed).standard_normal((*batch, n, n))
    return a @ a.swapaxes(-1, -2) / n + 0.1 * np.eye(n)


def with_condition(n, condition, seed=0):
    """A random matrix of known inverse and determinant, whose eigenvalues fall from 1 to 1 / condition."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.standard_normal((n, n)))
    values = np.geomspace(1, 1 / condition, n)
    return (turn * values) @ turn.T, (turn / values) @ turn.T, np.log(values).sum()


def norm(a):
    """Largest entry of each matrix."""
    return np.abs(a).max(axis=(-2, -1))


def symmetric(a):
    return (a + a.mT) / 2


def inverse_of_symmetric(a):
    return inverse_and_log_det(symmetric(a))


def cholesky_of_symmetric(a):
    return cholesky(symmetric(a))


def lapack_inverse_of_symmetric(a):
    return jnp.linalg.inv(symmetric(a)), jnp.linalg.slogdet(symmetric(a))[1]


def lapack_cholesky_of_symmetric(a):
    return jnp.linalg.cholesky(symmetric(a))


@cache
def compiled(function):
    """The function, its pushforward (a, tangent) and its pullback (a, cotangent), compiled once per shape."""
    return (
        jax.jit(function),
        jax.jit(lambda a, tangent: jax.jvp(function, (a,), (tangent,))[1]),
        jax.jit(lambda a, cotangent: jax.vjp(function, a)[1](cotangent)[0]),
    )


def like(tree, rng):
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), tree)


def dot(a, b):
    return sum(np.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# Precision ----------------------------------------------------------------------------------------------------


def test_float64_on_cpu_holds_only_inside():
    outside = jnp.result_type(float)
    with float64_on_cpu(), float64_on_cpu():
        inside = jnp.ones(2)
        assert inside.dtype == jnp.float64
        assert {device.platform for device in inside.devices()} == {"cpu"}
    assert jnp.result_type(float) == outside
    with pytest.raises(ZeroDivisionError), float64_on_cpu():
        raise ZeroDivisionError
    assert jnp.result_type(float) == outside


def test_float64_on_cpu_leaves_single_precision_outside():
    with jax.enable_x64(False):
        with float64_on_cpu():
            assert jnp.ones(2).dtype == jnp.float64
        assert jnp.ones(2).dtype == jnp.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_precision_of_the_argument_is_kept(dtype):
    a = positive_definite(6, (2,)).astype(dtype)
    inverse, log_det = invert(jnp.asarray(a))
    assert (inverse.dtype, log_det.dtype, factorise(jnp.asarray(a)).dtype) == (dtype, dtype, dtype)
    tolerance = 100 * np.finfo(dtype).eps
    np.testing.assert_allclose(inverse @ a, np.broadcast_to(np.eye(6), a.shape), atol=10 * tolerance)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(a)[1], atol=tolerance)


# Inverse and log determinant ----------------------------------------------------------------------------------


@each_n
def test_inverse_and_log_det_of_every_size(n):
    a = positive_definite(n, (3,), seed=n)
    inverse, log_det = invert(a)
    np.testing.assert_allclose(inverse, np.linalg.inv(a), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(a)[1], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(inverse, inverse.mT, rtol=1e-11, atol=1e-12)


@each_batch
def test_inverse_and_log_det_of_every_batch_shape(batch):
    a = positive_definite(4, batch)
    inverse, log_det = invert(a)
    assert (inverse.shape, log_det.shape) == (a.shape, batch)
    np.testing.assert_allclose(inverse, np.linalg.inv(a), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(a)[1], rtol=1e-12, atol=1e-13)


def test_inverse_of_a_diagonal_matrix():
    inverse, log_det = invert(jnp.diag(jnp.array([1e-12, 1.0, 4e9])))
    np.testing.assert_allclose(inverse, np.diag([1e12, 1.0, 2.5e-10]), rtol=1e-15)
    np.testing.assert_allclose(log_det, np.log(4e-3), rtol=1e-14)


@pytest.mark.parametrize("n", [5, 37])
def test_inverse_is_as_accurate_as_the_condition_allows(n):
    for condition in (1e4, 1e8, 1e12):
        cases = [with_condition(n, condition, seed) for seed in range(5)]
        a, true, log_det_true = (np.stack(part) for part in zip(*cases, strict=True))
        inverse, log_det = invert(a)
        allowed = 5 * n * EPS * condition
        assert np.all(norm(inverse - true) < allowed * norm(true))
        np.testing.assert_allclose(log_det, log_det_true, rtol=0, atol=allowed)


@pytest.mark.parametrize("n", [3, 6, 8])
def test_inverse_of_hilbert_matrices(n):
    a, true = scipy.linalg.hilbert(n), scipy.linalg.invhilbert(n)
    inverse, log_det = invert(a)
    allowed = 5 * EPS * np.linalg.cond(a)
    assert norm(inverse - true) < allowed * norm(true)
    np.testing.assert_allclose(log_det, -np.linalg.slogdet(true)[1], rtol=0, atol=allowed)


def test_a_large_shared_level_over_tiny_noise():
    # What the fitter meets: a variance of 4 shared by all points, noise of variance 1e-8 (Sherman–Morrison).
    n, noise = 16, 1e-8
    inverse, log_det = invert(4 + noise * jnp.eye(n))
    true = np.eye(n) / noise - 4 / noise**2 / (1 + 4 * n / noise)
    assert norm(inverse - true) / norm(true) < 1e-7
    np.testing.assert_allclose(log_det, n * np.log(noise) + np.log1p(4 * n / noise), rtol=1e-8)


def test_accuracy_does_not_depend_on_units():
    a = positive_definite(12, (3,))
    units = np.geomspace(1e-9, 1e9, 12)
    inverse, log_det = invert(a * units[:, None] * units)
    np.testing.assert_allclose(inverse * units[:, None] * units, np.linalg.inv(a), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(a)[1] + 2 * np.log(units).sum(), atol=1e-10)


def test_a_bad_matrix_does_not_spoil_its_neighbours():
    a = positive_definite(5, (3,))
    alone, _ = invert(a)
    a[1] = np.nan
    inverse, log_det = invert(a)
    np.testing.assert_array_equal(inverse[jnp.array([0, 2])], alone[jnp.array([0, 2])])
    assert np.isnan(inverse[1]).all()
    np.testing.assert_array_equal(np.isfinite(log_det), [True, False, True])


# Cholesky -----------------------------------------------------------------------------------------------------


@each_n
def test_cholesky_of_every_size(n):
    a = positive_definite(n, (3,), seed=n)
    np.testing.assert_allclose(factorise(a), np.linalg.cholesky(a), rtol=1e-10, atol=1e-13)


@each_batch
def test_cholesky_of_every_batch_shape(batch):
    a = positive_definite(4, batch)
    root = factorise(a)
    assert root.shape == a.shape
    np.testing.assert_allclose(root, np.linalg.cholesky(a), rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(root, np.tril(root))


@pytest.mark.parametrize("zero", [[0], [4], [1, 3], [0, 1, 2, 3, 4]], ids=str)
def test_cholesky_of_zero_diagonals(zero):
    a = positive_definite(5, (2,))
    a[:, zero], a[:, :, zero] = 0, 0
    rest = np.setdiff1d(np.arange(5), zero)
    root = np.asarray(factorise(a))
    np.testing.assert_array_equal(root[:, zero], 0)
    np.testing.assert_array_equal(root[:, :, zero], 0)
    kept = np.ix_([0, 1], rest, rest)
    np.testing.assert_allclose(root[kept], np.linalg.cholesky(a[kept]), rtol=1e-12, atol=1e-14)


def test_cholesky_of_ill_conditioned_matrices_is_backward_stable():
    a = np.stack([with_condition(20, condition, seed)[0] for seed in range(5) for condition in (1e4, 1e8, 1e12)])
    root = factorise(a)
    assert np.all(norm(root @ root.mT - a) < 20 * EPS * norm(a))


def test_cholesky_of_a_rank_one_matrix():
    u = np.array([2.0, -1.0, 4.0, 0.5])
    root = factorise(np.outer(u, u))
    np.testing.assert_array_equal(root @ root.T, np.outer(u, u))


# Derivatives --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [inverse_of_symmetric, cholesky_of_symmetric])
def test_derivatives_are_those_of_finite_differences(function):
    value, push, pull = compiled(function)
    rng = np.random.default_rng(0)
    a, tangent = positive_definite(6, (2, 3)), rng.standard_normal((2, 3, 6, 6))
    step = 1e-5
    difference = jax.tree.map(
        lambda up, down: (up - down) / (2 * step), value(a + step * tangent), value(a - step * tangent)
    )
    forward = push(a, tangent)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), forward, difference)
    cotangent = like(forward, rng)
    np.testing.assert_allclose(dot(pull(a, cotangent), tangent), dot(cotangent, forward), rtol=1e-11)


@pytest.mark.parametrize("condition", [1e1, 1e6])
@pytest.mark.parametrize(
    ("function", "reference"),
    [
        (inverse_of_symmetric, lapack_inverse_of_symmetric),
        (cholesky_of_symmetric, lapack_cholesky_of_symmetric),
    ],
)
def test_derivatives_are_those_of_lapack(function, reference, condition):
    # One matrix at a time: batches of LAPACK calls are what `lensjax.fit.linalg` avoids.
    rng = np.random.default_rng(1)
    a, *_ = with_condition(6, condition)
    tangent, cotangent = rng.standard_normal((6, 6)), like(compiled(function)[0](a), rng)
    for mine, lapack, at in zip(compiled(function), compiled(reference), (None, tangent, cotangent), strict=True):
        arguments = (a,) if at is None else (a, at)
        for one, other in zip(jax.tree.leaves(mine(*arguments)), jax.tree.leaves(lapack(*arguments)), strict=True):
            assert np.abs(one - other).max() <= 100 * EPS * condition * np.abs(other).max()


@pytest.mark.parametrize("function", [inverse_and_log_det, cholesky])
def test_jit_and_vmap_change_nothing(function):
    a = positive_definite(4, (2, 3))
    plain = function(a)
    twice = jax.jit(jax.vmap(jax.vmap(function)))(a)
    across = jax.jit(jax.vmap(function, in_axes=1, out_axes=1))(a)
    single = jax.jit(function)
    alone = jax.tree.map(
        lambda *leaves: jnp.stack(leaves).reshape(2, 3, *leaves[0].shape),
        *(single(matrix) for matrix in a.reshape(6, 4, 4)),
    )
    for other in (single(a), twice, across, alone):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-13), plain, other)


def waves(function):
    """A scalar that depends on every entry of what the function returns."""
    return lambda a: sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(function(a)))


@pytest.mark.parametrize("function", [inverse_of_symmetric, cholesky_of_symmetric])
def test_gradients_under_jit_and_vmap(function):
    a = positive_definite(5, (4,))
    gradient = jax.jit(jax.grad(waves(function)))(a)
    mapped = jax.jit(jax.vmap(jax.grad(waves(function))))(a)
    forward = jax.jit(jax.vmap(jax.jacfwd(waves(function))))(a)
    np.testing.assert_allclose(mapped, gradient, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(forward, gradient, rtol=1e-10, atol=1e-11)


def test_gradient_of_the_cholesky_factor_with_zero_diagonals_is_that_of_the_rest():
    rest = np.ix_([0, 1, 3, 4], [0, 1, 3, 4])
    a = positive_definite(5)
    zeros = np.zeros((5, 5))
    zeros[rest] = a[rest]
    gradient = jax.jit(jax.grad(waves(cholesky)))
    found = np.asarray(gradient(zeros))
    np.testing.assert_allclose(found[rest], gradient(a[rest]), rtol=1e-12)
    assert np.isfinite(found).all()
