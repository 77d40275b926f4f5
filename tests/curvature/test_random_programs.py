"""Kernels, forms, blocks, and products of random programs, against dense Jacobians and Hessians in float64.

`make test` tries 200 programs; LENSJAX_TEST_PROGRAMS names another number, as .ci/run does.
"""

import itertools
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from random_programs import BACKWARD_ONLY, FORWARD_ONLY, SINGLE, STEPS, UNDEFINED, WEIGHTS, Program, programs

from lensjax.core.errors import InputError
from lensjax.curvature.hvp import empirical_fisher_vp_fn, ggn_vp_fn, hvp_fn, layer_forms, quadratic_form
from lensjax.curvature.ntk.ntk import ntk

PROGRAMS = int(os.environ.get("LENSJAX_TEST_PROGRAMS", "200"))
STEPS_AT_MOST = 2 if PROGRAMS <= 200 else 4
# What was wrong once: ids of the next piece in the last tile of a table, lookups beyond it, complex activations, and
# custom rules around lookups and of straight-through estimators; and the memory that was said to be enough.
KNOWN = {
    "tiles": Program((("next token", "w", 0),), "vector", 5),
    "filled": Program((("lookup, filled", "w", 0),), "vector", 0),
    "complex": Program((("complex", "w", 0),), "sum", 0),
    "rule": Program((("lookup by a rule", "w", 0),), "vector", 0),
    "estimator": Program((("sine of product", "straight-through", 0),), "sum", 0),
    "spectrum": Program((("spectrum", "w", 0),), "sum", 0),
    "memory": Program((("layers", "w", 0),), "vector", 0),
}
OUTPUTS = {"trace": "nkp,mkp->nm", "diagonal": "nkp,mkp->nmk", "full": "nkp,mlp->nmkl"}


@pytest.fixture(autouse=True)
def wide():
    """Float64; and programs that run once are compiled with little optimisation, which takes a quarter less time."""
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.enable_x64(True):
        yield
    jax.config.update("jax_disable_most_optimizations", False)


_tried = itertools.count(1)


def forget_programs():
    """Drop what JAX keeps of every program, once in a while: of 5,000 that is many GB."""
    if next(_tried) % 200 == 0:
        jax.clear_caches()


def trials(share):
    return settings(max_examples=max(int(share * PROGRAMS), 1), deadline=None, derandomize=True)


def joined(program):
    """The program with one vector of outputs."""
    return lambda p, x: jnp.concatenate([jnp.ravel(y) for y in jax.tree.leaves(program(p, x))])


def loss_of(program):
    """The loss of each example."""

    def one(p, x):
        made = joined(program)(p, x)
        return (jnp.sin(made) * jnp.arange(1.0, made.size + 1)).sum()

    return jax.vmap(one, in_axes=(None, 0))


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def vector(program, params):
    rng = np.random.default_rng([program.seed, 5])
    return {name: jnp.asarray(rng.normal(size=leaf.shape)) for name, leaf in params.items()}


def dense(f, params, *args):
    """Jacobians [examples, outputs, parameters]."""
    jacobian = jax.jit(jax.vmap(jax.jacrev(joined(f)), in_axes=(None, 0)))(params, *args)
    return {name: np.asarray(leaf).reshape(*leaf.shape[:2], -1) for name, leaf in jacobian.items()}


def hessian(f, params, *, forward=False):
    """Dense, [outputs, parameters, parameters], by the parameters."""
    way = jax.jacfwd(jax.jacfwd(f)) if forward else jax.jacfwd(jax.jacrev(f))
    return jax.jit(way)(params)


def whole(blocks, params, outputs):
    """A Hessian by parameters as one matrix for each output."""
    sizes = {name: leaf.size for name, leaf in params.items()}
    rows = [[np.reshape(blocks[i][j], (outputs, sizes[i], sizes[j])) for j in params] for i in params]
    return np.concatenate([np.concatenate(row, axis=2) for row in rows], axis=1)


def assert_close(found, expected, program, scale=0.0):
    tolerance = 1e-4 if program.names & SINGLE else 1e-9
    scale = max(np.abs(expected).max(initial=0), scale, 1e-6)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale, err_msg=str(program))


