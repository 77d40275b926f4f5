"""The joint fit's posterior: losses at any size, and the effect of further measurements."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int
from scipy.special import ndtri

from lensjax.core.errors import InputError
from lensjax.curves.table import curve_table
from lensjax.fit.joint import hierarchy
from lensjax.fit.linalg import float64_on_cpu
from lensjax.fit.mixture import mixture_quantile
from lensjax.fit.per_model import fit_per_model
from lensjax.fit.posterior import DRAWS, CurvePosterior, Losses

_BLOCK = 32  # sizes are predicted in blocks of so many, so that one compiled program serves all


class Fitted(NamedTuple):
    """The fit under one prior.

    Attributes:
      scales, slopes: of the hierarchy.
      weights: of single noise terms and jumps.
      given: the hierarchy conditioned on the observations.
    """

    scales: hierarchy.Scales
    slopes: hierarchy.Slopes
    weights: hierarchy.Weights
    given: hierarchy.Conditional


class JointMoments(NamedTuple):
    """Log losses that would be measured at C points, and of all M models at a target; Gaussian under each of P priors.

    Attributes:
      target_mean, target_variance: of the models at the target.
      point_mean, point_variance: of the points.
      covariance: of a point with the models at the target.
    """

    target_mean: Float[Array, "P M"]
    target_variance: Float[Array, "P M"]
    point_mean: Float[Array, "P C"]
    point_variance: Float[Array, "P C"]
    covariance: Float[Array, "P C M"]


@dataclass(frozen=True)
class JointPosterior(CurvePosterior):
    """Posterior over the curves of M models, an equal mixture over the slope priors.

    Made by `lensjax.fit.joint.fitting.fit_joint`. Predictions are of a loss that would be measured: they include the
    jumps and noise of a fine-tuning run that has not happened yet.

    Attributes:
      models: M names.
      unit: smallest measured size, where the grid of octaves begins.
      horizon: largest size that can be asked about.
      centre: log loss that was taken off every observation.
      observations: the curves that were fitted.
      priors: names of the P slope priors that are averaged.
      dof: degrees of freedom of Student's t for jumps.
      fitted: the fits, with a leading axis over priors.
      time: that of the covariate log F(t), where there is one.
      widening: factor by which all predictions are wider than modelled; see `lensjax.fit.calibration.widening`.
    """

    models: tuple[str, ...]
    unit: int
    horizon: int
    centre: float
    observations: hierarchy.Observations
    priors: tuple[str, ...]
    dof: float
    fitted: Fitted
    time: float | None = None
    widening: float = 1.0

    @property
    def evidence(self) -> float:
        """Log marginal likelihood of the curves, in nats; its mean over the slope priors."""
        return float(np.mean(np.asarray(self.fitted.given.evidence)))

    def predict(self, examples: int | Float[np.ndarray, " G"]) -> Losses:
        """See `CurvePosterior.predict`."""
        x = self._octaves(examples)
        padded = np.zeros(max(1, -(-len(x) // _BLOCK)) * _BLOCK)
        padded[: len(x)] = x
        with float64_on_cpu():
            blocks = [
                [
                    np.asarray(moment)
                    for moment in _moments(self.observations, self.fitted, jnp.asarray(block), self.dof)
                ]
                for block in padded.reshape(-1, _BLOCK)
            ]
        mean, variance = (np.concatenate(parts, axis=-1)[..., : len(x)] for parts in zip(*blocks, strict=True))
        median, *ends = (mixture_quantile(mean, np.sqrt(variance), at) for at in (0.5, 0.05, 0.95))
        lower, upper = (median + self.widening * (end - median) for end in ends)
        return Losses(*(np.exp(quantile + self.centre) for quantile in (median, lower, upper)))

    def sample(self, examples: int, draws: int = DRAWS, seed: int = 0) -> Float[np.ndarray, "draws M"]:
        """See `CurvePosterior.sample`; as many draws from each prior."""
        models, (priors, covariate_terms) = len(self.models), self.fitted.given.covariate_mean.shape
        shapes = [(priors, _BLOCK, n) for n in (covariate_terms, models * self.fitted.given.basis.shape[-1], models)]
        rng, blocks = np.random.default_rng(seed), []
        with float64_on_cpu():
            x = jnp.asarray(self._octaves(examples))
            for _ in range(-(-draws // (priors * _BLOCK))):  # in blocks, to bound memory
                noise = [jnp.asarray(_stratified_normal(rng, shape)) for shape in shapes]
                drawn = _draws(self.observations, self.fitted, x, self.dof, *noise)
                blocks.append(np.asarray(drawn).swapaxes(0, 1).reshape(-1, models))
        log_losses = np.concatenate(blocks)[:draws] + self.centre
        if self.widening > 1:
            middle = np.log(self.predict(examples).loss[:, 0])
            log_losses = middle + self.widening * (log_losses - middle)
        return np.exp(log_losses)

    def moments(self, target: int, model: Int[np.ndarray, " C"], examples: Int[np.ndarray, " C"]) -> JointMoments:
        """Joint distribution of log losses at C points and of all models at a target.

        Log losses are less `centre`. Each number of points C is compiled anew.

        Args:
          target: size of the target, in examples.
          model, examples: position in `models` and size of each point.

        Raises:
          InputError: a size is outside the fitted range.
        """
        sizes, size = np.unique(examples, return_inverse=True)
        x = self._octaves(np.append(target, sizes))
        x = np.pad(x, (0, -len(x) % _BLOCK), mode="edge")
        with float64_on_cpu():
            points = jnp.asarray(model), jnp.asarray(size + 1)
            modelled: JointMoments = _joint_moments(self.observations, self.fitted, jnp.asarray(x), *points, self.dof)

            def wider(mean: Float[Array, "P N"], variance: Float[Array, "P N"]) -> Float[Array, "P N"]:
                middle = jnp.asarray(mixture_quantile(np.asarray(mean), np.sqrt(np.asarray(variance)), 0.5))
                return middle + self.widening * (mean - middle)

            return JointMoments(
                target_mean=wider(modelled.target_mean, modelled.target_variance),
                target_variance=self.widening**2 * modelled.target_variance,
                point_mean=wider(modelled.point_mean, modelled.point_variance),
                point_variance=self.widening**2 * modelled.point_variance,
                covariance=self.widening**2 * modelled.covariance,
            )

    def examples_needed(self, loss: float) -> Float[np.ndarray, "M 3"]:
        """Numbers of examples with which each model reaches a loss.

        Args:
          loss: in the unit of the table.

        Returns:
          Median, optimistic and pessimistic number (5 % and 95 %) of each model: infinite where the loss is not reached
          within the horizon, the smallest measured size where it is reached already there.

        Raises:
          InputError: `loss` is not a positive number.
        """
        if not (np.isfinite(loss) and loss > 0):
            raise InputError(f"The loss to reach is {loss}; give a positive number, in the unit of the curves.")
        sizes = np.geomspace(self.unit, self.horizon, 4 * _BLOCK)
        losses = self.predict(sizes)
        return np.stack([_first_below(sizes, c, loss) for c in (losses.loss, losses.lower, losses.upper)], axis=1)

    def law_parameters(self) -> dict[str, Float[np.ndarray, " M"]]:
        """See `CurvePosterior.law_parameters`: the law closest to each median curve, from `unit` to the horizon."""
        sizes = np.unique(np.geomspace(self.unit, self.horizon, 16).round().astype(np.int64))
        curves = curve_table(self.models, sizes, self.predict(sizes).loss)
        return fit_per_model(curves, "rectified").parameters

    def _octaves(self, examples: int | np.ndarray) -> Float[np.ndarray, " G"]:
        return np.log2(self._within(examples) / self.unit)


def _stratified_normal(rng: np.random.Generator, shape: tuple[int, int, int]) -> Float[np.ndarray, "P S N"]:
    """Standard normal noise, of which the S draws of each number fall into S equally probable strata."""
    strata = rng.permuted(np.broadcast_to(np.arange(shape[1])[:, None], shape), axis=1)
    return np.asarray(ndtri((strata + rng.random(shape)) / shape[1]))


def _first_below(
    sizes: Float[np.ndarray, " G"], curves: Float[np.ndarray, "M G"], loss: float
) -> Float[np.ndarray, " M"]:
    """Where each curve first crosses `loss`, by log-linear interpolation."""
    below = curves <= loss
    first = np.argmax(below, axis=1)
    rows, before = np.arange(len(curves)), np.maximum(first - 1, 0)
    drop = np.log(curves[rows, before]) - np.log(curves[rows, first])
    share = np.where(drop > 0, (np.log(curves[rows, before]) - np.log(loss)) / np.where(drop > 0, drop, 1), 0)
    crossing = np.exp((1 - share) * np.log(sizes[before]) + share * np.log(sizes[first]))
    return np.where(below.any(axis=1), crossing, np.inf)


def _variance(curve: Float[Array, "*b"], noise: Float[Array, ""], dof: float) -> Float[Array, "*b"]:
    """Variance of a measured loss, given the curve's own, which may be a little below 0 by rounding."""
    return jnp.maximum(curve, 0.0) + noise**2 * dof / (dof - 2)


