from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensjax.curves.laws import LAWS, lensllm, power, rectified, vanilla

INF = float("inf")
FORMULAS = {
    "power": lambda d, B, beta, E: B / d**beta + E,
    "vanilla": lambda d, B, beta, E, alpha: (B / d**beta + E) ** alpha,
    "rectified": lambda d, B, D_l, beta, E: B / (D_l + d**beta) + E,
    "lensllm": lambda d, B, F, beta, E: B / (F + d**beta) + E,
}
RANGES = {"B": (1e-3, 1e9), "D_l": (1e-3, 1e9), "F": (1e-3, 1e9), "E": (1e-3, 5.0), "beta": (0.02, 2.0)}
RANGES["alpha"] = (0.1, 5.0)
EXAMPLES = st.one_of(st.sampled_from([0, 1, 10**15]), st.integers(1, 10**15))
each_law = pytest.mark.parametrize("name", LAWS)


def log_uniform(low, high):
    return st.floats(np.log(low), np.log(high)).map(lambda x: float(np.exp(x)))


@st.composite
def parameters(draw, name, zeros=True):
    """Natural parameters of a law; D_l, F and E are sometimes exactly 0."""
    values = {}
    for parameter in LAWS[name].parameters:
        values[parameter] = draw(log_uniform(*RANGES[parameter]))
        if zeros and parameter in ("D_l", "F", "E") and draw(st.booleans()):
            values[parameter] = 0.0
    return values


@partial(jax.jit, static_argnums=0)
def evaluate(name, log_d, arguments):
    return LAWS[name].log_loss(log_d, **arguments)


@partial(jax.jit, static_argnums=0)
def gradients(name, log_d, arguments):
    """d log L by log D and by every argument."""
    return jax.grad(partial(evaluate, name), argnums=(0, 1))(log_d, arguments)


def expected(name, d, values):
    with np.errstate(divide="ignore"):
        return np.log(FORMULAS[name](np.float64(d), **values))


@each_law
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_float32_agrees_with_the_formula_in_float64(name, data):
    values, d = data.draw(parameters(name)), data.draw(EXAMPLES)
    got = evaluate(name, jnp.log(jnp.float32(d)), LAWS[name].arguments(values))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected(name, d, values), rtol=1e-5, atol=3e-5)


@each_law
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_loss_never_increases_with_examples(name, data):
    values = data.draw(parameters(name))
    sizes = jnp.asarray([-INF, *np.linspace(0, np.log(1e15), 40)], dtype=jnp.float32)
    log_loss = np.asarray(evaluate(name, sizes, LAWS[name].arguments(values)))
    assert not np.isnan(log_loss).any()
    # D = 0 may be infinite; further on, equal losses may differ by rounding.
    assert np.all(log_loss[1:] <= log_loss[:-1] + 1e-5 * (1 + np.abs(log_loss[1:])))


@each_law
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_gradients_are_never_nan(name, data):
    values, d = data.draw(parameters(name)), data.draw(EXAMPLES)
    by_d, by_argument = gradients(name, jnp.log(jnp.float32(d)), LAWS[name].arguments(values))
    assert np.isfinite(by_d)
    assert all(np.isfinite(g) for g in by_argument.values())


@each_law
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_gradients_agree_with_finite_differences(name, data):
    values, d = data.draw(parameters(name, zeros=False)), data.draw(EXAMPLES.filter(bool))
    with jax.enable_x64(True):
        log_d, arguments, step = jnp.log(jnp.float64(d)), LAWS[name].arguments(values), 1e-5
        by_d, by_argument = gradients(name, log_d, arguments)
        up, down = (evaluate(name, log_d + h, arguments) for h in (step, -step))
        np.testing.assert_allclose(by_d, (up - down) / (2 * step), rtol=1e-4, atol=1e-6)
        for argument, gradient in by_argument.items():
            up, down = (evaluate(name, log_d, arguments | {argument: arguments[argument] + h}) for h in (step, -step))
            np.testing.assert_allclose(gradient, (up - down) / (2 * step), rtol=1e-4, atol=1e-6)


def test_pretrained_model_costs_b_over_d_l_plus_e():
    zero = rectified(-INF, log_b=jnp.log(6.0), log_d_l=jnp.log(2.0), beta=0.5, log_e=jnp.log(1.0))
    np.testing.assert_allclose(jnp.exp(zero), 4, rtol=1e-6)
    assert power(-INF, log_b=0.0, beta=0.5, log_e=0.0) == INF
    assert vanilla(-INF, log_b=0.0, beta=0.5, log_e=0.0, alpha=2.0) == INF


