"""Kernels where a parameter looks like the factor of a product, or like a table, and is not quite, or only in part."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensjax.core.errors import InputError
from lensjax.curvature.jaxpr.program import traced_program
from lensjax.curvature.jaxpr.walker import scan_parts
from lensjax.curvature.ntk.ntk import ntk

RANDOM = np.random.default_rng(0)
SQUARE, ROW, TABLE = RANDOM.normal(size=(5, 5)), RANDOM.normal(size=(1, 5)), RANDOM.normal(size=(6, 4))
XS = RANDOM.normal(size=(3, 5))
IDS = np.array([[0, 1, 5, 9, 7], [6, 6, 8, 2, 1], [5, 5, 5, 7, 7]])  # some are beyond the table
WEIGHTS = np.arange(1.0, 6)[:, None]


@jax.custom_jvp
def scaled_product(x, w):
    return x @ w


scaled_product.defjvp(lambda values, moves: (values[0] @ values[1], 3 * (moves[0] @ values[1] + values[0] @ moves[1])))


def looked_up(**how):
    return lambda table, ids: jnp.sin(jnp.take(table, ids, axis=0, **how) * WEIGHTS).sum(axis=0)


CASES = {
    "ids that are clipped": (looked_up(mode="clip"), TABLE, IDS),
    "ids that are filled": (looked_up(mode="fill", fill_value=0), TABLE, IDS),
    "a rule of its own": (lambda w, x: jnp.sin(scaled_product(x, w)), SQUARE, XS),
    "complex examples": (lambda w, x: (x @ w).imag ** 2, SQUARE, XS + 1j * XS[:, ::-1]),
    "spectra": (lambda w, x: jnp.abs(jnp.fft.rfft(x, 8) @ w) ** 2, SQUARE, XS),
    "weights as whole numbers": (
        lambda p, x: jnp.sin(x @ p["w"].astype(jnp.int32)) @ p["v"],
        {"w": 3 * SQUARE, "v": SQUARE},
        XS,
    ),
    "a row of whole numbers": (lambda w, x: jnp.sin(x @ w), ROW, np.array([[2], [3], [2]])),
    "whole numbers": (lambda w, x: jnp.sin(x @ w).sum(axis=0), SQUARE, RANDOM.integers(0, 3, (3, 4, 5))),
    "bytes": (lambda w, x: jnp.sin(x[None] @ w)[0], SQUARE, RANDOM.integers(0, 3, (3, 5)).astype(np.uint8)),
    "an empty parameter": (lambda p, x: x @ p["w"], {"w": SQUARE, "none": np.zeros((0, 5))}, XS),
}


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_is_that_of_the_dense_jacobian(name):
    f, params, xs = CASES[name]
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, params)
        jacobian = jax.vmap(jax.jacrev(f), in_axes=(None, 0))(params, xs)
        pairs = zip(jax.tree.leaves(jacobian), jax.tree.leaves(params), strict=True)
        dense = np.concatenate([leaf.reshape(3, -1, of.size) for leaf, of in pairs if of.size], axis=2)
        theta = ntk(f, params, xs)
    np.testing.assert_allclose(theta, np.einsum("nkp,mkp->nm", dense, dense), rtol=1e-10, atol=1e-10)


def test_uses_are_found_through_calls_and_loops():
    params = {"a": jnp.ones((2, 3, 3)), "b": jnp.ones((3, 2)), "c": jnp.ones((3, 2)), "d": jnp.ones(3)}

    def f(p, x):
        hidden, _ = jax.lax.scan(lambda h, w: (jax.checkpoint(lambda h, w: jnp.tanh(h @ w))(h, w), None), x, p["a"])
        return jax.jit(lambda h, w: h @ w)(hidden * p["d"], p["b"]) + jax.nn.relu(p["c"]).sum()

    uses = traced_program(f, params, jnp.ones(3))[0].uses
    assert sorted(use.leaf for use in uses.uses.values()) == [0, 1]
    assert uses.scanned == {0: 2}


@pytest.mark.parametrize("limit", [pytest.param(8_000_000, marks=pytest.mark.long), 14_000_000])
def test_tables_in_pieces_that_are_no_whole_tiles_do_not_change_it(tiny_config, random_model, limit):
    model = random_model(tiny_config("gpt2", vocab_size=5000, hidden_size=32, num_hidden_layers=1))
    ids = np.minimum(np.random.default_rng(0).zipf(1.3, (100, 16)) * 7, 4999)  # words repeat, as in text

    def loss(params, ids):
        return model.loss(params, {"input_ids": ids, "labels": ids})

    whole = ntk(loss, model.params, ids)
    assert np.abs(ntk(loss, model.params, ids, memory_limit=limit) - whole).max() < 1e-5 * whole.max()


def test_ids_that_jax_cannot_count_from_the_end_are_refused_with_what_to_do():
    table, ids = RANDOM.normal(size=(300, 2)).astype(np.float32), RANDOM.integers(0, 127, (3, 4)).astype(np.int8)

    def f(table, ids):
        return jnp.sin(table[ids]).sum(0)

    with pytest.raises(InputError, match=r"300 out of bounds for int8: .* cast them to int32\."):
        ntk(f, table, ids)
    theta = ntk(lambda table, ids: f(table, ids.astype("int32")), table, ids)
    np.testing.assert_allclose(theta, ntk(f, table, ids.astype(np.int32)), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32"])
@pytest.mark.parametrize("mode", ["clip", "fill"])
def test_ids_of_few_bytes_may_name_rows_of_long_tables(dtype, mode):
    """Of which the last row is no number of the ids' type."""
    table, ids = RANDOM.normal(size=(300, 2)), RANDOM.integers(0, 127, (24, 4))

    def f(table, ids):
        rows = jnp.take(table, ids, axis=0, mode=mode)
        return jnp.sin(rows * WEIGHTS[:4]).sum(0) + jax.nn.softmax(rows[0] @ table.T) @ table

    with jax.enable_x64(True):
        jacobian = np.asarray(jax.vmap(jax.jacrev(f), in_axes=(None, 0))(jnp.asarray(table), ids)).reshape(24, 2, -1)
        expected = np.einsum("nkp,mkp->nm", jacobian, jacobian)
        for limit in (None, 120_000):  # whole, and in pieces
            theta = ntk(f, table, ids.astype(dtype), memory_limit=limit, verify=False)
            np.testing.assert_allclose(theta, expected, rtol=1e-10, atol=1e-10)


def test_the_parts_of_a_scan_are_told_by_every_version_of_jax():
    def loop(a, b, xs):
        return jax.lax.scan(lambda carry, x: ((carry[0] * a + x, carry[1] + b, x), carry[0]), (xs[0], b, xs[1]), xs)

    traced = jax.make_jaxpr(loop)(1.0, 2.0, jnp.ones(4))
    (scan,) = (equation for equation in traced.eqns if equation.primitive.name == "scan")
    assert scan_parts(scan) == (2, 3)
    tree = SimpleNamespace(unpack=lambda: ((None,) * 4, (None,), (None,)))  # as JAX 0.12 has it
    assert scan_parts(SimpleNamespace(params={"ft_in": tree})) == (4, 1)
