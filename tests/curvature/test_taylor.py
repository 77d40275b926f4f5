"""Second derivatives by Taylor series, against forward mode twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lensjax.models
from lensjax.core.flops import matmul_flops
from lensjax.curvature.hvp import layer_forms, quadratic_form
from lensjax.curvature.jaxpr.taylor import second_derivative
from lensjax.curvature.streaming import scanned_layers

X, V = (np.random.default_rng(seed).uniform(0.5, 1.5, (3, 4)) for seed in (0, 1))
A = np.random.default_rng(2).normal(size=(4, 4))


def series(f, x, v):
    """The value and the second derivative of f at x along v, leaf by leaf."""
    closed = jax.make_jaxpr(f)(x)
    return second_derivative(closed.jaxpr, closed.consts, jax.tree.leaves(x), jax.tree.leaves(v))


def twice(f, x, v):
    """The same by forward mode over itself."""
    slope = lambda x: jax.jvp(f, (x,), (v,))[1]  # noqa: E731
    return list(zip(jax.tree.leaves(f(x)), jax.tree.leaves(jax.jvp(slope, (x,), (v,))[1]), strict=True))


def assert_agree(found, expected, name):
    for pair, known in zip(found, expected, strict=True):
        for one, other in zip(pair, known, strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype), name
            np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-12, err_msg=name)


LINEAR = {
    "sum with a constant": lambda x: (1.0 + x - 2.0 * x) / 3.0,
    "padding with what is not 0": lambda x: jnp.pad(x, 1, constant_values=7.0),
    "rows outside a table": lambda x: x.at[jnp.array([0, 5, 2])].get(mode="fill", fill_value=3.0),
    "rows that are set": lambda x: x.at[1].set(5.0).at[2].add(x[0]),
    "pieces with constants": lambda x: jnp.concatenate([x, jnp.ones((1, 4)), x[::-1]]),
    "choices": lambda x: jnp.where(x > 1, x.T[0, 0], jnp.maximum(x, 0.9)) + jnp.abs(x) + jnp.clip(x, 0.6, 1.2),
    "sums": lambda x: x.cumsum(0) * 2 + x.sum(1, keepdims=True) + x.max() - jnp.sort(x, axis=1),
    "slices": lambda x: jax.lax.dynamic_slice(x, (1, 0), (2, 4)).reshape(8),
    "another type": lambda x: x.astype(jnp.complex128).real.astype(jnp.float64),
}
PRODUCTS = {
    "with a constant": lambda x: x @ A,
    "with itself": lambda x: (x @ x.T) * 3.0,
    "of what is bent": lambda x: jnp.sin(x) @ jnp.cos(x).T,
    "of entries": lambda x: x * jnp.sin(x) * x,
    "convolution": lambda x: jnp.convolve(jnp.sin(x[0]), x[1]),
    "of groups": lambda x: jax.lax.ragged_dot(jnp.sin(x), jnp.stack([x.T, 2 * x.T]), jnp.array([1, 2], jnp.int32)),
}
OTHERS = {
    "exp of what is linear": jnp.exp,
    "exp of what is bent": lambda x: jnp.exp(jnp.sin(x)),
    "functions of one": lambda x: jnp.tanh(x) + x**3 + jax.lax.rsqrt(x) + jnp.log1p(x) + jax.nn.sigmoid(x),
    "functions of two": lambda x: jnp.arctan2(x, jnp.sin(x)) + x**x + 1 / x,
    "solutions": lambda x: jnp.linalg.solve(A + x.T @ x, x.T),
    "a norm": lambda x: (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True),
    "cross-entropy": lambda x: jax.nn.logsumexp(x @ A, axis=1) - x[:, 0],
    "what stops": lambda x: x * jax.lax.stop_gradient(x) + jnp.floor(x) * x,
    "whole numbers": lambda x: x * jnp.argmax(x) + x[jnp.argsort(x[:, 0])],
    "of nothing": lambda x: (jnp.ones(2), x),
    "absolute values of complex numbers": lambda x: jnp.abs(x + 1j * (x @ A)),
    "its own rule": lambda x: jax.nn.relu(x - 1) * x,
}
CALLS = {
    "jit": lambda x: jax.jit(lambda y: (y * y, 2.0))(x)[0],
    "checkpoint": lambda x: jax.checkpoint(lambda y: jnp.sin(y @ A) * y)(x),
    "cond": lambda x: jax.lax.cond(x[0, 0] < 1, lambda y: (y, y[0]), lambda y: (y * y, jnp.ones(4)), x),
    "switch": lambda x: jax.lax.switch(1, [jnp.sin, jnp.exp, jnp.ones_like], x),
}
LOOPS = {
    "a carry that bends": lambda x: jax.lax.scan(lambda c, r: (jnp.sin(c) + r, c * 2), jnp.zeros(4), x),
    "a carry that bends another": lambda x: jax.lax.scan(
        lambda c, r: ((c[0] + 1, c[2], c[2] * r, c[3]), c[1]), (0, x[0], x[0], jnp.ones(2)), x, reverse=True
    )[0][1:],
    "layers": lambda x: jax.lax.scan(lambda c, w: (jnp.tanh(c @ jnp.outer(w, w)), None), jnp.ones((2, 4)), x)[0],
    "nested": lambda x: jax.lax.scan(lambda c, r: (jax.lax.fori_loop(0, 3, lambda i, d: d * r, c), None), x[0], x)[0],
    "no steps": lambda x: jax.lax.scan(lambda c, r: (c * r, c), x[0], jnp.zeros((0, 4)))[0],
    "while": lambda x: jax.lax.while_loop(lambda s: s[0] < x[0, 0] * 9, lambda s: (s[0] * 2, s[1] * x), (x[0, 1], x))[
        1
    ],
    "several whiles": jax.vmap(lambda r: jax.lax.while_loop(lambda s: s[0] < 5, lambda s: s * r + 1, r)),
}


@pytest.mark.parametrize("kind", [LINEAR, PRODUCTS, OTHERS, CALLS, LOOPS])
def test_every_rule_has_the_second_derivative(kind):
    with jax.enable_x64(True):
        both = [
            jax.jit(lambda x, v, way=way: {name: way(f, x, v) for name, f in kind.items()}) for way in (series, twice)
        ]
        found, expected = (way(jnp.asarray(X), jnp.asarray(V)) for way in both)
    for name in kind:
        assert_agree(found[name], expected[name], name)


STEPS = (
    lambda x, y: x + y,
    lambda x, y: x * y,
    lambda x, y: x @ y / 4,
    lambda x, y: jnp.where(x > y, x, y),
    lambda x, y: x / (2 + y * y),
    lambda x, y: jnp.tanh(x),
    lambda x, y: jnp.exp(-x * x),
    lambda x, y: jnp.broadcast_to(y.sum(0), y.shape),
    lambda x, y: jax.lax.scan(lambda c, r: (c * y[0] + r, c), x[0], x)[1],
    lambda x, y: jax.lax.stop_gradient(x) - y,
)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(STEPS), *2 * [st.integers(0, 20)]), min_size=1, max_size=6), st.data())
def test_programs_of_any_steps(steps, data):
    random = np.random.default_rng(data.draw(st.integers(0, 9)))
    x, v = ({"a": random.normal(size=(2, 2)), "b": random.normal(size=(2, 2))} for _ in range(2))

    def f(x):
        values = [jnp.eye(2) + 1, x["a"], x["b"]]
        for step, i, j in steps:
            values.append(step(values[i % len(values)], values[j % len(values)]))
        return values[-1]

    with jax.enable_x64(True):
        x, v = (jax.tree.map(jnp.asarray, tree) for tree in (x, v))
        assert_agree(series(f, x, v), twice(f, x, v), "")


def test_only_products_with_terms_are_computed():
    rows = np.ones((8, 16))
    params = {"up": np.ones((16, 32)), "down": np.ones((32, 4))}
    up, down = 2 * 8 * 16 * 32, 2 * 8 * 32 * 4

    def flops(f, moves):
        closed = jax.make_jaxpr(f)(params)
        v = [params[name] if name in moves else None for name in params]
        return matmul_flops(lambda *args: second_derivative(closed.jaxpr, closed.consts, args, v), *params.values())

    params = dict(sorted(params.items()))  # as the leaves are
    linear, bent = (lambda p, act=act: act(rows @ p["up"]) @ p["down"] for act in (lambda x: x, jnp.tanh))
    # Of what the last product gives, the first derivative is not needed.
    assert flops(bent, ("up", "down")) == 2 * up + 3 * down
    assert flops(bent, ("up",)) == 2 * up + 2 * down
    assert flops(bent, ("down",)) == up + down
    assert flops(linear, ("up", "down")) == 2 * up + 2 * down
    assert flops(linear, ()) == up + down


def of_model(config):
    model, ids = lensjax.models.from_config(config), np.random.default_rng(0).integers(3, 16, (64, 12))
    batch = {"input_ids": ids, "labels": ids}
    return model, batch, lambda params, batch: model.loss(params, batch, "example")


@pytest.mark.parametrize("model_type", ["gpt2", "t5"])
def test_forms_of_a_model_take_few_products(tiny_config, model_type):
    model, batch, losses = of_model(tiny_config(model_type))
    params = model.params

    def in_gradients(f):
        return matmul_flops(f, params) / matmul_flops(jax.grad(model.loss), params, batch)

    assert in_gradients(lambda v: quadratic_form(losses, params, batch, v)) <= 1.75
    layers = sum(length or 1 for length in scanned_layers(losses, params, batch))
    assert in_gradients(lambda v: layer_forms(losses, params, batch, v, block="diagonal")) <= 1.3 * layers


def test_forms_of_a_model_keep_no_activations(tiny_config):
    model, batch, losses = of_model(tiny_config("gpt2", num_hidden_layers=16))

    def held(f, *args):
        return jax.jit(f).lower(*args).compile().memory_analysis().temp_size_in_bytes

    form = held(lambda params: quadratic_form(losses, params, batch, params), model.params)
    assert form < 0.5 * held(jax.grad(model.loss), model.params, batch)


def test_what_moves_nothing_has_no_second_derivative():
    assert [float(second[0]) for _, second in series(lambda x: (x, jnp.ones(1)), np.ones(1), np.ones(1))] == [0, 0]


@jax.custom_jvp
def straight_through(x):
    return jnp.round(x)


straight_through.defjvp(lambda primals, tangents: (jnp.round(*primals), *tangents))


@jax.custom_jvp
def tripled(x):
    """The identity with three times its gradient, whose value is not said by itself."""
    return x


tripled.defjvp(lambda primals, tangents: (primals[0], 3 * tangents[0]))


@jax.custom_jvp
def stable(x):
    """log(1 + exp x) whose value and tangent are the same function's, in two ways of writing."""
    return jnp.log1p(jnp.exp(x))


