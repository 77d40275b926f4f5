"""Forms that check themselves: wrong ones are found, and mended."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensjax.core.errors import InputError
from lensjax.curvature.form_checks import WrongFormError
from lensjax.curvature.hvp import layer_forms, quadratic_form
from lensjax.curvature.jaxpr.taylor import _Taylor

RANDOM = np.random.default_rng(0)
PARAMS = {"layers": RANDOM.normal(size=(2, 3, 3)).astype(np.float32), "b": RANDOM.normal(size=3).astype(np.float32)}
V = {name: RANDOM.normal(size=leaf.shape).astype(np.float32) for name, leaf in PARAMS.items()}
XS = RANDOM.normal(size=(6, 3)).astype(np.float32)


def make(mix=0.0):
    """Losses that nothing is known of yet; with `mix`, of examples that see each other."""

    def losses(p, xs):
        h, _ = jax.lax.scan(lambda h, w: (jnp.exp(-jnp.square(h @ w)), None), xs + mix * xs.mean(0), p["layers"])
        return (h * p["b"] - mix * h.mean(0)).sum(axis=1) + jnp.exp(p["b"]).sum()

    return losses


@pytest.fixture
def wrong_rule(monkeypatch):
    """The second derivative of an exponential is 10 % too large."""
    right = _Taylor.rules["exp"]

    def rule(self, equation, inputs, key):
        (y,) = right(self, equation, inputs, key)
        return [(*y[:2], 1.1 * y[2])]

    monkeypatch.setitem(_Taylor.rules, "exp", rule)


@pytest.mark.parametrize("mix", [0.0, 0.5])
def test_right_forms_pass(mix):
    losses = make(mix)
    for f in (losses, lambda p, xs: losses(p, xs).mean()):
        quadratic_form(f, PARAMS, XS, V)
        layer_forms(f, PARAMS, XS, V, block="diagonal")


@pytest.mark.usefixtures("wrong_rule")
@pytest.mark.parametrize("scalar", [False, True])
def test_a_wrong_form_is_refused_or_mended(scalar):
    losses = make()
    f = (lambda p, xs: losses(p, xs).sum()) if scalar else losses
    with pytest.raises(WrongFormError, match=r"vᵀHv of the parameters.* on_mismatch='dense' to have that"):
        quadratic_form(f, PARAMS, XS, V)
    expected = quadratic_form(f, PARAMS, XS, V, mode="reverse")
    np.testing.assert_allclose(quadratic_form(make(), PARAMS, XS, V, on_mismatch="dense").sum(), np.sum(expected), 1e-5)
    assert abs(quadratic_form(f, PARAMS, XS, V, verify=False) - expected).max() > 1e-2  # nobody looked


@pytest.mark.usefixtures("wrong_rule")
def test_wrong_blocks_are_refused_by_name_or_mended():
    with pytest.raises(WrongFormError, match=r"vᵀHv of (b|layers, layer \d,) of example \d is"):
        layer_forms(make(), PARAMS, XS, V, block="diagonal")
    losses = make()
    mended = layer_forms(losses, PARAMS, XS, V, block="diagonal", on_mismatch="dense")
    hessian = jax.hessian(lambda p: losses(p, XS)[4])(PARAMS)
    np.testing.assert_allclose(mended["b"][4], V["b"] @ hessian["b"]["b"] @ V["b"], rtol=1e-4)
    block = hessian["layers"]["layers"][1, :, :, 1]
    np.testing.assert_allclose(
        mended["layers"][1, 4], np.einsum("ij,ijkl,kl", V["layers"][1], block, V["layers"][1]), rtol=1e-4
    )


def test_loops_that_cannot_be_run_backward_are_checked_forward():
    def loss(p, x):
        return jax.lax.while_loop(lambda s: s[0] < x.sum(), lambda s: (s[0] + 1, s[1] * s[1]), (0, p["b"][0]))[1]

    form = quadratic_form(loss, PARAMS, np.ones((1, 1)), V)
    np.testing.assert_allclose(form, 2 * V["b"][0] ** 2, rtol=1e-5)


def test_what_to_do_has_two_ways():
    with pytest.raises(InputError, match="'raise' or 'dense'"):
        quadratic_form(make(), PARAMS, XS, V, on_mismatch="ignore")
