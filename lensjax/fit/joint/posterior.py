"""The joint fit's posterior: losses at any size, and the effect of further measurements."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lensjax.core.blas import one_blas_thread
from lensjax.core.errors import InputError
from lensjax.fit.joint.curves import Fitted
from lensjax.fit.joint.draws import DrawnCurves, draw_curves
from lensjax.fit.joint.hierarchy import Observations, last_size
from lensjax.fit.joint.moments import JointMoments, Together, joint_moments, together
from lensjax.fit.joint.slopes import SlopePrior
from lensjax.fit.posterior import DRAWS, CurvePosterior, Losses, draws_for

FAR = 5.0  # scales of noise, or of a jump, from which a point is an outlier
MOMENTS = 1000  # draws of each prior, of which moments are taken
FINE = 128  # sizes at which curves are drawn to find where they cross a loss
FEW = 64  # models, up to which draws of curves are kept
FEW_SIZES = 4  # at which curves end, up to which quantiles there are taken with a sample


class Outlier(NamedTuple):
    """A measured loss far from the rest of its curve."""

    model: str
    examples: int


class _Known(NamedTuple):
    """Of M models at G sizes, in log losses less the fit's centre.

    Attributes:
      ends: medians, and ends of 90 % intervals.
      lowered: what is added to all draws. Where priors disagree on how a curve ended, jumps to come would move the
        median up from where it is at the last measured size; there it stays.
    """

    ends: Float[np.ndarray, "3 #M *G"]
    lowered: Float[np.ndarray, "#M *G"]


@dataclass(frozen=True, repr=False)
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
    observations: Observations
    prior: SlopePrior
    dof: float
    fitted: Fitted
    time: float | None = None
    widening: float = 1.0
    own_widening: Float[np.ndarray, " M"] | None = None

    @property
    def evidence(self) -> float:
        """Log marginal likelihood of the curves, in nats; its mean over the slope priors."""
        return float(np.mean(self.fitted.given.evidence))

    def points(self) -> dict[str, tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]]:
        """Numbers of examples and losses that each model's curve was fitted to."""
        obs = self.observations
        x, y = self.unit * 2.0 ** np.asarray(obs.x), np.exp(np.asarray(obs.y) + self.centre)
        return {
            model: (x[i, seen], y[i, seen])
            for i, (model, seen) in enumerate(zip(self.models, obs.present, strict=True))
        }

    @one_blas_thread()
    def predict(self, examples: int | Float[np.ndarray, " G"]) -> Losses:
        """See `CurvePosterior.predict`: quantiles of the draws that `sample` gives, of `draws_for` so many models."""
        found = self._known(self._octaves(examples)).ends
        return Losses(self.models, self._within(examples), *np.exp(found + self.centre))

    def _known(self, x: Float[np.ndarray, " G"]) -> "_Known":
        """What is known of all models at these octaves, which is remembered."""
        if len(new := np.array([at for at in np.unique(x).tolist() if at not in self._remembered])):
            blocks = [
                self._block(drawn, draws, new) for drawn, draws in self._mixed(new, draws_for(len(self.models)), 0)
            ]
            ends, lowered = (np.concatenate(parts, axis=-2) for parts in zip(*blocks, strict=True))
            for place, at in enumerate(new.tolist()):
                self._remembered[at] = _Known(ends[..., place], lowered[..., place])
        each = [self._remembered[at] for at in x.tolist()]
        if not each:
            return _Known(np.empty((3, len(self.models), 0)), np.empty((len(self.models), 0)))
        return _Known(*(np.stack(parts, axis=-1) for parts in zip(*each, strict=True)))

    @staticmethod
    def _block(drawn: DrawnCurves, losses: Float[np.ndarray, "m G+1 draws"], x: Float[np.ndarray, " G"]) -> "_Known":
        """What draws of a block of models tell: at `x`, and at the last size of each."""
        ends = np.quantile(losses, (0.5, 0.05, 0.95), axis=-1, overwrite_input=True)
        rise = np.maximum(ends[0, :, :-1] - ends[0, :, -1:], 0.0)
        lowered = np.where(x > last_size(drawn.obs)[:, None], -rise, 0.0)
        return _Known(ends[..., :-1] + lowered, lowered)

    @cached_property
    def _remembered(self) -> dict[float, "_Known"]:
        """What is known at sizes that were asked about already, by octaves."""
        return {}

    @one_blas_thread()
    def sample(self, examples: int, draws: int = DRAWS, seed: int = 0) -> Float[np.ndarray, "draws M"]:
        """See `CurvePosterior.sample`; from each prior by its weight."""
        key = (examples, draws, seed)
        if key not in self._sampled:
            x = self._octaves(examples)
            last = np.unique(last_size(self.observations))  # which is asked for next
            lowered = self._known(np.append(x, last) if len(last) <= FEW_SIZES else x).lowered[:, 0]
            blocks = [losses[:, 0].copy() for _, losses in self._mixed(x, draws, seed)]
            drawn = np.exp(np.concatenate(blocks).T + lowered + self.centre)
            self._sampled.clear()
            self._sampled[key] = drawn[np.random.default_rng(seed).permutation(draws)]
        return self._sampled[key].copy()

    @cached_property
    def _sampled(self) -> dict[tuple[int, int, int], Float[np.ndarray, "draws M"]]:
        """The last sample, by its size, number of draws and seed: several methods ask for the same one."""
        return {}

    @property
    def prior_weights(self) -> Float[np.ndarray, " P"]:
        """Share of each prior in the mixture, by the evidence of two curves on average: all are wrong."""
        evidence = self.fitted.given.evidence / max(len(self.models) / 2, 3)
        weights: np.ndarray = np.exp(evidence - evidence.max())
        return weights / weights.sum()

    @property
    def _factors(self) -> Float[np.ndarray, " M"]:
        """By which each model's predictions are wider than modelled."""
        return np.full(len(self.models), self.widening) if self.own_widening is None else self.own_widening

    @cached_property
    def _drawn(self) -> dict[tuple[int, int], list[DrawnCurves]]:
        """Draws of all curves that were asked for already, where models are few, by their number and seed."""
        return {}

    def _curves(self, draws: int, seed: int, models: Int[np.ndarray, " C"] | None) -> Iterable[DrawnCurves]:
        """So many draws of curves under each prior, in blocks of models: of all, or at least of those."""
        few = len(self.models) <= FEW
        known = self._drawn.get((draws, seed))
        if known is None:
            made = self.observations, self.prior, self.fitted, self._factors, draws, seed
            blocks = draw_curves(*made, None if few else models)
            if not few:
                return blocks
            known = self._drawn[draws, seed] = list(blocks)
        return known

    def _by_prior(
        self, x: Float[np.ndarray, " G"], draws: int, seed: int, models: Int[np.ndarray, " C"] | None = None
    ) -> Iterator[tuple[slice, Float[np.ndarray, "P m G draws"]]]:
        """Log losses less `centre` of blocks of models, as many draws from each prior: of all, or at least of those."""
        lowered = self._known(x).lowered
        for drawn in self._curves(draws, seed, models):
            yield drawn.rows, drawn.log_losses(x[None], self._factors, self.dof) + lowered[drawn.rows, :, None]

    def _mixed(
        self, x: Float[np.ndarray, " G"], draws: int, seed: int
    ) -> Iterator[tuple[DrawnCurves, Float[np.ndarray, "m G+1 draws"]]]:
        """Log losses less `centre` of blocks of models, at `x` and at each one's last size, not lowered.

        Those of one prior come after those of another, by their weights.
        """
        each = -(-draws // len(self.prior.names))
        ends = np.round(np.cumsum(self.prior_weights) * draws).astype(int)
        parts = list(zip(np.append(0, ends[:-1]).tolist(), ends.tolist(), strict=True))
        for drawn in self._curves(each, seed, None):
            last = last_size(drawn.obs)[:, None]
            sizes = np.concatenate([np.broadcast_to(x, (len(last), len(x))), last], axis=1)
            by_prior = drawn.log_losses(sizes, self._factors, self.dof)
            losses = np.empty((*sizes.shape, draws))
            for number, (start, end) in enumerate(parts):
                for again in range(start, end, each):  # draws of a prior with much weight are used again
                    stop = min(again + each, end)
                    losses[..., again:stop] = by_prior[number, ..., : stop - again]
            yield drawn, losses

    @one_blas_thread()
    def moments(self, target: int, model: Int[np.ndarray, " C"], examples: Int[np.ndarray, " C"]) -> JointMoments:
        """Joint distribution of log losses at C points and of all models at a target.

        Log losses are less `centre`.

        Args:
          target: size of the target, in examples.
          model, examples: position in `models` and size of each point.

        Raises:
          InputError: a size is outside the fitted range.
        """
        sizes, size = np.unique(examples, return_inverse=True)
        x = self._octaves(np.append(target, sizes))
        modelled = joint_moments(self.observations, self.fitted, x, model, size + 1, self.dof)
        # Slopes are not linear in what is Gaussian: correlations are those to first order, the rest is the draws'.
        target_mean, target_variance = np.empty_like(modelled.target_mean), np.empty_like(modelled.target_variance)
        point_mean, point_variance = np.empty_like(modelled.point_mean), np.empty_like(modelled.point_variance)
        for rows, drawn in self._by_prior(x, MOMENTS, 0):
            at_target, here = drawn[:, :, 0], (model >= rows.start) & (model < rows.stop)
            target_variance[:, rows] = at_target.var(axis=-1)
            target_mean[:, rows] = np.log(np.exp(at_target).mean(axis=-1)) - target_variance[:, rows] / 2
            means, variances = drawn.mean(axis=-1), drawn.var(axis=-1)
            at = model[here] - rows.start, size[here] + 1
            point_mean[:, here], point_variance[:, here] = means[:, *at], variances[:, *at]
        target_scale = np.sqrt(target_variance / modelled.target_variance)
        point_scale = np.sqrt(point_variance / modelled.point_variance)
        covariance = modelled.covariance * point_scale[:, :, None] * target_scale[:, None, :]
        return JointMoments(target_mean, target_variance, point_mean, point_variance, covariance, self.prior_weights)

    @one_blas_thread()
    def together(self, model: Int[np.ndarray, " V"], examples: Int[np.ndarray, " V"]) -> Together:
        """Joint distribution of the log losses of V runs, no two of one model on as many examples; see `moments`.

        Args:
          model, examples: position in `models` and size of each.

        Raises:
          InputError: a size is outside the fitted range.
        """
        sizes, size = np.unique(examples, return_inverse=True)
        x = self._octaves(sizes)
        some, place = np.unique(model, return_inverse=True)
        of_some = self.observations.of(some), self.fitted.of_models(some)
        modelled = together(*of_some, x, place, size, self.dof)
        mean, variance = np.empty_like(modelled.mean), np.empty_like(modelled.mean)
        for rows, drawn in self._by_prior(x, MOMENTS, 0, some):
            here = (model >= rows.start) & (model < rows.stop)
            at = model[here] - rows.start, size[here]
            mean[:, here], variance[:, here] = drawn.mean(axis=-1)[:, *at], drawn.var(axis=-1)[:, *at]
        scale = np.sqrt(variance / np.diagonal(modelled.covariance, axis1=1, axis2=2))
        covariance = modelled.covariance * scale[:, :, None] * scale[:, None, :]
        return Together(mean, covariance, self.prior_weights)

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
        sizes = np.geomspace(self.unit, self.horizon, FINE)
        return sizes, self.predict(sizes)

    def _octaves(self, examples: int | np.ndarray) -> Float[np.ndarray, " G"]:
        return np.log2(self._within(examples) / self.unit)


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
