"""Moments of runs that may be measured, to first order in what is Gaussian under each prior of the joint fit."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lensjax.fit.joint.curves import Extrapolation, Fitted, extrapolate
from lensjax.fit.joint.hierarchy import Observations, shared_moments


class JointMoments(NamedTuple):
    """Log losses that would be measured at C points, and of all M models at a target, as if Gaussian under each prior.

    Attributes:
      target_mean, target_variance: of the models at the target; the mean is that of a Gaussian with the expected loss.
      point_mean, point_variance: of the points.
      covariance: of a point with the models at the target.
      shares: of the priors in the mixture; equal ones if None.
    """

    target_mean: Float[np.ndarray, "P M"]
    target_variance: Float[np.ndarray, "P M"]
    point_mean: Float[np.ndarray, "P C"]
    point_variance: Float[np.ndarray, "P C"]
    covariance: Float[np.ndarray, "P C M"]
    shares: Float[np.ndarray, " P"] | None = None


class Together(NamedTuple):
    """Log losses that V runs would have, as if jointly Gaussian under each of P priors.

    Attributes:
      mean, covariance: of the runs; each has noise of its own.
      shares: of the priors in the mixture; equal ones if None.
    """

    mean: Float[np.ndarray, "P V"]
    covariance: Float[np.ndarray, "P V V"]
    shares: Float[np.ndarray, " P"] | None = None


class _Linear(NamedTuple):
    """Log losses of runs at points, as they follow to first order from what is Gaussian.

    Attributes:
      model, size: of each point; the latter by its position among the sizes that curves were extrapolated to.
      mean, variance: of the runs, noise included.
      gain, rise: how curves follow the coefficients of families and of covariates.
    """

    model: Int[np.ndarray, " C"]
    size: Int[np.ndarray, " C"]
    mean: Float[np.ndarray, "P C"]
    variance: Float[np.ndarray, "P C"]
    gain: Float[np.ndarray, "P C q"]
    rise: Float[np.ndarray, "P C r"]


def _linear(
    obs: Observations,
    fitted: Fitted,
    ahead: Extrapolation,
    model: Int[np.ndarray, " C"],
    size: Int[np.ndarray, " C"],
    dof: float,
) -> _Linear:
    given = fitted.given
    shared, shared_covariance = shared_moments(obs, given)
    noise = fitted.scales.noise[:, None] ** 2 * dof / (dof - 2)
    gain = ahead.gain[:, model, size]
    mean = ahead.offset[:, model, size] + np.sum(gain * shared[:, model], axis=-1)
    # The curve's own variance may be a little below 0 by rounding.
    variance = np.maximum(ahead.covariance[:, model, size, size], 0.0) + noise
    variance = variance + np.sum((gain[..., None, :] @ shared_covariance[:, model])[..., 0, :] * gain, axis=-1)
    direct = (obs.covariates[model][:, :, None] * gain[..., None, :]).reshape(*gain.shape[:2], -1)
    through_family = (gain[..., None, :] @ given.family_gain[:, obs.family[model]])[..., 0, :]
    return _Linear(model, size, mean, variance, gain, direct - through_family)


def _covariances(
    obs: Observations, fitted: Fitted, ahead: Extrapolation, points: _Linear, others: _Linear
) -> Float[np.ndarray, "P C D"]:
    """Covariances of the curves at points with those at others; runs have noise of their own besides."""
    given, family, beside = fitted.given, obs.family[points.model], obs.family[others.model]
    covariance = points.rise @ given.covariate_covariance @ others.rise.mT
    by_family = (points.gain[..., None, :] @ given.family_covariance[:, family])[..., 0, :] @ others.gain.mT
    covariance += np.where(family[:, None] == beside, by_family, 0.0)
    own = ahead.covariance[:, points.model[:, None], points.size[:, None], others.size]
    covariance += np.where(points.model[:, None] == others.model, own, 0.0)
    return covariance


def joint_moments(
    obs: Observations,
    fitted: Fitted,
    x: Float[np.ndarray, " G"],
    model: Int[np.ndarray, " C"],
    size: Int[np.ndarray, " C"],
    dof: float,
) -> JointMoments:
    """Moments of all models at the first of `x`, and of points, each a model and a position in `x`."""
    everyone = np.arange(len(obs.x))
    ahead = extrapolate(obs, fitted.scales, fitted.slopes, fitted.given, x, dof)
    targets = _linear(obs, fitted, ahead, everyone, np.zeros_like(everyone), dof)
    points = _linear(obs, fitted, ahead, model, size, dof)
    covariance = _covariances(obs, fitted, ahead, points, targets)
    return JointMoments(targets.mean, targets.variance, points.mean, points.variance, covariance)


def together(
    obs: Observations,
    fitted: Fitted,
    x: Float[np.ndarray, " G"],
    model: Int[np.ndarray, " V"],
    size: Int[np.ndarray, " V"],
    dof: float,
) -> Together:
    """Moments of runs, each of a model and a position in `x`; no two of the same."""
    ahead = extrapolate(obs, fitted.scales, fitted.slopes, fitted.given, x, dof)
    runs = _linear(obs, fitted, ahead, model, size, dof)
    covariance = _covariances(obs, fitted, ahead, runs, runs)
    itself = np.arange(len(model))
    covariance[:, itself, itself] = runs.variance
    return Together(runs.mean, covariance)