stable.defjvp(lambda primals, tangents: (jnp.log1p(jnp.exp(*primals)), tangents[0] * jax.nn.sigmoid(*primals)))


CUSTOM = {
    "straight-through": lambda x: jnp.sin(A.T @ straight_through(3 * x).T),
    "another gradient": lambda x: jnp.exp(tripled(jnp.sin(x))),
    "written in two ways": lambda x: stable(x * x) @ A,
    "in a loop": lambda x: jax.lax.fori_loop(0, 3, lambda i, y: jnp.sin(straight_through(2 * y) + y * y), x),
    "in a branch": lambda x: jax.lax.cond(x[0, 0] > 0, lambda y: jnp.cos(tripled(y)), jnp.sin, x),
    "of JAX": lambda x: jax.nn.relu(jnp.sin(3 * x)) + jnp.logaddexp(x, x * x) + jnp.sinc(x),
}


@pytest.mark.parametrize("name", CUSTOM)
def test_rules_of_custom_jvps_are_those_of_nested_derivatives(name):
    f = CUSTOM[name]
    total = lambda x: f(x).sum()  # noqa: E731
    with jax.enable_x64(True):
        assert_agree(series(f, X, V), twice(f, X, V), name)
        expected = jnp.einsum("ij,ijkl,kl", V, jax.hessian(total)(X), V)
        np.testing.assert_allclose(series(total, X, V)[0][1], expected, rtol=1e-11, atol=1e-12)


def test_a_custom_vjp_is_refused():
    @jax.custom_vjp
    def rounded(x):
        return jnp.round(x)

    rounded.defvjp(lambda x: (rounded(x), None), lambda _, g: (g,))  # not the derivative
    with pytest.raises(TypeError, match="custom_vjp"):
        series(lambda x: jax.jit(rounded)(x) * x, X, V)
