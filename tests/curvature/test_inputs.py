"""Examples of every kind, functions of several outputs, and parameters on any mesh: right kernels and products."""

from collections import UserDict
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lensjax.core.errors import InputError
from lensjax.curvature.hvp import ggn_vp_fn, hvp_fn, layer_forms, quadratic_form
from lensjax.curvature.kfac import kfac
from lensjax.curvature.ntk import ntk, ntk_flops, ntk_sketch, ntk_vp
from lensjax.curvature.spectrum import trace

N, WIDTH = 5, 8
W = np.random.default_rng(0).normal(size=(WIDTH, 3)).astype(np.float32)
X = np.random.default_rng(1).normal(size=(N, WIDTH)).astype(np.float32)


def dense(f, params, xs):
    """The sum over outputs of all products of gradients."""
    examples = [jax.tree.map(lambda x, i=i: x[i], xs) for i in range(N)]

    def flat(p, x):
        return jnp.concatenate([jnp.ravel(y) for y in jax.tree.leaves(f(p, x))])

    rows = [np.asarray(jax.jacrev(flat)(params, x)).reshape(-1, np.size(params)) for x in examples]
    return np.array([[np.sum(a * b) for b in rows] for a in rows])


def values(p, b):
    return jnp.tanh(b["x"] @ p)


@pytest.mark.parametrize("kind", ["mapping", "text", "several kinds", "nested"])
def test_what_cannot_be_traced_is_left_out(kind):
    examples = {
        "mapping": UserDict(x=X),
        "text": {"x": X, "name": np.array(["a", "b", "c", "d", "e"])},
        "several kinds": {"x": X, "rows": np.array([{}, 1, None, "d", 2.5], dtype=object)},
        "nested": UserDict(x=X, other=UserDict(y=X, text=list("abcde"))),
    }[kind]
    expected = dense(values, W, {"x": X})
    np.testing.assert_allclose(ntk(values, W, examples), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ntk(values, W, examples, examples), expected, rtol=1e-5, atol=1e-5)
    ones = np.ones((N, 3), np.float32)
    np.testing.assert_allclose(
        ntk_vp(values, W, examples)(ones), ntk_vp(values, W, {"x": X}, 2)(ones), rtol=1e-5, atol=1e-5
    )

    def total(p, b):
        return jnp.sum(values(p, b) ** 2)

    np.testing.assert_allclose(hvp_fn(total, W, examples)(W), hvp_fn(total, W, {"x": X})(W), rtol=1e-6)


def test_keys_of_random_numbers_are_examples():
    def noisy(p, b):
        return jnp.tanh(b["x"] @ p + jax.random.normal(b["key"], (3,)))

    xs = {"x": X, "key": jax.random.split(jax.random.key(0), N)}
    expected = dense(noisy, W, xs)
    np.testing.assert_allclose(ntk(noisy, W, xs), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ntk(noisy, W, xs, xs), expected, rtol=1e-5, atol=1e-5)
    ones = np.ones((N, 3), np.float32)
    np.testing.assert_allclose(ntk_vp(noisy, W, xs, 2)(ones), ntk_vp(noisy, W, xs)(ones), rtol=1e-5, atol=1e-6)


def test_keys_whose_numbers_depend_on_their_neighbours_are_refused():
    def noisy(p, key):
        return jnp.tanh(jax.random.normal(key, (WIDTH,)) @ p)

    for call in (ntk, lambda f, p, xs: ntk_vp(f, p, xs, 2)):
        with pytest.raises(InputError, match=r"xs holds keys of rbg.*make them with jax\.random\.key\(seed, impl="):
            call(noisy, W, jax.random.split(jax.random.key(0, impl="rbg"), N))
    advised = jax.random.split(jax.random.key(0, impl="threefry2x32"), N)
    np.testing.assert_allclose(ntk(noisy, W, advised), dense(noisy, W, advised), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["a list", "a dict with None", "a tuple in a tuple"])
def test_one_array_may_be_within_anything(kind):
    def one(p, x):
        return jnp.tanh(x @ p)

    def within(p, x):
        y = one(p, x)
        return {"a list": [y], "a dict with None": {"y": y, "none": None}, "a tuple in a tuple": ((y,), ())}[kind]

    np.testing.assert_allclose(ntk(within, W, X, output="full"), ntk(one, W, X, output="full"), rtol=1e-6)
    np.testing.assert_allclose(ntk_sketch(within, W, X, 8).features, ntk_sketch(one, W, X, 8).features, rtol=1e-5)

    def losses(f):
        return lambda p, xs: jax.tree.map(lambda y: jnp.square(y).sum(-1), f(p, xs))

    for call in (quadratic_form, partial(layer_forms, block="diagonal"), partial(layer_forms, block="joint")):
        given, wanted = (call(losses(f), W, X, W) for f in (within, one))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), given, wanted)


