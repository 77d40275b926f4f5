"""Rectified laws of all models at once, their parameters drawn from one population: a nested Laplace approximation.

The curve of model i is L = B / (D_l + D^β) + E. Relative to the loss at one size D_m, in the middle of those
measured, it has four coordinates: log L(D_m), log β, log D_l and logit of E / L(D_m). Each is normal around a
mean that all models share; that of log D_l moves with a feature of the model, here log F(Θ, t) of its kernel:

    log D_l,i = a + b log F_i + ε_i

Noise of log L is Student-t. Given the population's ten numbers, models are independent, and the four
coordinates of each are integrated out by Laplace's method; the numbers themselves are then normal around the
mode of their own posterior (Rue, Martino & Chopin 2009). Maximising over coordinates and population together
would not do: the density has no maximum but at spreads of 0.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from lensjax.curves.laws import rectified
from lensjax.fit.linalg import cholesky, inverse_and_log_det

COORDINATES = 4  # log L(D_m), log β, log D_l, logit ρ
D_L = 2  # which of them log D_l is
NUMBERS = 2 * COORDINATES + 2  # of the population
DOF = 3.0  # of Student's t
LEAST_SPREAD = 1e-6  # of a coordinate: its derivative exists where the population has none
SAFE_STEPS, LAST_STEPS = 20, 20  # of a model's coordinates, at most
CLOSE = 1e-12  # expected gain of such a step, in nats, that ends them
LEAST_CURVATURE = 0.1  # of that of the safe steps
NEWTON_STEPS = 40  # of the population's numbers, at most
ENOUGH = 1e-2  # gradient of the log posterior by standard scores that ends the search
_BLOCK = 20  # populations whose coordinates are drawn at once
DIFFERENCE = 1e-3  # in standard scores, between gradients whose difference is the Hessian


class PaddedCurves(NamedTuple):
    """Curves of M models, padded to n points each; a model of padding has no points.

    Attributes:
      log_d: log of the sizes.
      y: log loss less a constant.
      present: whether a point is real; in padding, the others are any numbers.
      seeds: number of runs behind a point.
      middle: log D_m.
    """

    log_d: Float[Array, "M n"]
    y: Float[Array, "M n"]
    present: Bool[Array, "M n"]
    seeds: Float[Array, "M n"]
    middle: Float[Array, ""]


class Feature(NamedTuple):
    """The feature that b multiplies in log D_l, normal; its spread is 0 where it is known."""

    mean: Float[Array, "*s M"]
    spread: Float[Array, "*s M"]


class Population(NamedTuple):
    """Distribution of the models' coordinates.

    Attributes:
      mean: of log L(D_m), log β, log D_l (at the mean feature) and logit ρ.
      spread: their standard deviations over models.
      b: change of log D_l with the feature.
      noise: scale of a single run's log loss.
    """

    mean: Float[Array, "*s 4"]
    spread: Float[Array, "*s 4"]
    b: Float[Array, "*s"]
    noise: Float[Array, "*s"]


class Prior(NamedTuple):
    """Normal prior of the population's numbers: means, logs of spreads, b and log noise. One with sd 0 is held."""

    centre: Float[Array, " N"]
    sd: Float[Array, " N"]

    def population(self, u: Float[Array, "*s N"]) -> Population:
        """The population at standard scores `u`."""
        numbers = self.centre + self.sd * jnp.where(self.sd > 0, u, 0.0)
        mean, log_spread = numbers[..., :COORDINATES], numbers[..., COORDINATES : 2 * COORDINATES]
        return Population(mean, jnp.exp(log_spread), numbers[..., -2], jnp.exp(numbers[..., -1]))


class Mode(NamedTuple):
    """Where the posterior of the population's standard scores is greatest.

    Attributes:
      u: the standard scores.
      models: those of every model's coordinates there.
      energy: negative log density of the posterior there, up to a constant.
      hessian: of the energy.
    """

    u: Float[Array, " N"]
    models: Float[Array, "M 4"]
    energy: Float[Array, ""]
    hessian: Float[Array, "N N"]


def log_loss(theta: Float[Array, "*s 4"], log_d: Float[Array, "*s"], middle: Float[Array, ""]) -> Float[Array, "*s"]:
    """log L of coordinates `theta` at sizes D."""
    level, log_beta, log_d_l, logit_rho = jnp.moveaxis(theta, -1, 0)
    beta = jnp.exp(log_beta)
    log_b = jax.nn.log_sigmoid(-logit_rho) + jnp.logaddexp(log_d_l, beta * middle)
    log_e = jax.nn.log_sigmoid(logit_rho)
    return level + rectified(log_d, log_b=log_b, log_d_l=log_d_l, beta=beta, log_e=log_e)


