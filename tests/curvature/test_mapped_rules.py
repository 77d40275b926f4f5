"""Rules of custom_jvps under jax.vmap: those of which JAX transposes the value once it has traced them are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensjax.core.errors import InputError
from lensjax.curvature.hvp import hvp_fn, layer_forms, quadratic_form
from lensjax.curvature.ntk import ntk

RANDOM = np.random.default_rng(0)
W, V = RANDOM.normal(size=(2, 4, 4))
XS = RANDOM.normal(size=(3, 5, 4))


def make(*, loop):
    """A function of its own derivative, twice that of a sine, whose rule has its value from a loop or not."""

    @jax.custom_jvp
    def bent(x):
        return jnp.sin(x)

    def rule(primals, tangents):
        (x,) = primals
        value = jax.lax.scan(lambda c, _: (bent(x), None), jnp.zeros_like(x), None, length=2)[0] if loop else bent(x)
        return value, 2 * jnp.cos(x) * tangents[0]

    bent.defjvp(rule)

    def losses(w, xs):
        def one(x):
            return jnp.sin(jax.vmap(lambda scale: bent(x @ (scale * w)))(jnp.arange(1.0, 3)).sum(0)).sum()

        return jax.vmap(one)(xs)

    return losses


@pytest.mark.parametrize("rows", [2, 5])  # as many as are mapped, so that a transposed value has the right shape
def test_a_rule_with_a_loop_is_refused_where_it_is_mapped(rows):
    losses, xs, message = (
        make(loop=True),
        XS[:, :rows],
        r"custom_jvp bent gives other values than bent itself .* let the",
    )
    for call in (
        lambda: quadratic_form(losses, W, xs, V, verify=False),
        lambda: layer_forms(losses, W, xs, V, block="diagonal", verify=False),
        lambda: hvp_fn(lambda w, xs: losses(w, xs).sum(), W, xs),
        lambda: ntk(lambda w, x: losses(w, x[None])[0], W, xs, verify=False),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_a_rule_that_gives_its_function_for_the_value_is_taken_as_the_message_advises():
    with jax.enable_x64(True):
        losses = make(loop=False)
        hessian = jax.hessian(lambda w: losses(w, XS))(jnp.asarray(W))
        expected = np.einsum("ij,nijkl,kl->n", V, hessian, V)
        np.testing.assert_allclose(quadratic_form(losses, jnp.asarray(W), XS, V, verify=False), expected, rtol=1e-10)


def test_rules_of_jax_are_taken():
    def losses(w, xs):
        def one(x):
            return (jax.nn.softmax(x @ w) * jax.nn.relu(x @ w) + jax.nn.silu(x @ w) * jnp.logaddexp(x, x @ w)).sum()

        return jax.vmap(one)(xs)

    with jax.enable_x64(True):
        expected = np.einsum("ij,nijkl,kl->n", V, jax.hessian(lambda w: losses(w, XS))(jnp.asarray(W)), V)
        np.testing.assert_allclose(quadratic_form(losses, jnp.asarray(W), XS, V), expected, rtol=1e-10)