@pytest.mark.parametrize("output", ["trace", "full"])
def test_a_stack_of_no_layers_has_no_gradient(output):
    def f(p, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["layers"])[0] @ p["w"]

    params = {"layers": np.zeros((0, WIDTH, WIDTH), np.float32), "w": W}
    expected = ntk(lambda w, x: x @ w, W, X, output=output)
    parts = ntk(f, params, X, output=output, by_parameter=True)
    np.testing.assert_allclose(parts["w"], expected, rtol=1e-6)
    assert not np.any(parts["layers"])
    assert ntk_sketch(f, params, X, 8).features.shape == (N, 3, 8)
    assert kfac(f, params, X).operator()(params)["layers"].shape == (0, WIDTH, WIDTH)
    forms = layer_forms(lambda p, xs: jnp.square(f(p, xs)).sum(-1), params, X, params, block="diagonal")
    assert not np.any(forms["layers"])


@pytest.mark.parametrize("output", ["trace", "diagonal", "full"])
def test_several_outputs_count_as_one_vector(output):
    scale = jnp.arange(1.0, 4.0)  # captured

    def several(p, x):
        return {"b": jnp.sin(x @ p).sum(), "a": (x @ p * scale).reshape(3, 1)}

    def one(p, x):
        made = several(p, x)
        return jnp.concatenate([made["a"].ravel(), made["b"][None]])

    found = ntk(several, W, X, output=output)
    np.testing.assert_allclose(found, ntk(one, W, X, output=output), rtol=1e-5, atol=1e-5)
    if output == "trace":
        np.testing.assert_allclose(found, dense(several, W, X), rtol=1e-5, atol=1e-5)


@pytest.mark.eight_devices
@pytest.mark.parametrize("spec", [P(), P("data")])
@pytest.mark.parametrize("entered", [False, True])
def test_axes_of_meshes_may_be_explicit(spec, entered):
    mesh = jax.make_mesh((8,), ("data",))
    assert mesh.axis_types == (AxisType.Explicit,)
    params = jax.device_put(W, NamedSharding(mesh, spec))
    examples = np.concatenate([X, X[:3]])

    def f(p, x):
        return jnp.tanh(x @ p)

    expected = ntk(f, W, examples)

    def check():
        xs = jax.device_put(examples, NamedSharding(mesh, P("data")))
        np.testing.assert_allclose(ntk(f, params, xs), expected, rtol=1e-5, atol=1e-5)
        assert ntk_flops(f, params, xs) > 0
        form = quadratic_form(lambda p, b: f(p, b).sum(-1), params, xs, params)
        np.testing.assert_allclose(form, quadratic_form(lambda p, b: f(p, b).sum(-1), W, examples, W), rtol=1e-4)

    if entered:
        with jax.set_mesh(mesh):
            check()
    else:
        check()


@pytest.mark.parametrize("used", ["in the loop alone", "after it too"])
def test_loops_of_no_steps_have_no_gradient(used):
    def f(w, x):
        (y, _) = jax.lax.scan(lambda y, _: (jnp.tanh(y @ w @ w.T), None), x, None, length=0)
        return jnp.sum(y @ w if used == "after it too" else y)

    kernel = ntk(f, W, X)
    np.testing.assert_allclose(kernel, dense(f, W, X), rtol=1e-5)
    assert np.any(kernel) == (used == "after it too")


OF_NUMBERS = {
    "kernel": lambda f, losses, p: ntk(f, p, X, by_parameter=True),
    "pairs of outputs": lambda f, losses, p: ntk(f, p, X, output="full"),
    "operator": lambda f, losses, p: ntk_vp(f, p, X)(np.ones((N, 3), np.float32)),
    "features": lambda f, losses, p: ntk_sketch(f, p, X, 8).features,
    "blocks": lambda f, losses, p: kfac(f, p, X).operator()(p),
    "Hessian": lambda f, losses, p: hvp_fn(lambda p, x: losses(p, x).sum(), p, X)(p),
    "Gauss-Newton": lambda f, losses, p: ggn_vp_fn(f, lambda z, _: jnp.square(z).sum(), p, X)(p),
    "form": lambda f, losses, p: quadratic_form(losses, p, X, p),
    "own forms": lambda f, losses, p: layer_forms(losses, p, X, p, block="diagonal"),
    "joint forms": lambda f, losses, p: layer_forms(losses, p, X, p, block="joint"),
    "trace": lambda f, losses, p: trace(hvp_fn(lambda p, x: losses(p, x).sum(), p, X)).value,
}


@pytest.mark.parametrize("what", OF_NUMBERS)
def test_a_parameter_may_be_a_number_of_python(what):
    def f(p, x):
        return p["scale"] * jnp.tanh(x @ p["w"])

    def losses(p, xs):
        return jnp.square(f(p, xs)).sum(-1)

    given, wanted = (OF_NUMBERS[what](f, losses, {"scale": scale, "w": W}) for scale in (0.5, jnp.asarray(0.5)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), given, wanted)