@jax.jit
def natural(theta: Float[Array, "*s 4"], middle: Float[Array, ""]) -> dict[str, Float[Array, "*s"]]:
    """B, D_l, β and E of coordinates, D in examples and L in units of the constant that was taken off log L."""
    level, log_beta, log_d_l, logit_rho = jnp.moveaxis(theta, -1, 0)
    beta, loss, rho = jnp.exp(log_beta), jnp.exp(level), jax.nn.sigmoid(logit_rho)
    scale = jnp.exp(jnp.logaddexp(log_d_l, beta * middle))
    return {"B": (1 - rho) * loss * scale, "D_l": jnp.exp(log_d_l), "beta": beta, "E": rho * loss}


class _Model(NamedTuple):
    """One model's curve and feature: a row of `PaddedCurves` and one of `Feature`."""

    log_d: Float[Array, " n"]
    y: Float[Array, " n"]
    present: Bool[Array, " n"]
    seeds: Float[Array, " n"]
    feature: Feature


def _models(curves: PaddedCurves, feature: Feature) -> _Model:
    return _Model(curves.log_d, curves.y, curves.present, curves.seeds, feature)


def _theta(z: Float[Array, "4"], model: _Model, of: Population) -> Float[Array, "4"]:
    """Coordinates at standard scores z given the population."""
    moved = of.b * (jnp.arange(COORDINATES) == D_L)
    mean = of.mean + moved * model.feature.mean
    spread = jnp.sqrt(of.spread**2 + (moved * model.feature.spread) ** 2 + LEAST_SPREAD**2)
    return mean + spread * z


def _residuals(z: Float[Array, "4"], model: _Model, of: Population, middle: Array) -> Float[Array, " n"]:
    """Errors of log loss in units of the noise, 0 in padding."""
    fitted = log_loss(_theta(z, model, of)[None], model.log_d, middle)
    return jnp.where(model.present, (model.y - fitted) * jnp.sqrt(model.seeds) / of.noise, 0.0)


def _energy(z: Float[Array, "4"], model: _Model, of: Population, middle: Array) -> Float[Array, ""]:
    """- log p(y, z), without constants, of one model."""
    r = _residuals(z, model, of, middle)
    scale = jnp.sum(jnp.where(model.present, jnp.log(of.noise) - jnp.log(model.seeds) / 2, 0.0))
    return 0.5 * z @ z + (DOF + 1) / 2 * jnp.sum(jnp.log1p(r**2 / DOF)) + scale


class _Ascent(NamedTuple):
    """State of `_score_mode`; `gain` is about twice what the last step was expected to lower the energy by."""

    z: Float[Array, "4"]
    energy: Array
    damping: Array
    gain: Array
    steps: Array


def _score_mode(start: Float[Array, "4"], model: _Model, of: Population, middle: Array) -> Float[Array, "4"]:
    """The most probable standard scores of one model, differentiable in the population."""
    energy = partial(_energy, model=model, of=of, middle=middle)
    residuals = partial(_residuals, model=model, of=of, middle=middle)

    def step(s: _Ascent) -> _Ascent:
        # Levenberg–Marquardt, first with the curvature of the normal distribution that touches Student's from
        # below, which is safe far away, then with Student's own, which is quick near the mode.
        r, jacobian = residuals(s.z), jax.jacfwd(residuals)(s.z)
        weight = (DOF + 1) / (DOF + r**2)
        own = jnp.maximum((DOF - r**2) / (DOF + r**2), LEAST_CURVATURE)
        curvature = weight * jnp.where(s.steps < SAFE_STEPS, 1.0, own)
        normal = (jacobian.T * curvature) @ jacobian + jnp.eye(COORDINATES)
        inverse, _ = inverse_and_log_det(normal + s.damping * jnp.diag(jnp.diag(normal)))
        gradient = jacobian.T @ (weight * r) + s.z
        z = s.z - inverse @ gradient
        then = energy(z)
        better = then <= s.energy
        return _Ascent(
            z=jnp.where(better, z, s.z),
            energy=jnp.where(better, then, s.energy),
            damping=jnp.where(better, s.damping / 10, jnp.maximum(s.damping, 1e-4) * 10),
            gain=gradient @ inverse @ gradient,
            steps=s.steps + 1,
        )

    def going(s: _Ascent) -> Array:
        return (s.steps < SAFE_STEPS + LAST_STEPS) & (s.gain > CLOSE)

    def solve(_: Callable[[Array], Array], start: Array) -> Array:
        first = _Ascent(start, energy(start), jnp.asarray(1e-2), jnp.asarray(jnp.inf), jnp.asarray(0))
        last: _Ascent = jax.lax.while_loop(going, step, first)
        return last.z

    def tangent(linear: Callable[[Array], Array], y: Array) -> Array:
        inverse: Array = inverse_and_log_det(jax.vmap(linear)(jnp.eye(COORDINATES)))[0]
        return inverse @ y

    return jax.lax.custom_root(jax.grad(energy), start, solve, tangent)