def test_gradient_at_zero_examples_is_the_limit():
    arguments = {"log_b": 1.0, "log_d_l": 0.5, "beta": 0.4, "log_e": 0.2}
    by_d, at_zero = gradients("rectified", -INF, arguments)
    _, near = gradients("rectified", -80.0, arguments)
    assert by_d == 0
    assert at_zero["beta"] == 0
    np.testing.assert_allclose(
        [at_zero[k] for k in ("log_b", "log_d_l", "log_e")],
        [near[k] for k in ("log_b", "log_d_l", "log_e")],
        rtol=1e-6,
    )


@pytest.mark.parametrize("log_d", [-INF, 0.0, 5.0, 34.5])
def test_gradient_of_a_zero_parameter_is_zero(log_d):
    _, by = gradients("rectified", log_d, {"log_b": 1.0, "log_d_l": 0.5, "beta": 0.4, "log_e": -INF})
    assert by["log_e"] == 0
    assert by["log_b"] == 1
    _, by = gradients("rectified", 5.0, {"log_b": 1.0, "log_d_l": -INF, "beta": 0.4, "log_e": 0.1})
    assert by["log_d_l"] == 0


def test_second_derivative_where_both_terms_are_equal():
    """A kink at the crossing of the two terms would be found here."""
    with jax.enable_x64(True):
        slope = jax.grad(jax.grad(lambda x: power(x, log_b=0.0, beta=0.5, log_e=0.0)))
        np.testing.assert_allclose(slope(0.0), 0.5**2 / 4, rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_laws_nest(data):
    values, d = data.draw(parameters("rectified")), data.draw(EXAMPLES)
    log_d = jnp.log(jnp.float32(d))
    arguments = LAWS["rectified"].arguments(values)
    log_d_l = arguments.pop("log_d_l")
    straight = power(log_d, **arguments)
    assert lensllm(log_d, log_f=log_d_l, **arguments) == rectified(log_d, log_d_l=log_d_l, **arguments)
    assert rectified(log_d, log_d_l=-INF, **arguments) == straight
    assert vanilla(log_d, alpha=1.0, **arguments) == straight


def test_arguments_broadcast():
    log_d, log_b = jnp.linspace(0, 10, 5)[None, :], jnp.zeros((3, 1))
    assert rectified(log_d, log_b=log_b, log_d_l=1.0, beta=jnp.full((3, 1), 0.5), log_e=-INF).shape == (3, 5)
    assert power(log_d, log_b=log_b, beta=0.5, log_e=-INF).shape == (3, 5)


@each_law
def test_jit_and_vmap_agree_with_broadcasting(name):
    law = LAWS[name]
    arguments = law.arguments(dict.fromkeys(law.parameters, 0.5))
    sizes = jnp.log(jnp.asarray([0.0, 1.0, 1e15]))
    mapped = jax.vmap(lambda x: evaluate(name, x, arguments))(sizes)
    np.testing.assert_allclose(mapped, law.log_loss(sizes, **arguments), rtol=1e-6)


def test_local_slope_runs_from_zero_to_beta():
    arguments = {"log_b": 2.0, "log_d_l": 3.0, "beta": 0.4, "log_e": -INF}

    def slope(log_d, **changes):
        return -jax.grad(lambda x: rectified(x, **arguments | changes))(log_d)

    np.testing.assert_allclose(slope(-INF), 0)
    np.testing.assert_allclose(slope(3.0 / 0.4), 0.2, rtol=1e-5)  # at the knee, half of β
    np.testing.assert_allclose(slope(60.0), 0.4, rtol=1e-5)
    np.testing.assert_allclose(slope(60.0, log_e=0.0), 0, atol=1e-6)


def test_arguments_take_logs_of_scales_only():
    arguments = LAWS["vanilla"].arguments({"B": np.e, "beta": 0.3, "E": 0.0, "alpha": 2.0, "rmse": 1.0})
    assert set(arguments) == {"log_b", "beta", "log_e", "alpha"}
    np.testing.assert_allclose(arguments["log_b"], 1, rtol=1e-6)
    assert arguments["log_e"] == -INF
    np.testing.assert_allclose(arguments["beta"], 0.3, rtol=1e-6)
