"""Curves between and beyond their observations, from the posterior of the hierarchy's coefficients."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lensjax.fit.joint.hierarchy import (
    Conditional,
    Observations,
    Rows,
    Scales,
    Slopes,
    Weights,
    cholesky,
    integrals,
    invert,
    last_size,
    model_mean,
    noise_variance,
    of_points,
    shared_minimum,
    times,
)


class Fitted(NamedTuple):
    """A fit under P priors.

    Attributes:
      scales, slopes: of the hierarchy.
      weights: of single noise terms and jumps.
      given: the hierarchy conditioned on the observations.
    """

    scales: Scales
    slopes: Slopes
    weights: Weights
    given: Conditional

    def of_models(self, rows: Rows) -> "Fitted":
        """The fit of some of the models, with what all share."""
        return self._replace(slopes=self.slopes.of(rows), weights=self.weights.of(rows), given=self.given.of(rows))


class Own(NamedTuple):
    """A model's coefficients given the shared ones: `mean` + `gain` @ (shared less their mean) + `root` @ noise."""

    mean: Float[np.ndarray, "*b M q"]
    gain: Float[np.ndarray, "*b M q q"]
    root: Float[np.ndarray, "*b M q q"]


def own_coefficients(obs: Observations, fitted: Fitted) -> Own:
    """Posterior of all coefficients of a model, its own and those it shares."""
    scales, given = fitted.scales, fitted.given
    information = given.basis.mT @ given.precision @ given.basis
    sd = scales.model[..., None, :]
    identity = np.eye(sd.shape[-1])
    return Own(
        mean=model_mean(obs, scales, given),
        gain=identity - sd[..., :, None] ** 2 * information,
        root=sd[..., :, None] * cholesky(identity - sd[..., :, None] * information * sd[..., None, :]),
    )


class Values(NamedTuple):
    """Curves at G sizes given a model's coefficients: `mean` + `gain` @ (coefficients less theirs), with an `sd`."""

    mean: Float[np.ndarray, "*b M G"]
    gain: Float[np.ndarray, "*b M G q"]
    sd: Float[np.ndarray, "*b M G"]


def _between(
    x: Float[np.ndarray, "M G"], obs: Observations, walk: Float[np.ndarray, "*b M n"]
) -> Float[np.ndarray, "*b M G"]:
    """Var W_i at sizes between observations; that at the first or last outside them."""
    x = np.clip(x, obs.x[:, :1], obs.x[:, -1:])
    after = np.clip(np.sum(obs.x[:, None, :] <= x[:, :, None], axis=-1), 1, max(obs.x.shape[1] - 1, 1))
    rows = np.arange(len(x))[:, None]
    low, high = obs.x[rows, after - 1], obs.x[rows, np.minimum(after, obs.x.shape[1] - 1)]
    share = np.where(high > low, (x - low) / np.where(high > low, high - low, 1.0), 1.0)
    below, above = walk[..., rows, after - 1], walk[..., rows, np.minimum(after, obs.x.shape[1] - 1)]
    between: np.ndarray = below + share * (above - below)
    return between


def values(
    obs: Observations, fitted: Fitted, coefficients: Float[np.ndarray, "*b M q"], x: Float[np.ndarray, "#M G"]
) -> Values:
    """Posterior of curves at `x`, or where a curve ends if that is earlier, given coefficients near their mean."""
    scales, slopes, weights, given = fitted
    at = np.minimum(x, last_size(obs)[:, None])
    path = -integrals(at, slopes.basis.shape[-2])
    walk = _between(at, obs, given.walk)
    inverse = invert(obs, shared_minimum(given.walk, given.walk), noise_variance(obs, weights, scales))
    cross = np.where(obs.present[:, None, :], shared_minimum(walk, given.walk), 0.0)
    regression = cross @ inverse.precision + inverse.level[..., None, :]
    left = given.residual - times(given.basis, coefficients)
    variance = walk + inverse.level_variance[..., None] - np.sum(cross * (cross @ inverse.precision), axis=-1)
    variance = variance - 2 * times(cross, inverse.level)
    gain = path @ slopes.basis
    return Values(
        mean=times(path, slopes.mean) + times(gain, coefficients) + times(regression, left),
        gain=gain - regression @ given.basis,
        sd=np.sqrt(np.maximum(variance, 0.0)),
    )


class Extrapolation(NamedTuple):
    """Curves at G new sizes, given what models share: mean = `offset` + `gain` @ shared coefficients."""

    offset: Float[np.ndarray, "*b M G"]
    gain: Float[np.ndarray, "*b M G q"]
    covariance: Float[np.ndarray, "*b M G G"]


def extrapolate(
    obs: Observations, scales: Scales, slopes: Slopes, given: Conditional, x: Float[np.ndarray, " G"], dof: float
) -> Extrapolation:
    """Posterior of y_i at `x` given the shared coefficients; jumps to come have Student's variance."""
    path = -integrals(x, slopes.basis.shape[-2])
    basis = path @ slopes.basis
    last = last_size(obs)
    ahead = of_points(scales.jump) ** 2 * dof / (dof - 2) * np.maximum(x - last[:, None], 0.0)
    walk = _between(np.minimum(x, last[:, None]), obs, given.walk) + ahead

    cross = (basis * scales.model[..., None, None, :] ** 2) @ given.basis.mT + shared_minimum(walk, given.walk)
    cross = np.where(obs.present[:, None, :], cross, 0.0)
    weights = cross @ given.precision + given.level[..., None, :]
    prior = (basis * scales.model[..., None, None, :] ** 2) @ basis.mT + shared_minimum(walk, walk)
    lost = times(cross, given.level)
    level = given.level_variance[..., None, None] - lost[..., :, None] - lost[..., None, :]
    return Extrapolation(
        offset=times(path, slopes.mean) + times(weights, given.residual),
        gain=basis - weights @ given.basis,
        covariance=prior - cross @ given.precision @ cross.mT + level,
    )