def _information(z: Float[Array, "4"], model: _Model, of: Population, middle: Array) -> Float[Array, "4 4"]:
    """Expected information of the standard scores, which unlike the observed one is always positive."""
    jacobian = jax.jacfwd(partial(_residuals, model=model, of=of, middle=middle))(z)
    return (DOF + 1) / (DOF + 3) * jacobian.T @ jacobian + jnp.eye(COORDINATES)


def evidence(
    curves: PaddedCurves, feature: Feature, of: Population, start: Float[Array, "M 4"]
) -> tuple[Float[Array, ""], Float[Array, "M 4"]]:
    """Log marginal likelihood of all curves given the population, by Laplace's method.

    Returns:
      it, and the most probable standard scores of every model, looked for from `start`.
    """

    def one(model: _Model, start: Array) -> tuple[Array, Array]:
        z = _score_mode(start, model, of, curves.middle)
        _, log_det = inverse_and_log_det(_information(z, model, of, curves.middle))
        return -_energy(z, model, of, curves.middle) - log_det / 2, z

    each, scores = jax.vmap(one)(_models(curves, feature), start)
    constant = jax.scipy.stats.t.logpdf(0.0, DOF) * jnp.sum(curves.present)
    return jnp.sum(each) + constant, scores


class _Newton(NamedTuple):
    """State of `find_mode`."""

    mode: Mode
    gradient: Float[Array, " N"]
    damping: Array
    steps: Array


def prior_mode(models: int) -> Mode:
    """The means of the prior, to start from."""
    zero = jnp.zeros(NUMBERS)
    return Mode(zero, jnp.zeros((models, COORDINATES)), jnp.zeros(()), jnp.eye(NUMBERS))


@jax.jit
def find_mode(curves: PaddedCurves, feature: Feature, prior: Prior, start: Mode) -> Mode:
    """The mode of the population given all curves, by damped Newton steps from another one's standard scores.

    Hessians are differences of gradients: to differentiate once more would take longer to compile than all the rest.
    """
    shifts = DIFFERENCE * jnp.eye(NUMBERS + 1, NUMBERS, -1)  # the first is none

    def energy(u: Array, models: Array) -> tuple[Array, Array]:
        value, models = evidence(curves, feature, prior.population(u), models)
        return u @ u / 2 - value, models

    def at(u: Array, models: Array) -> tuple[Mode, Array]:
        expand = jax.vmap(jax.value_and_grad(energy, has_aux=True), in_axes=(0, None))
        (energies, scores), gradients = expand(u + shifts, models)
        hessian = (gradients[1:] - gradients[0]) / DIFFERENCE
        return Mode(u, scores[0], energies[0], (hessian + hessian.T) / 2), gradients[0]

    def step(s: _Newton) -> _Newton:
        # Where the damped Hessian is not positive the step may lead uphill, and is damped more.
        inverse, _ = inverse_and_log_det(s.mode.hessian + s.damping * jnp.eye(NUMBERS))
        mode, gradient = at(s.mode.u - inverse @ s.gradient, s.mode.models)
        moved = _Newton(mode, gradient, s.damping / 10, s.steps + 1)
        stayed = s._replace(damping=jnp.maximum(s.damping, 1e-2) * 10, steps=s.steps + 1)
        return jax.tree.map(partial(jnp.where, mode.energy <= s.mode.energy), moved, stayed)

    def going(s: _Newton) -> Array:
        return (s.steps < NEWTON_STEPS) & ((s.steps == 0) | (jnp.max(jnp.abs(s.gradient)) > ENOUGH))

    # The first step goes nowhere, so that one evaluation is compiled, which takes nearly all of the time.
    nowhere = start._replace(energy=jnp.asarray(jnp.inf), hessian=jnp.eye(NUMBERS))
    first = _Newton(nowhere, jnp.zeros(NUMBERS), jnp.asarray(1.0), jnp.asarray(0))
    last: _Newton = jax.lax.while_loop(going, step, first)
    return last.mode


@jax.jit
def draw_coordinates(
    curves: PaddedCurves,
    feature: Feature,
    of: Population,
    start: Float[Array, "R M 4"],
    noise: Float[Array, "R S M 4"],
) -> Float[Array, "R S M 4"]:
    """S draws of every model's coordinates given each of R features and populations.

    Args:
      start: standard scores from which each population's most probable ones are looked for.
      noise: standard normal.
    """

    def one(model: _Model, of: Population, start: Array, noise: Float[Array, "S 4"]) -> Array:
        z = _score_mode(start, model, of, curves.middle)
        covariance, _ = inverse_and_log_det(_information(z, model, of, curves.middle))
        scores = z + noise @ cholesky(covariance).T
        return jax.vmap(lambda score: _theta(score, model, of))(scores)

    def each(args: tuple[Feature, Population, Array, Array]) -> Array:
        feature, of, start, noise = args
        of_models = jax.vmap(one, in_axes=(0, None, 0, 1), out_axes=1)
        return of_models(_models(curves, feature), of, start, noise)

    return jax.lax.map(each, (feature, of, start, noise), batch_size=_BLOCK)
