"""The joint fit's posterior: losses at any size, and the effect of further measurements."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from lensjax.core.errors import InputError
from lensjax.curves.table import curve_table
from lensjax.fit.joint import hierarchy
from lensjax.fit.joint.slopes import SlopePrior, log_slopes
from lensjax.fit.linalg import float64_on_cpu
from lensjax.fit.mixture import mixture_quantile
from lensjax.fit.per_model import fit_per_model
from lensjax.fit.posterior import DRAWS, CurvePosterior, Losses

_DRAWN = 250  # draws of each prior in one block
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
      prior: the P slope priors that are averaged.
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
    prior: SlopePrior
    dof: float
    fitted: Fitted
    time: float | None = None
    widening: float = 1.0

    @property
    def evidence(self) -> float:
        """Log marginal likelihood of the curves, in nats; its mean over the slope priors."""
        return float(np.mean(np.asarray(self.fitted.given.evidence)))

    def predict(self, examples: int | Float[np.ndarray, " G"]) -> Losses:
        """See `CurvePosterior.predict`: quantiles of the draws that `sample` gives."""
        x = self._octaves(examples)
        draws = [self._draws(block, DRAWS, 0) for block in np.split(x, range(_BLOCK, len(x), _BLOCK))]
        median, lower, upper = np.quantile(np.concatenate(draws, axis=2), (0.5, 0.05, 0.95), axis=0)
        return Losses(np.exp(median), np.exp(lower), np.exp(upper))

    def sample(self, examples: int, draws: int = DRAWS, seed: int = 0) -> Float[np.ndarray, "draws M"]:
        """See `CurvePosterior.sample`; as many draws from each prior."""
        return np.exp(self._draws(self._octaves(examples), draws, seed)[..., 0])

    def _draws(self, x: Float[np.ndarray, " G"], draws: int, seed: int) -> Float[np.ndarray, "draws M G"]:
        """Log losses, in turn from each prior."""
        width = 1 if len(x) == 1 else _BLOCK
        padded = np.pad(x, (0, width - len(x)))
        priors, blocks = len(self.prior.names), []
        models, q = self.observations.x.shape[0], self.fitted.given.basis.shape[-1]
        covariates = self.observations.covariates.shape[1]
        widening = np.ones(models) * self.widening
        with float64_on_cpu():
            for number in range(-(-draws // (priors * _DRAWN))):  # in blocks, to bound memory
                noise = _Noise(
                    covariate=_normal((seed, number, 0), priors, covariates * q),
                    family=_normal((seed, number, 1), priors, q, models),
                    model=_normal((seed, number, 2), priors, q, models),
                    curve=_normal((seed, number, 3), priors, 2, models),
                )
                drawn = np.asarray(
                    _curves(self.observations, self.prior, self.fitted, jnp.asarray(padded), self.dof, widening, noise)
                )
                blocks.append(drawn.swapaxes(0, 1).reshape(-1, *drawn.shape[2:]))
        return np.concatenate(blocks)[:draws, : len(self.models), : len(x)] + self.centre

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


class _Noise(NamedTuple):
    """Standard normal noise: of S draws under each of P priors."""

    covariate: Float[np.ndarray, "P S Kq"]
    family: Float[np.ndarray, "P S q M"]
    model: Float[np.ndarray, "P S q M"]
    curve: Float[np.ndarray, "P S 2 M"]


def _normal(seed: tuple[int, ...], priors: int, terms: int, models: int | None = None) -> Float[np.ndarray, "P S *n"]:
    """Noise whose draws come in pairs that add to 0; that of a term and model stays with more terms and models."""
    pairs = _DRAWN // 2
    of_term = [
        np.random.default_rng((*seed, term)).standard_normal((models or 1, priors, pairs)) for term in range(terms)
    ]
    noise = np.moveaxis(np.stack(of_term), (0, 1), (2, 3))
    noise = np.stack([noise, -noise], axis=2).reshape(priors, _DRAWN, terms, -1)
    return noise if models else noise[..., 0]


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
def _curves(
    obs: hierarchy.Observations,
    prior: SlopePrior,
    fitted: Fitted,
    x: Float[Array, " G"],
    dof: float,
    widening: Float[Array, " M"],
    noise: _Noise,
) -> Float[Array, "P S M G"]:
    """Draws of log losses at `x` under each prior."""
    last = jnp.max(jnp.where(obs.present, obs.x, -jnp.inf), axis=1, initial=0.0)
    student = dof / (dof - 2)

    def one(args: tuple[SlopePrior, Fitted, _Noise]) -> Array:
        prior, f, noise = args
        q = f.slopes.basis.shape[-1]
        by_family = jnp.swapaxes(jnp.asarray(noise.family), 1, 2)
        shared = hierarchy.shared_draws(obs, f.given, jnp.asarray(noise.covariate), by_family)
        own = hierarchy.coefficients(obs, f.scales, f.slopes, f.given, x)
        middle, _ = hierarchy.shared_moments(obs, f.given)
        centre = own.offset + jnp.einsum("mrq,mq->mr", own.gain, middle)
        away = jnp.einsum("mrq,smq->smr", own.gain, shared - middle)
        away += jnp.einsum("mrq,sqm->smr", own.root[:, :, :q], noise.model)
        sd = jnp.linalg.norm(own.root[:, q:, q:], axis=2)
        coefficients = centre[:, :q] + widening[:, None] * away[:, :, :q]
        curve = centre[:, q:] + away[:, :, q:] + noise.curve[:, 0, :, None] * sd
        # Beyond the data slopes are positive, whatever their draws.
        ahead = hierarchy.integrals(x, f.slopes.basis.shape[-2]) - hierarchy.integrals(
            jnp.minimum(x, last[:, None]), f.slopes.basis.shape[-2]
        )
        slopes = jnp.exp(jax.vmap(jax.vmap(partial(log_slopes, prior)))(coefficients))
        fall = jnp.einsum("smt,mgt->smg", slopes, ahead)
        jumps = f.scales.jump**2 * student * jnp.clip(x - last[:, None], 0.0, 1.0)
        run = jnp.sqrt(f.scales.noise**2 * student + jumps)
        return curve - fall + widening[:, None] * run * noise.curve[:, 1, :, None]

    return jax.lax.map(one, (prior, fitted, noise))


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
