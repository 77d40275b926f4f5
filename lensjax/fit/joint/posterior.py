"""The joint fit's posterior: losses at any size, and the effect of further measurements."""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from lensjax.core.errors import InputError
from lensjax.curves.table import curve_table
from lensjax.fit.joint import hierarchy
from lensjax.fit.joint.slopes import SlopePrior, slopes_of
from lensjax.fit.linalg import float64_on_cpu
from lensjax.fit.per_model import fit_per_model
from lensjax.fit.posterior import DRAWS, CurvePosterior, Losses

FAR = 5.0  # scales of noise, or of a jump, from which a point is an outlier
STEEPEST = 1.0  # slope to come, in nats of log loss per octave: no draw's loss falls by more than a factor of e
MOMENTS = 1000  # draws of each prior, of which moments are taken
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


class Outlier(NamedTuple):
    """A measured loss far from the rest of its curve."""

    model: str
    examples: int


class JointMoments(NamedTuple):
    """Log losses that would be measured at C points, and of all M models at a target, as if Gaussian under each prior.

    Attributes:
      target_mean, target_variance: of the models at the target; the mean is that of a Gaussian with the expected loss.
      point_mean, point_variance: of the points.
      covariance: of a point with the models at the target.
      shares: of the priors in the mixture; equal ones if None.
    """

    target_mean: Float[Array, "P M"]
    target_variance: Float[Array, "P M"]
    point_mean: Float[Array, "P C"]
    point_variance: Float[Array, "P C"]
    covariance: Float[Array, "P C M"]
    shares: Float[Array, " P"] | None = None


@dataclass(frozen=True)
class JointPosterior(CurvePosterior):
    """Posterior over the curves of M models, a mixture over the slope priors.

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
      widening: factor by which predictions of most models are wider than modelled; see `lensjax.fit.calibration`.
      own_widening: factor of each model, at least `widening`; `widening` for all where there is none.
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
    own_widening: Float[np.ndarray, " M"] | None = None

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

    @property
    def prior_weights(self) -> Float[np.ndarray, " P"]:
        """Share of each prior in the mixture, by the evidence of one curve on average: all are wrong."""
        evidence = np.asarray(self.fitted.given.evidence) / max(len(self.models), 3)
        weights: np.ndarray = np.exp(evidence - evidence.max())
        return weights / weights.sum()

    def _draws(self, x: Float[np.ndarray, " G"], draws: int, seed: int) -> Float[np.ndarray, "draws M G"]:
        """Log losses, from each prior by its weight."""
        drawn = self._by_prior(x, -(-draws // len(self.prior.names)), seed)
        ends = np.searchsorted(np.cumsum(self.prior_weights), (np.arange(draws) + 0.5) / draws)
        prior = np.minimum(np.random.default_rng(seed).permutation(ends), len(drawn) - 1)
        turn = np.zeros(draws, int)
        for number in range(len(drawn)):  # draws of a prior with much weight are used again
            turn[prior == number] = np.arange(np.sum(prior == number)) % drawn.shape[1]
        return drawn[prior, turn]

    def _by_prior(self, x: Float[np.ndarray, " G"], draws: int, seed: int) -> Float[np.ndarray, "P draws M G"]:
        """Log losses, as many draws from each prior."""
        width = 1 if len(x) == 1 else _BLOCK
        padded = np.pad(x, (0, width - len(x)))
        priors, blocks = len(self.prior.names), []
        models, q = self.observations.x.shape[0], self.fitted.given.basis.shape[-1]
        covariates = self.observations.covariates.shape[1]
        own = np.full(len(self.models), self.widening) if self.own_widening is None else self.own_widening
        with float64_on_cpu():
            widening = jnp.asarray(np.pad(own, (0, models - len(own)), constant_values=1.0))
            for number in range(-(-draws // _DRAWN)):  # in blocks, to bound memory
                noise = _Noise(
                    covariate=_normal((seed, number, 0), priors, covariates * q),
                    family=_normal((seed, number, 1), priors, q, models),
                    model=_normal((seed, number, 2), priors, q, models),
                    curve=_normal((seed, number, 3), priors, 2, models),
                )
                drawn = _curves(
                    self.observations, self.prior, self.fitted, jnp.asarray(padded), self.dof, widening, noise
                )
                blocks.append(np.asarray(drawn)[:, :, : len(self.models), : len(x)])
        return np.concatenate(blocks, axis=1)[:, :draws] + self.centre

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
        # Slopes are not linear in what is Gaussian: correlations are those to first order, the rest is the draws'.
        models = len(self.models)
        at_target = self._by_prior(self._octaves(target), MOMENTS, 0)[..., 0] - self.centre
        blocks = [self._by_prior(block, MOMENTS, 0) for block in np.split(x, range(_BLOCK, len(x), _BLOCK))]
        at_points = np.concatenate(blocks, axis=3)[:, :, model, size + 1] - self.centre
        target_variance, point_variance = at_target.var(axis=1), at_points.var(axis=1)
        target_scale = np.sqrt(target_variance / np.asarray(modelled.target_variance)[:, :models])
        point_scale = np.sqrt(point_variance / np.asarray(modelled.point_variance))
        covariance = np.asarray(modelled.covariance)[:, :, :models]
        parts = (
            np.log(np.exp(at_target).mean(axis=1)) - target_variance / 2,
            target_variance,
            at_points.mean(axis=1),
            point_variance,
            covariance * point_scale[:, :, None] * target_scale[:, None, :],
            self.prior_weights,
        )
        with float64_on_cpu():
            return JointMoments(*map(jnp.asarray, parts))

    def outliers(self) -> list[Outlier]:
        """Points `FAR` scales or more from the rest of their curve, by their Student-t weights under all priors."""
        obs, weights, shares = self.observations, self.fitted.weights, self.prior_weights
        x, present = np.asarray(obs.x), np.asarray(obs.present)
        least = (self.dof + 1) / (self.dof + FAR**2)
        found = {
            (int(i), round(float(self.unit * 2 ** x[i, k])))
            for weight in (weights.noise, weights.jump)
            for i, k in np.argwhere((np.tensordot(shares, np.asarray(weight), 1) < least) & present)
        }
        return [Outlier(self.models[i], examples) for i, examples in sorted(found)]

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
        sizes, losses = self._fine_curves
        return np.stack([_first_below(sizes, c, loss) for c in (losses.loss, losses.lower, losses.upper)], axis=1)

    @cached_property
    def _fine_curves(self) -> tuple[Float[np.ndarray, " G"], Losses]:
        """Sizes from `unit` to the horizon, and the losses there."""
        sizes = np.geomspace(self.unit, self.horizon, 4 * _BLOCK)
        return sizes, self.predict(sizes)

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
    last = jnp.max(jnp.where(obs.present, obs.x, 0.0), axis=1)
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
        slopes = jax.vmap(jax.vmap(partial(slopes_of, prior)))(coefficients)
        fall = jnp.einsum("smt,mgt->smg", jnp.minimum(slopes, STEEPEST), ahead)
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
