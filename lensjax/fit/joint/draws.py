"""Joint draws of all models' curves from the joint fit.

Drawn are the coefficients of slopes; curves at any sizes follow from them, so that questions about other sizes cost
little. Models are drawn in blocks, to bound memory.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lensjax.fit.joint.curves import Fitted, own_coefficients, values
from lensjax.fit.joint.hierarchy import Conditional, Observations, cholesky, integrals, last_size, shared_moments
from lensjax.fit.joint.slopes import SlopePrior, slopes_of

STEEPEST = 1.0  # slope to come, in nats of log loss per octave: no draw's loss falls by more than a factor of e
BLOCK = 16  # models


class DrawnCurves(NamedTuple):
    """S draws of the curves of m models under each of P priors.

    Attributes:
      rows: which models.
      obs, fitted: of them.
      mean, away: posterior mean of their coefficients, and how far draws are from it.
      slopes: to come, with coefficients further from their mean by the factor of widening.
      noise: normal, of curves and of runs.
    """

    rows: slice
    obs: Observations
    fitted: Fitted
    mean: Float[np.ndarray, "P m q"]
    away: Float[np.ndarray, "P m S q"]
    slopes: Float[np.ndarray, "P m S T"]
    noise: Float[np.ndarray, "P m S 2"]

    def log_losses(
        self, x: Float[np.ndarray, "#m G"], widening: Float[np.ndarray, " M"], dof: float
    ) -> Float[np.ndarray, "P m G S"]:
        """Log losses that runs would have at `x`, of all models or of each, less the fit's centre."""
        last, scales, octaves = last_size(self.obs), self.fitted.scales, self.slopes.shape[-1]
        known = values(self.obs, self.fitted, self.mean, x)
        curve = known.gain @ self.away.mT
        curve += known.mean[..., None]
        ahead = integrals(x, octaves) - integrals(np.minimum(x, last[:, None]), octaves)
        curve -= ahead @ self.slopes.mT
        # Jumps to come have Student's variance, and so has the noise of a run.
        jumps = scales.jump[:, None, None] ** 2 * np.clip(x - last[:, None], 0.0, 1.0)
        run = np.sqrt((scales.noise[:, None, None] ** 2 + jumps) * dof / (dof - 2))
        curve += np.stack([known.sd, widening[self.rows, None] * run], axis=-1) @ self.noise.mT
        return curve


def _normals(seed: tuple[int, ...], terms: int, priors: int, draws: int) -> Float[np.ndarray, "P S terms"]:
    """Standard normal numbers in pairs of draws that add to 0; those of a term stay with more terms."""
    drawn = np.random.default_rng(seed).standard_normal((terms, priors, -(-draws // 2)))
    return np.moveaxis(np.concatenate([drawn, -drawn], axis=2)[..., :draws], 0, -1)


def shared_draws(
    obs: Observations,
    given: Conditional,
    covariate_noise: Float[np.ndarray, "*b S Kq"],
    family_noise: Float[np.ndarray, "*b U S q"],
) -> Float[np.ndarray, "*b M S q"]:
    """S joint draws, over models, of the coefficients of `shared_moments`, from standard normal noise.

    The noise of families is of those U of whom there are models, by their number.
    """
    *batch, draws, _ = covariate_noise.shape
    q, covariates = family_noise.shape[-1], obs.covariates.shape[1]
    used, place = np.unique(obs.family, return_inverse=True)
    covariate = covariate_noise @ cholesky(given.covariate_covariance).mT + given.covariate_mean[..., None, :]
    gain = given.family_gain[..., used, :, :].reshape(*batch, len(used) * q, -1)  # one product, not one a family
    explained = (gain @ covariate.mT).reshape(*batch, len(used), q, draws).mT
    family = family_noise @ cholesky(given.family_covariance[..., used, :, :]).mT
    family += given.family_mean[..., used, None, :] - explained
    terms = covariate.reshape(*batch, draws, covariates, -1).swapaxes(-3, -2)
    drawn: np.ndarray = obs.covariates @ terms.reshape(*batch, covariates, -1)
    drawn = drawn.reshape(*batch, len(obs.x), draws, -1)
    drawn += family[..., place, :, :]
    return drawn


def draw_curves(
    obs: Observations,
    prior: SlopePrior,
    fitted: Fitted,
    widening: Float[np.ndarray, " M"],
    draws: int,
    seed: int,
    models: Int[np.ndarray, " C"] | None = None,
) -> Iterator[DrawnCurves]:
    """Draws of all curves, in blocks of models, or of the blocks that hold some of them."""
    priors, q, covariates = len(prior.names), fitted.scales.model.shape[-1], fitted.given.covariate_mean.shape[-1]
    of_covariates = _normals((seed, 0), covariates, priors, draws)
    starts = range(0, len(obs.x), BLOCK) if models is None else np.unique(models // BLOCK * BLOCK).tolist()
    for start in starts:
        rows = slice(start, min(start + BLOCK, len(obs.x)))
        some, part = obs.of(rows), fitted.of_models(rows)
        of_families = [_normals((seed, 1, family), q, priors, draws) for family in np.unique(some.family).tolist()]
        of_models = [_normals((seed, 2, model), 2 + q, priors, draws) for model in range(rows.start, rows.stop)]
        noise = np.stack(of_models, axis=1)
        own = own_coefficients(some, part)
        middle, _ = shared_moments(some, part.given)
        shared = shared_draws(some, part.given, of_covariates, np.stack(of_families, axis=1)) - middle[..., None, :]
        away = shared @ own.gain.mT + noise[..., 2:] @ own.root.mT
        wide = own.mean[..., None, :] + widening[rows, None, None] * away
        slopes = np.minimum(slopes_of(prior, wide), STEEPEST)
        yield DrawnCurves(rows, some, part, own.mean, away, slopes, noise[..., :2])
