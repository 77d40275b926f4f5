"""How the evidence of the joint model depends on observations: gradients of scales, and robust weights."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lensjax.fit.joint.hierarchy import (
    Conditional,
    Observations,
    Scales,
    Weights,
    noise_variance,
    octaves_before,
    of_points,
    pulls,
    shared_minimum,
    shared_moments,
    times,
)


class Sensitivity(NamedTuple):
    """How the evidence depends on a model's observations, all else integrated out.

    Attributes:
      pull: the gradient of the evidence by the observations, with its sign turned.
      information: its curvature, the model's block of the inverse covariance of all observations.
    """

    pull: Float[np.ndarray, "*b M n"]
    information: Float[np.ndarray, "*b M n n"]


def sensitivity(obs: Observations, given: Conditional) -> Sensitivity:
    """By what families and covariates are known to be."""
    mean, covariance = shared_moments(obs, given)
    weighted = given.precision @ given.basis
    return Sensitivity(pulls(given, mean), given.precision - weighted @ covariance @ weighted.mT)


def gradient(obs: Observations, weights: Weights, scales: Scales, given: Conditional, seen: Sensitivity) -> Scales:
    """Gradient of the evidence by the log of every scale.

    By Fisher's identity: of independent terms z_j of scale s it is Σ_j (E[z_j² | y] / s² - 1).
    """

    def known(mean: np.ndarray, variance: np.ndarray, sd: np.ndarray) -> np.ndarray:
        excess: np.ndarray = (mean**2 + variance) / np.where(sd > 0, sd, 1.0) ** 2 - 1
        return np.where(sd > 0, excess, 0.0)

    own = times(given.basis.mT, seen.pull) ** 2 - np.sum(given.basis * (seen.information @ given.basis), axis=-2)
    family_mean = given.family_mean - times(given.family_gain, given.covariate_mean[..., None, :])
    through = given.family_gain @ given.covariate_covariance[..., None, :, :]
    family_variance = np.diagonal(given.family_covariance, axis1=-2, axis2=-1) + np.sum(through * given.family_gain, -1)
    covariate = known(
        given.covariate_mean.reshape(scales.covariate.shape),
        np.diagonal(given.covariate_covariance, axis1=-2, axis2=-1).reshape(scales.covariate.shape),
        scales.covariate,
    )
    diagonal = np.diagonal(seen.information, axis1=-2, axis2=-1)
    noise = noise_variance(obs, weights, scales) * (seen.pull**2 - diagonal)
    pairs = seen.pull[..., :, None] * seen.pull[..., None, :] - seen.information
    return Scales(
        model=scales.model**2 * np.sum(own, axis=-2),
        family=np.sum(known(family_mean, family_variance, scales.family[..., None, :]), axis=-2),
        covariate=covariate,
        noise=np.sum(noise, axis=(-2, -1)),
        jump=np.sum(shared_minimum(given.walk, given.walk) * pairs, axis=(-3, -2, -1)),
    )


def update_weights(obs: Observations, weights: Weights, scales: Scales, seen: Sensitivity, dof: float) -> Weights:
    """One expectation step for Student-t noise and jumps seen as Gaussians of unknown precision.

    E[precision] = (ν + 1) / (ν + E[z² | y]), z being the term over its scale (Lange, Little & Taylor 1989).
    """

    def expectation(prior: np.ndarray, weight: np.ndarray, pull: np.ndarray, information: np.ndarray) -> np.ndarray:
        variance = np.where(prior > 0, prior, 1.0) / weight
        second_moment = (variance * pull) ** 2 + variance - variance**2 * information
        return np.where(prior > 0, (dof + 1) / (dof + second_moment / (variance * weight)), 1.0)

    # A jump moves its own and every later observation.
    later = np.triu(np.ones((obs.x.shape[1], obs.x.shape[1])))
    return Weights(
        noise=expectation(
            of_points(scales.noise) ** 2 * obs.noise * obs.present,
            weights.noise,
            seen.pull,
            np.diagonal(seen.information, axis1=-2, axis2=-1),
        ),
        jump=expectation(
            of_points(scales.jump) ** 2 * octaves_before(obs),
            weights.jump,
            seen.pull @ later.T,
            np.sum((later @ seen.information) * later, axis=-1),
        ),
    )