@trials(0.5)
@given(programs(FORWARD_ONLY, STEPS_AT_MOST), st.sampled_from(list(OUTPUTS)), st.booleans(), st.integers(0, 7))
@example(KNOWN["tiles"], "trace", False, 0)
@example(KNOWN["filled"], "full", True, 1)
@example(KNOWN["complex"], "trace", False, 2)
@example(KNOWN["rule"], "diagonal", False, 3)
@example(KNOWN["memory"], "trace", False, 0)
def test_kernels(program, output, pairs, how):
    forget_programs()
    params, xs = program.params(), program.examples(2 if how else 24)  # of which tiles are small
    ys = program.examples(3, more=1) if pairs else None
    both = jax.tree.map(lambda *x: jnp.concatenate(x), xs, ys) if pairs else xs
    every = dense(program, params, both)
    count = len(xs["ids"])
    one = {name: leaf[:count] for name, leaf in every.items()}
    other = {name: leaf[count:] for name, leaf in every.items()} if pairs else one
    expected = {name: np.einsum(OUTPUTS[output], one[name], other[name]) for name in params}
    limit = None
    if how == 0:
        with pytest.raises(InputError, match="at least") as refused:
            ntk(program, params, xs, ys, memory_limit=1)
        least = int(re.search("need ([0-9,]+)", str(refused.value))[1].replace(",", ""))
        limit = int(least * (1 + program.seed % 8 / 8))  # for pieces of different sizes
    found = ntk(
        program, params, xs, ys, output=output, memory_limit=limit, by_parameter=how < 4, verify=program.seed % 8 == 0
    )
    total = sum(expected.values())
    if how < 4:
        for name, part in found.items():
            part = part.sum(axis=0) if part.size > expected[name].size else part  # over layers
            assert_close(part.reshape(expected[name].shape), expected[name], program, np.abs(total).max())
    else:
        assert_close(found.reshape(total.shape), total, program)


@trials(0.3)
@given(programs(UNDEFINED, STEPS_AT_MOST), st.integers(0, 2))
@example(KNOWN["estimator"], 0)
@example(KNOWN["spectrum"], 0)
def test_forms_and_blocks(program, how):
    forget_programs()
    forward = bool(program.names & FORWARD_ONLY)
    backward = bool(program.names & BACKWARD_ONLY)
    if forward and (backward or how == 1):
        return
    params, xs, losses = program.params(), program.examples(2), loss_of(program)
    v = vector(program, params)
    blocks = hessian(lambda p: losses(p, xs), params, forward=forward)
    if how == 0:
        dense = whole(blocks, params, 2)
        form = quadratic_form(losses, params, xs, v, verify=program.seed % 8 == 0)
        scale = np.abs(dense).max(initial=0) * np.square(flat(v)).sum()
        assert_close(form, np.einsum("i,nij,j->n", flat(v), dense, flat(v)), program, scale * 1e-3)
        return
    block = "joint" if how == 1 else "diagonal"
    found = layer_forms(losses, params, xs, v, block=block, verify=False)
    for i in params:
        expected = sum(
            np.einsum("i,nij,j->n", np.ravel(v[i]), np.reshape(blocks[i][j], (2, v[i].size, v[j].size)), np.ravel(v[j]))
            for j in (params if block == "joint" else [i])
        )
        if params[i].size and not (block == "diagonal" and found[i].ndim > 1):
            part = found[i].sum(axis=0) if found[i].ndim > 1 else found[i]
            assert_close(part, expected, program, 1e-3 * np.abs(flat(blocks)).max(initial=0))


@trials(0.2)
@given(
    programs(FORWARD_ONLY | UNDEFINED, STEPS_AT_MOST), st.sampled_from(["linearized", "direct"]), st.sampled_from("HGF")
)
def test_products(program, mode, kind):
    forget_programs()
    if kind != "H" and program.names & BACKWARD_ONLY:
        return
    params, xs, losses = program.params(), program.examples(2), loss_of(program)
    v = vector(program, params)
    if kind == "H":
        product = hvp_fn(lambda p, xs: losses(p, xs).mean(), params, xs, mode=mode)(v)
        expected = whole(hessian(lambda p: losses(p, xs).mean(), params), params, 1)[0] @ flat(v)
    elif kind == "G":
        outputs = jax.vmap(joined(program), in_axes=(None, 0))
        made = np.asarray(outputs(params, xs))
        unit = np.abs(made).max(initial=1)  # some programs have outputs in thousands
        product = ggn_vp_fn(outputs, lambda z, xs: jnp.cosh(z / unit).sum(), params, xs, mode=mode)(v)
        jacobian = dense(program, params, xs)
        one = np.concatenate([jacobian[name] for name in params], axis=2).reshape(-1, flat(params).size)
        expected = one.T @ (np.cosh(np.ravel(made) / unit) / unit**2 * (one @ flat(v)))
    else:
        product = empirical_fisher_vp_fn(losses, params, xs, mode=mode)(v)
        gradients = jax.jit(jax.jacrev(lambda p: losses(p, xs)))(params)
        one = np.concatenate([np.reshape(gradients[name], (2, -1)) for name in params], axis=1)
        expected = one.T @ (one @ flat(v)) / 2
    assert_close(flat(product), expected, program)


def test_programs_can_have_every_step_and_weight():
    shape = jax.eval_shape(joined(Program((), "sum", 0)), {}, Program((), "sum", 0).example())
    for step, weight in [*((step, "w") for step in STEPS), *(("product", weight) for weight in WEIGHTS)]:
        program = Program(((step, weight, 0),), "sum", 0)
        assert jax.eval_shape(joined(program), program.params(), program.example()).shape == shape.shape, program
