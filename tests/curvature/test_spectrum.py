"""Spectra and traces, of matrices whose eigenvalues are known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec
from matfree import decomp, stochtrace

import lensjax.models
from lensjax.core.errors import InputError
from lensjax.curvature.hvp import hvp_fn
from lensjax.curvature.lanczos import Lanczos, draw
from lensjax.curvature.operator import LinearOperator
from lensjax.curvature.spectrum import layer_traces, spectral_density, top_eigenpairs, trace

SIZE = 60


@pytest.fixture(scope="module", autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def make_matrix(eigenvalues, seed=0):
    turned, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues), len(eigenvalues))))
    return turned * eigenvalues @ turned.T


@pytest.fixture(scope="module")
def like(wide):
    return {"a": jnp.zeros((4, 5)), "b": [jnp.zeros((2, 20))]}


@pytest.fixture(scope="module")
def product_of(like):
    """The product with a matrix, compiled once for all."""
    unravel = ravel_pytree(like)[1]
    compiled = jax.jit(lambda matrix, v: unravel(matrix @ ravel_pytree(v)[0]))
    return lambda matrix: LinearOperator(partial(compiled, matrix), like)


def decaying(seed=0):
    random = np.random.default_rng(seed)
    return np.concatenate([[10.0, 7.0, -5.0], random.normal(size=SIZE - 3)])


@pytest.mark.parametrize(
    ("which", "expected"),
    [("largest", [10, 7]), ("smallest", [-5, None]), ("magnitude", [10, 7, -5])],
)
@pytest.mark.parametrize("basis", [None, 9])
def test_top_eigenpairs_are_those_known(product_of, like, which, expected, basis):
    matrix = make_matrix(decaying())
    values = np.sort(decaying())
    expected = [values[1] if value is None else value for value in expected]
    found = top_eigenpairs(product_of(matrix), len(expected), which=which, basis=basis, tolerance=1e-8)
    np.testing.assert_allclose(found.values, expected, rtol=1e-9)
    vectors = np.asarray(jax.vmap(lambda v: ravel_pytree(v)[0])(found.vectors))
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(expected)), atol=1e-9)
    residuals = np.linalg.norm(matrix @ vectors.T - vectors.T * found.values, axis=0)
    assert np.all(residuals <= found.residuals + 1e-9)
    assert found.residuals.max() <= 1e-7
    assert found.products < 100


def test_equal_eigenvalues_are_all_found(product_of, like):
    several = np.concatenate([[3.0, 3.0, 3.0], np.linspace(-1, 1, SIZE - 3)])
    found = top_eigenpairs(product_of(make_matrix(several)), 4, products=200, basis=SIZE, tolerance=1e-13)
    np.testing.assert_allclose(found.values, [3, 3, 3, 1], rtol=1e-12)
    same = top_eigenpairs(LinearOperator(lambda v: v, like), 3)
    np.testing.assert_allclose(same.values, [1, 1, 1], rtol=1e-14)
    assert same.products == 4


def test_all_eigenvalues_of_a_small_matrix(product_of, like):
    found = top_eigenpairs(product_of(make_matrix(decaying())), SIZE)
    np.testing.assert_allclose(found.values, np.sort(decaying())[::-1], atol=1e-12)


def test_a_rounded_basis_hardly_changes_eigenvalues(product_of, like):
    found = top_eigenpairs(product_of(make_matrix(decaying())), 2, basis_dtype="bfloat16")
    np.testing.assert_allclose(found.values, [10, 7], rtol=1e-4)
    vectors = np.asarray(jax.vmap(lambda v: ravel_pytree(v)[0])(found.vectors))
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(2), atol=1e-2)


def test_the_recursion_is_that_of_a_reference(product_of, like):
    matrix = make_matrix(decaying())
    start = draw("signs", jax.random.key(0), like)
    run = Lanczos(product_of(matrix), start, 20)
    for _ in range(20):
        run.step()
    flat = ravel_pytree(draw("signs", jax.random.key(0), like))[0]
    known = decomp.tridiag_sym(20)(lambda v: matrix @ v, flat)
    np.testing.assert_allclose(run.matrix, known.J_small, atol=1e-11)
    vectors = np.asarray(jax.vmap(lambda v: ravel_pytree(v)[0])(run.basis.vectors))
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(20), atol=1e-14)
    np.testing.assert_allclose(vectors, known.Q_tall, atol=1e-9)


@pytest.mark.parametrize("reorthogonalize", [True, False])
def test_a_density_has_the_moments_of_the_spectrum(product_of, like, reorthogonalize):
    product, values = product_of(make_matrix(decaying())), decaying()
    density = spectral_density(product, steps=40, samples=40, reorthogonalize=reorthogonalize)
    for function in (lambda x: x, np.square, np.cos, lambda x: x > 4):
        found = density.trace(function)
        assert abs(found.value - function(values).sum()) < 3 * found.standard_error
    np.testing.assert_allclose(density.weights.sum(axis=1), 1, rtol=1e-12)
    grid = np.linspace(-8, 13, 500)
    curve = density.curve(grid, 0.5)
    known = np.exp(-np.square((grid[:, None] - values) / 0.5) / 2).sum(axis=1) / (0.5 * np.sqrt(2 * np.pi) * SIZE)
    assert np.trapezoid(curve.value, grid) == pytest.approx(1, rel=1e-6)
    assert np.mean(np.abs(curve.value - known) < 3 * curve.standard_error + 1e-6) > 0.98


def test_a_density_of_few_eigenvalues_is_exact(product_of, like):
    density = spectral_density(product_of(make_matrix(np.repeat([2.0, -1.0], SIZE // 2))), steps=50, samples=30)
    assert np.allclose(np.where(density.weights > 1e-12, density.nodes, 2) % 3, 2)
    found = density.trace(np.square)
    assert abs(found.value - 2.5 * SIZE) < 3 * found.standard_error


@pytest.mark.parametrize(("method", "products"), [("hutchinson", 40), ("xtrace", 40)])
def test_traces_are_within_three_standard_errors_in_99_of_100_runs(product_of, like, method, products):
    eigenvalues = np.exp(-np.arange(SIZE) / 12)
    product = product_of(make_matrix(eigenvalues))
    runs = [trace(product, method=method, products=products, seed=seed) for seed in range(100)]
    errors = np.array([run.value - eigenvalues.sum() for run in runs])
    z = errors / [run.standard_error for run in runs]
    assert (np.abs(z) < 3).sum() >= 99
    assert abs(errors.mean()) < 3 * errors.std() / 10
    low, high = {"hutchinson": (0.8, 1.2), "xtrace": (0.25, 1)}[method]  # the jackknife's is never too small
    assert low < np.std(z) < high
    assert errors.std() < {"hutchinson": 0.5, "xtrace": 0.33}[method]


def test_layers_traces_are_within_three_standard_errors_in_99_of_100_runs(product_of, like):
    matrix = make_matrix(np.exp(-np.arange(SIZE) / 12))
    runs = [layer_traces(product_of(matrix), (4, None), products=40, seed=seed) for seed in range(100)]
    diagonal = np.diag(matrix)
    known = {"a": diagonal[:20].reshape(4, 5).sum(axis=1), "b/0": diagonal[20:].sum()}
    for name, value in known.items():
        z = np.array([(run[name].value - value) / run[name].standard_error for run in runs])
        assert (np.abs(z) < 3).mean() >= 0.99
    whole = trace(product_of(matrix), method="hutchinson", products=40)
    first = layer_traces(product_of(matrix), products=40)
    assert sum(part.value for part in first.values()) == pytest.approx(whole.value, rel=1e-12)


def test_traces_of_few_eigenvalues_are_exact(product_of, like):
    low = np.where(np.arange(SIZE) < 6, np.arange(SIZE) + 1.0, 0)
    for eigenvalues, products in ((low, 20), (decaying(), 2 * SIZE), (0 * low, 4)):
        found = trace(product_of(make_matrix(eigenvalues)), products=products)
        assert found.value == pytest.approx(eigenvalues.sum(), rel=1e-12)
        assert found.standard_error == 0


def test_leaving_one_out_is_that_of_a_reference(product_of, like):
    """Their mean over many random vectors, as the two draw others."""
    matrix, eigenvalues = make_matrix(decaying()), decaying()
    flat = jnp.zeros(SIZE)
    sampler = stochtrace.sampler_sphere(flat, num=10)
    theirs = stochtrace.estimator_leave_one_out(stochtrace.leave_one_out_xtrace(), sampler)
    estimate = jax.jit(lambda key: theirs(lambda v: matrix @ v, key))
    known = np.array([estimate(jax.random.key(seed)) for seed in range(100)])
    ours = np.array([trace(product_of(matrix), products=20, seed=seed).value for seed in range(100)])
    assert abs(ours.mean() - eigenvalues.sum()) < 3 * ours.std() / 10
    assert 0.7 < ours.std() / known.std() < 1.4


@pytest.mark.eight_devices
def test_devices_that_share_vectors_share_the_basis():
    mesh = lensjax.models.make_mesh("fsdp=4,tensor=2")
    random, found = np.random.default_rng(0), []
    params = {"u": random.normal(size=(8, 4)), "v": random.normal(size=(2, 8)), "w": random.normal(size=3)}
    specs = {"u": PartitionSpec("fsdp", "tensor"), "v": PartitionSpec("tensor", "fsdp"), "w": PartitionSpec()}

    def loss(params, x):
        return (
            (jnp.tanh(x @ params["u"]) ** 2).sum() + (jnp.sin(params["v"] @ x.T) ** 2).sum() + (params["w"] ** 4).sum()
        )

    def check(stacked):
        for name, stack in stacked.items():
            wanted = NamedSharding(mesh, PartitionSpec(None, *specs[name]))
            assert stack.sharding.is_equivalent_to(wanted, stack.ndim)

    for several in (False, True):
        if several:
            params = {name: jax.device_put(leaf, NamedSharding(mesh, specs[name])) for name, leaf in params.items()}
        hvp = hvp_fn(loss, params, np.random.default_rng(1).normal(size=(4, 8)))
        pairs = top_eigenpairs(hvp, 2, basis=6, products=9)
        run = Lanczos(hvp, draw("normal", jax.random.key(0), params), 3)
        run.step()
        run.step()
        if several:
            check(run.basis.vectors)
            check(pairs.vectors)
            check({name: leaf[None] for name, leaf in run.next.items()})
        found.append([*pairs.values, *pairs.residuals, trace(hvp, products=4).value])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9)


def test_bad_input_is_named(product_of, like):
    product = product_of(np.eye(SIZE))
    for call, message in (
        (lambda: top_eigenpairs(product, 0), "k is 0; give 1 or more"),
        (lambda: top_eigenpairs(product, 61), "k is 61 and there are 60 eigenvalues"),
        (lambda: top_eigenpairs(product, 3, basis=4), "basis is 4; give 5 or more"),
        (lambda: top_eigenpairs(product, 3, products=2), "products is 2; give 3 or more"),
        (lambda: top_eigenpairs(product, 3, which="best"), "which is 'best'; give 'largest', 'smallest'"),
        (lambda: top_eigenpairs(product_of(np.full((SIZE, SIZE), np.nan)), 3), "A product is not finite"),
        (lambda: top_eigenpairs(LinearOperator(product, {"w": jnp.arange(3)}), 3), "Parameter w holds int"),
        (lambda: spectral_density(product, samples=1), "samples is 1; give 2 or more"),
        (lambda: trace(product, products=2), "products is 2; give 4 or more"),
        (lambda: trace(product, products=7), "products is 7; 'xtrace' takes an even number"),
        (lambda: trace(product, method="exact"), "method is 'exact'; give 'xtrace' or 'hutchinson'"),
        (
            lambda: trace(product_of(np.full((SIZE, SIZE), np.inf)), method="hutchinson"),
            "A product is not finite",
        ),
        (lambda: trace(LinearOperator(product, like, symmetric=False)), "The operator is not symmetric"),
    ):
        with pytest.raises(InputError, match=message):
            call()
