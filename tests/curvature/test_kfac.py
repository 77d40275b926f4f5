"""Kronecker factors of Fisher blocks, beside dense blocks in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensjax.core.errors import InputError
from lensjax.curvature.kfac import kfac

N, WIDTH = 70, 5  # more than a batch of 64, which is filled up


@pytest.fixture(scope="module", autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def params():
    random = np.random.default_rng(0)
    return {
        "a": jnp.asarray(random.normal(size=(4, WIDTH))),
        "b": jnp.asarray(random.normal(size=(2, WIDTH, WIDTH)) / 2),  # scanned
        "c": jnp.asarray(random.normal(size=WIDTH)),
    }


def network(activation):
    def f(params, x):
        hidden, _ = jax.lax.scan(lambda h, w: (activation(w @ h), None), x @ params["a"], params["b"])
        return hidden + params["c"]

    return f


LINEAR, BENT = network(lambda x: x), network(jnp.tanh)
XS = np.random.default_rng(1).normal(size=(N, 4))


def dense(f, params, xs, name):
    """The mean over examples of Σ_k g_k g_kᵀ, of a parameter or of each of its layers."""
    jacobian = jax.jit(jax.vmap(jax.jacrev(f), (None, 0)))(params, xs)[name]
    layers = 2 if name == "b" else 1
    rows = np.asarray(jacobian).reshape(len(xs), -1, layers, params[name].size // layers)
    return np.einsum("nklp,nklq->lpq", rows, rows) / len(xs)


def blocks(operator, params, name):
    """Products with the unit vectors of a parameter, layer by layer."""
    size, layers = params[name].size, 2 if name == "b" else 1

    def column(unit):
        v = jax.tree.map(jnp.zeros_like, params) | {name: unit.reshape(params[name].shape)}
        return operator(v)[name].ravel()

    whole = np.asarray(jax.vmap(column)(jnp.eye(size))).reshape(layers, size // layers, layers, -1)
    return np.stack([whole[i, :, i] for i in range(layers)])


@pytest.mark.parametrize("corrected", [False, True])
def test_blocks_of_linear_layers_are_exact(params, corrected):
    """Then the gradients of outputs do not depend on examples, nor on the inputs of a layer."""
    fisher = kfac(LINEAR, params, XS, corrected=corrected)
    operator, inverse = fisher.operator(), fisher.inverse(0.1)
    for name in params:
        exact = dense(LINEAR, params, XS, name)
        np.testing.assert_allclose(blocks(operator, params, name), exact, rtol=1e-9, atol=1e-9)
        damped = np.linalg.inv(exact + 0.1 * np.eye(exact.shape[1]))
        np.testing.assert_allclose(blocks(inverse, params, name), damped, rtol=1e-8, atol=1e-8)


def test_corrected_eigenvalues_are_second_moments_of_gradients(params):
    plain, corrected = (kfac(BENT, params, XS, corrected=given) for given in (False, True))
    for name in ("a", "b"):
        exact, block = dense(BENT, params, XS, name), corrected.blocks[name]
        u, v, values = (np.asarray(x) for x in (block.left_vectors, block.right_vectors, block.eigenvalues))
        if name == "a":
            u, v, values = u[None], v[None], values[None]
        for i, layer in enumerate(exact):
            basis = np.kron(u[i], v[i])
            np.testing.assert_allclose(np.diag(basis.T @ layer @ basis), values[i].ravel(), rtol=1e-9, atol=1e-12)
        errors = [np.linalg.norm(blocks(fisher.operator(), params, name) - exact) for fisher in (plain, corrected)]
        assert errors[1] < errors[0] < np.linalg.norm(exact)
    for name in ("a", "b"):
        traces = [float(fisher.blocks[name].eigenvalues.sum()) for fisher in (plain, corrected)]
        assert traces[1] == pytest.approx(np.trace(dense(BENT, params, XS, name), axis1=1, axis2=2).sum())
    np.testing.assert_allclose(corrected.blocks["c"].eigenvalues[:, 0], 1)  # the exact diagonal


def test_tables_that_are_also_products_and_sides_that_are_long():
    params = {"e": jnp.asarray(np.random.default_rng(0).normal(size=(9, 3)))}
    ids = np.random.default_rng(1).integers(0, 9, (6, 4))

    def f(params, x):
        return jax.nn.log_softmax(jnp.tanh(params["e"][x]) @ params["e"].T)[0, x].mean()

    exact = dense(f, params, ids, "e")[0]
    for longest in (8, 16):
        block = kfac(f, params, ids, longest=longest).blocks["e"]
        assert (block.left_vectors is None) == (longest == 8)
        u = np.eye(9) if longest == 8 else np.asarray(block.left_vectors)
        basis = np.kron(u, np.asarray(block.right_vectors))
        values = np.asarray(block.eigenvalues).ravel()
        np.testing.assert_allclose(np.diag(basis.T @ exact @ basis), values, rtol=1e-9, atol=1e-12)


def test_bad_input_is_named(params):
    with pytest.raises(InputError, match=r"damping is 0; give a number above 0"):
        kfac(LINEAR, params, XS[:2], corrected=False).inverse(0)
    with pytest.raises(InputError, match="these examples need"):
        kfac(LINEAR, params, XS[:2], memory_limit=10)