@jax.jit
def _moments(
    obs: hierarchy.Observations, fitted: Fitted, x: Float[Array, " G"], dof: float
) -> tuple[Float[Array, "P M G"], Float[Array, "P M G"]]:
    """Mean and variance of log loss under each prior."""

    def one(f: Fitted) -> tuple[Array, Array]:
        ahead = hierarchy.extrapolate(obs, f.scales, f.slopes, f.given, x, dof)
        shared, covariance = hierarchy.shared_moments(obs, f.given)
        mean = ahead.offset + jnp.einsum("mgq,mq->mg", ahead.gain, shared)
        own = _variance(jnp.diagonal(ahead.covariance, axis1=1, axis2=2), f.scales.noise, dof)
        return mean, own + jnp.einsum("mgq,mqr,mgr->mg", ahead.gain, covariance, ahead.gain)

    return jax.lax.map(one, fitted)


@jax.jit
def _draws(
    obs: hierarchy.Observations,
    fitted: Fitted,
    x: Float[Array, "1"],
    dof: float,
    covariate_noise: Float[Array, "P S Kq"],
    family_noise: Float[Array, "P S Mq"],
    own_noise: Float[Array, "P S M"],
) -> Float[Array, "P S M"]:
    """Draws of log loss at the one size `x` under each prior, from standard normal noise."""

    def one(args: tuple[Fitted, Array, Array, Array]) -> Array:
        f, for_covariates, for_families, for_models = args
        ahead = hierarchy.extrapolate(obs, f.scales, f.slopes, f.given, x, dof)
        by_model = for_families.reshape(*for_models.shape, -1)
        shared = hierarchy.shared_draws(obs, f.given, for_covariates, by_model)
        variance = _variance(ahead.covariance[:, 0, 0], f.scales.noise, dof)
        common = ahead.offset[:, 0] + jnp.einsum("mq,smq->sm", ahead.gain[:, 0], shared)
        return common + jnp.sqrt(variance) * for_models

    return jax.lax.map(one, (fitted, covariate_noise, family_noise, own_noise))


