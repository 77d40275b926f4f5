"""Scaling laws of fine-tuning: test loss L as a function of the number of training examples D.

Every law maps log D to log L, with L in any unit and D in examples::

    power      L = B / D^β + E
    vanilla    L = (B / D^β + E)^α
    rectified  L = B / (D_l + D^β) + E         Rectified Scaling Law, arXiv 2402.02314
    lensllm    L = B / (F(Θ, t) + D^β) + E     LensLLM, arXiv 2505.03793

They nest: `lensllm` is `rectified` with D_l = F, `rectified` is `power` with D_l = 0, `vanilla` is
`power` with α = 1.

Quantities that span many orders of magnitude enter and leave as logarithms, so float32 serves for any D that a
`CurveTable` can hold. Zero is -inf: D = 0 (the pretrained model), D_l = 0, F = 0 and E = 0 are exact in value
and derivative. Arguments broadcast against each other; exponents are positive.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

Log = Float[ArrayLike, "..."]
Exponent = Float[ArrayLike, "..."]


def rectified(log_d: Log, *, log_b: Log, log_d_l: Log, beta: Exponent, log_e: Log) -> Float[Array, "..."]:
    """log L of the rectified law L = B / (D_l + D^β) + E.

    D_l is what pre-training is worth, in units of D^β: the loss hardly moves while D^β ≪ D_l and falls as a
    power law once D^β ≫ D_l.

    Args:
      log_d: log of the number of training examples; -inf is D = 0.
      log_b: log B.
      log_d_l: log of the pre-learned data size D_l; -inf is D_l = 0, a power law.
      beta: exponent β > 0.
      log_e: log of the irreducible loss E; -inf is E = 0.

    Returns:
      log of the test loss in the unit of B and E, of the broadcast shape of the arguments.
    """
    return _log_add(log_b - _log_add(log_d_l, _log_pow(log_d, beta)), log_e)


def power(log_d: Log, *, log_b: Log, beta: Exponent, log_e: Log) -> Float[Array, "..."]:
    """log L of the power law L = B / D^β + E, infinite at D = 0; arguments and result are those of `rectified`."""
    return _log_add(log_b - _log_pow(log_d, beta), log_e)


def vanilla(log_d: Log, *, log_b: Log, beta: Exponent, log_e: Log, alpha: Exponent) -> Float[Array, "..."]:
    """log L of the vanilla law L = (B / D^β + E)^α, infinite at D = 0.

    Args:
      log_d, log_b, beta, log_e: see `rectified`; here the irreducible loss is E^α.
      alpha: outer exponent α > 0.

    Returns:
      log of the test loss in the unit of B and E, of the broadcast shape of the arguments.
    """
    return _log_pow(power(log_d, log_b=log_b, beta=beta, log_e=log_e), alpha)


def lensllm(log_d: Log, *, log_b: Log, log_f: Log, beta: Exponent, log_e: Log) -> Float[Array, "..."]:
    """log L of the LensLLM law, which is `rectified` with the linearised training residual F(Θ, t) as D_l."""
    return rectified(log_d, log_b=log_b, log_d_l=log_f, beta=beta, log_e=log_e)


class Law(NamedTuple):
    """A law and the names of its parameters in the formula.

    Attributes:
      log_loss: log D → log L.
      parameters: names of the parameters in their natural scale, such as B and β.
    """

    log_loss: Callable[..., Array]
    parameters: tuple[str, ...]

    def arguments(self, parameters: Mapping[str, ArrayLike]) -> dict[str, Array]:
        """Keyword arguments of `log_loss` from natural parameters: B becomes log_b, beta stays beta."""
        scales = {name: jnp.log(parameters[name]) for name in self.parameters if name in _SCALES}
        exponents = {name: jnp.asarray(parameters[name]) for name in self.parameters if name not in _SCALES}
        return {f"log_{name.lower()}": value for name, value in scales.items()} | exponents


_SCALES = frozenset({"B", "D_l", "F", "E"})

LAWS: Mapping[str, Law] = MappingProxyType(
    {
        "power": Law(power, ("B", "beta", "E")),
        "vanilla": Law(vanilla, ("B", "beta", "E", "alpha")),
        "rectified": Law(rectified, ("B", "D_l", "beta", "E")),
        "lensllm": Law(lensllm, ("B", "F", "beta", "E")),
    }
)


@jax.custom_jvp
def _log_add(a: Log, b: Log) -> Array:
    """log(e^a + e^b), differentiable where `jnp.logaddexp` is not: both terms 0, or one of them infinite."""
    return jnp.logaddexp(a, b)


@_log_add.defjvp
def _log_add_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (a, b), (a_dot, b_dot) = primals, tangents
    # inf - inf has no value; of two equal terms each is half of the sum.
    equal = jnp.isinf(a) & (a == b)
    gap = jnp.where(equal, 0, a) - jnp.where(equal, 0, b)
    return _log_add(a, b), jax.nn.sigmoid(gap) * a_dot + jax.nn.sigmoid(-gap) * b_dot


def _log_pow(log_x: Log, exponent: Exponent) -> Array:
    """log(x^p), p > 0. Where x is 0 or infinite so is x^p, whatever p: there the derivative in p is 0."""
    end = jnp.isinf(log_x)
    return jnp.where(end, jax.lax.stop_gradient(exponent) * log_x, exponent * jnp.where(end, 0, log_x))
