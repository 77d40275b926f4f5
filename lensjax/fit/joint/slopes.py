"""Prior beliefs about the local slope v(x) = -d log L / d log2 D, x octaves above the smallest size.

A `SlopePrior` says how the slope of an average model runs and how models deviate from it. Its basis has a few
shape coefficients and, after them, a path: a random function that lets any slope drift. Four priors that
extrapolate differently are averaged:

    law         the rectified law's slope, its parameters learned; models deviate in those parameters
    wiener      constant slope; models deviate by a level, a linear trend and a Wiener path
    smooth      constant slope; models deviate by a level and an integrated Wiener path
    saturating  as smooth, with a trend that levels off after a few octaves

The rectified law L = B / (D_l + D^β) + E enters through three numbers that curves identify well, at CENTRE
octaves: the slope v, the share of the transition behind us s = D^β / (D_l + D^β), and the share of the loss
that no data removes ρ = E / L. From them b = v / (s (1 - ρ)) is β log 2.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import log_sigmoid, sigmoid
from jaxtyping import Bool, Float

from lensjax.fit.joint.hierarchy import Slopes

CENTRE = 6.0  # octaves above the smallest size, mid-way along a typical ladder
USUAL_SLOPE = 0.05  # nats of log loss per octave
SHAPES = 3  # shape coefficients of every prior

PRIORS = ("law", "wiener", "smooth", "saturating")

# Median standard deviations a priori of the shape coefficients and the path, in units of the usual slope, by
# who deviates. A covariate is in units of its own standard deviation.
_LINEAR = {
    "shared": (0.7, 0.5, 0.0, 0.2),
    "model": (0.4, 0.2, 0.0, 0.15),
    "family": (0.3, 0.15, 0.0, 0.1),
    "covariate": (0.2, 0.1, 0.0, 0.05),
}
_LAW = {  # of log v, logit s, logit ρ
    "shared": (0.3, 0.3, 0.3, 0.2),
    "model": (0.4, 0.5, 0.4, 0.15),
    "family": (0.3, 0.4, 0.3, 0.1),
    "covariate": (0.2, 0.25, 0.2, 0.05),
}
LAW_CENTRE = np.array([np.log(USUAL_SLOPE), 0.7, -0.7])  # prior means of log v, logit s, logit ρ; sd 1 each
NOISE = 0.008  # median sd of noise and of jumps, in log loss
UNUSED = 1e-6  # sd of a coefficient that a prior does not use


class SlopePrior(NamedTuple):
    """One prior, as arrays so that several can be stacked and fitted by one compiled program.

    Attributes:
      is_law: whether the population slope and the shape basis are the rectified law's.
      trend: shape basis of a prior that is not the law's.
      path: Cholesky factor of the path's covariance over octaves.
      amplitudes: median sd of the coefficients: model, family, then the covariates, the first one shared.
    """

    is_law: Bool[Array, ""]
    trend: Float[Array, "T 3"]
    path: Float[Array, "T T"]
    amplitudes: Float[Array, "R 4"]


def slope_priors(octaves: int, covariates: int, names: Sequence[str] = PRIORS) -> SlopePrior:
    """Slope priors by name, stacked along a leading axis.

    Args:
      octaves: T, length of the grid of slopes.
      covariates: K, counting the constant one.
      names: some of `PRIORS`.
    """
    x = np.arange(octaves) + 0.5
    low, gap = np.minimum(x[:, None], x), np.abs(x[:, None] - x)
    wiener = np.linalg.cholesky(low / 4)
    integrated = np.linalg.cholesky((low**3 / 3 + gap * low**2 / 2) / 64 + 1e-12 * np.eye(octaves))
    zero, linear, levelling = np.zeros(octaves), (x - CENTRE) / 4, 3 * np.tanh((x - CENTRE) / 3) / 4
    parts = {
        "law": (_LAW, zero, wiener),
        "wiener": (_LINEAR, linear, wiener),
        "smooth": (_LINEAR, zero, integrated),
        "saturating": (_LINEAR, levelling, integrated),
    }
    rows = ["model", "family", "shared", *["covariate"] * (covariates - 1)]
    chosen = [(name, *parts[name]) for name in names]
    return SlopePrior(
        is_law=jnp.asarray([name == "law" for name, *_ in chosen]),
        trend=jnp.asarray([np.stack([np.ones(octaves), trend, zero], axis=1) for _, _, trend, _ in chosen]),
        path=jnp.asarray([path for *_, path in chosen]),
        amplitudes=jnp.maximum(jnp.asarray([[medians[row] for row in rows] for _, medians, _, _ in chosen]), UNUSED),
    )


def law_log_loss(shape: Float[Array, "3"], x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """log L(x) - log L(CENTRE) of the rectified law; `shape` holds log v, logit s and logit ρ."""
    b, s, rho = _rate(shape), shape[1], sigmoid(shape[2])
    reducible = log_sigmoid(-(b * (x - CENTRE) + s)) - log_sigmoid(-s)
    return jnp.log(rho + (1 - rho) * jnp.exp(reducible))


def _rate(shape: Float[Array, "3"]) -> Float[Array, ""]:
    return jnp.exp(shape[0]) / (sigmoid(shape[1]) * (1 - sigmoid(shape[2])))


def _law_slope(shape: Float[Array, "3"], octaves: int) -> Float[Array, " T"]:
    losses = law_log_loss(shape, jnp.arange(octaves + 1.0))
    return losses[:-1] - losses[1:]


def population_slopes(prior: SlopePrior, law: Float[Array, "3"]) -> Slopes:
    """Population slope and basis of deviations; a path is scaled by the slope that it deviates from."""
    octaves = prior.path.shape[0]
    law_slope = _law_slope(law, octaves)
    law_shapes = jax.jacfwd(_law_slope)(law, octaves)
    mean = jnp.where(prior.is_law, law_slope, USUAL_SLOPE)
    shapes = jnp.where(prior.is_law, law_shapes, USUAL_SLOPE * prior.trend)
    return Slopes(mean=mean, basis=jnp.concatenate([shapes, mean[:, None] * prior.path], axis=1))


def law_parameters(
    shape: Float[Array, "*n 3"], log_loss_at_centre: Float[Array, "*n"], log_unit: float
) -> dict[str, Float[Array, "*n"]]:
    """B, D_l, β and E of the rectified law, in examples and nats per token.

    Args:
      shape: log v, logit s and logit ρ.
      log_loss_at_centre: log L at `CENTRE` octaves.
      log_unit: log of the size that x = 0 stands for.
    """
    rate = jnp.exp(shape[..., 0]) / (sigmoid(shape[..., 1]) * (1 - sigmoid(shape[..., 2])))
    beta = rate / jnp.log(2.0)
    log_power = beta * (log_unit + CENTRE * jnp.log(2.0))  # log D^β at the centre
    log_d_l = log_power - shape[..., 1]
    loss = jnp.exp(log_loss_at_centre)
    rho = sigmoid(shape[..., 2])
    b = (1 - rho) * loss * jnp.exp(jnp.logaddexp(log_d_l, log_power))
    return {"B": b, "D_l": jnp.exp(log_d_l), "beta": beta, "E": rho * loss}