@jax.jit
def _joint_moments(
    obs: hierarchy.Observations,
    fitted: Fitted,
    x: Float[Array, " G"],
    model: Int[Array, " C"],
    size: Int[Array, " C"],
    dof: float,
) -> JointMoments:
    """Moments of all models at the first of `x`, and of points, each a model and a position in `x`."""
    everyone = jnp.arange(obs.x.shape[0])
    family = obs.family[model]

    def one(f: Fitted) -> JointMoments:
        ahead = hierarchy.extrapolate(obs, f.scales, f.slopes, f.given, x, dof)
        shared, shared_covariance = hierarchy.shared_moments(obs, f.given)

        def alone(model: Int[Array, " N"], size: Int[Array, " N"]) -> tuple[Array, Array, Array, Array]:
            """Means, variances, and how losses follow the coefficients of families and of covariates."""
            gain = ahead.gain[model, size]
            mean = ahead.offset[model, size] + jnp.einsum("nq,nq->n", gain, shared[model])
            variance = _variance(ahead.covariance[model, size, size], f.scales.noise, dof)
            variance += jnp.einsum("nq,nqr,nr->n", gain, shared_covariance[model], gain)
            direct = jnp.einsum("nk,nq->nkq", obs.covariates[model], gain).reshape(len(gain), -1)
            through_family = jnp.einsum("nqk,nq->nk", f.given.family_gain[obs.family[model]], gain)
            return mean, variance, gain, direct - through_family

        target_mean, target_variance, target_gain, target_rise = alone(everyone, jnp.zeros_like(everyone))
        point_mean, point_variance, point_gain, point_rise = alone(model, size)
        covariance = point_rise @ f.given.covariate_covariance @ target_rise.T
        by_family = jnp.einsum("cq,cqr->cr", point_gain, f.given.family_covariance[family]) @ target_gain.T
        covariance += jnp.where(family[:, None] == obs.family, by_family, 0.0)
        covariance += jnp.where(model[:, None] == everyone, ahead.covariance[model, size, 0][:, None], 0.0)
        return JointMoments(target_mean, target_variance, point_mean, point_variance, covariance)

    return jax.lax.map(one, fitted)
