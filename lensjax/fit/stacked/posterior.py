"""The joint posterior with its medians stacked: averaged with those of simpler methods, and its widths recalibrated.

Beyond each model's largest measured size D_i, the median log loss is the joint fit's level there less a weighted mean
of the falls that the components predict (see `lensjax.fit.stacked.weights`),

    m_i(D) = m_i(D_i) - w_0 fall_0i(D) - Σ_c w_c rate_ci log2(D / D_i),

and deviations from the median are the joint fit's times

    s_i(D) = √(τ² + ζ² Σ_c w_c (fall_ci - mean)² / sd_i²),

so that they are wider where components disagree, and from an octave beyond D_i on further times e^λ below the median
and e^-λ above it: curves fall further than foreseen more often than less far. Models' errors stay as correlated as the
joint fit has them. That is a map of each model's log loss at each size, so that quantiles, draws and moments are all of
one distribution.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtr

from lensjax.fit.joint.moments import JointMoments, Together
from lensjax.fit.joint.posterior import JointPosterior
from lensjax.fit.posterior import DRAWS, CurvePosterior, Losses

_TINY = 1e-20  # variance of a log loss that is known


def pool(
    falls: Float[np.ndarray, " components *points"],
    log_sd: Float[np.ndarray, " *points"],
    weights: Float[np.ndarray, " components"],
    width: float,
    disagreement: float,
) -> tuple[Float[np.ndarray, " *points"], Float[np.ndarray, " *points"]]:
    """The weighted mean of falls, and the factor s of deviations from the median; see the top of the module."""
    mean = np.tensordot(weights, falls, 1)
    spread = np.tensordot(weights, (falls - mean) ** 2, 1)
    return mean, np.sqrt(width**2 + disagreement**2 * spread / log_sd**2)


class Map(NamedTuple):
    """A model's log loss at a size: `stacked`, plus deviations from `middle` times `below` or `above`.

    Attributes:
      middle, stacked: medians of the joint fit and of the stack.
      below, above: factors of deviations to either side of the median.
    """

    middle: Float[np.ndarray, "*n"]
    stacked: Float[np.ndarray, "*n"]
    below: Float[np.ndarray, "*n"]
    above: Float[np.ndarray, "*n"]

    def at(self, *index: Any) -> "Map":
        """That of some models and sizes."""
        return Map(*(part[index] for part in self))

    def __call__(self, log_loss: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Log losses by the stack of those by the joint fit, in whose place they are put."""
        log_loss -= self.middle
        log_loss *= self.above
        np.multiply(log_loss, self.below / self.above, out=log_loss, where=log_loss < 0)
        log_loss += self.stacked
        return log_loss

    def moments(
        self, mean: Float[np.ndarray, "P C"], variance: Float[np.ndarray, "P C"]
    ) -> tuple[Float[np.ndarray, "P C"], Float[np.ndarray, "P C"], Float[np.ndarray, "P C"]]:
        """Mean and variance of what Gaussian log losses become, and the factor of their covariances with others.

        The factor is the mean slope of the map, by Stein's lemma exact for a covariance with what is not mapped.
        """
        sd = np.sqrt(np.maximum(variance, _TINY))
        away = mean - self.middle
        high = ndtr(away / sd)
        density = sd * np.exp(-((away / sd) ** 2) / 2) / np.sqrt(2 * np.pi)
        square = away**2 + sd**2
        part_below, part_above = away * (1 - high) - density, away * high + density
        first = self.below * part_below + self.above * part_above
        second = self.below**2 * (square * (1 - high) - away * density)
        second += self.above**2 * (square * high + away * density)
        slope = self.below * (1 - high) + self.above * high
        return self.stacked + first, np.maximum(second - first**2, slope**2 * variance), slope


@dataclass(frozen=True, repr=False)
class StackedPosterior(CurvePosterior):
    """Posterior over the curves of M models; made by `lensjax.fit.stacked.weights.stack`.

    Attributes:
      joint: the joint fit.
      last: largest measured size of each model, in examples.
      weights: of the joint fit, and of C simpler components.
      rates: fall of log loss per octave of the latter.
      width: τ.
      disagreement: ζ.
      skew: λ.
    """

    joint: JointPosterior
    last: Float[np.ndarray, " M"]
    weights: Float[np.ndarray, " C+1"]
    rates: Float[np.ndarray, "C M"]
    width: float
    disagreement: float
    skew: float

    @property
    def models(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the models."""
        return self.joint.models

    @property
    def unit(self) -> int:  # type: ignore[override]
        """Smallest measured size."""
        return self.joint.unit

    @property
    def horizon(self) -> int:  # type: ignore[override]
        """Largest size that can be asked about."""
        return self.joint.horizon

    @property
    def widening(self) -> float:  # type: ignore[override]
        """Factor by which the joint fit's predictions are wider than modelled."""
        return self.joint.widening

    @property
    def centre(self) -> float:
        """Log loss that is taken off `moments`."""
        return self.joint.centre

    def predict(self, examples: int | Float[np.ndarray, " G"]) -> Losses:
        """See `CurvePosterior.predict`."""
        losses = self.joint.predict(examples)
        mapped = self._map(np.atleast_1d(np.asarray(examples, dtype=np.float64)), losses)
        return Losses(losses.models, losses.examples, *(np.exp(mapped(np.log(part))) for part in losses.parts))

    def sample(self, examples: int, draws: int = DRAWS, seed: int = 0) -> Float[np.ndarray, "draws M"]:
        """See `CurvePosterior.sample`."""
        losses = self.joint.predict(examples)
        mapped = self._map(np.array([float(examples)]), losses).at(slice(None), 0)
        drawn = self.joint.sample(examples, draws, seed)
        np.log(drawn, out=drawn)
        return np.exp(mapped(drawn), out=drawn)

    def moments(self, target: int, model: Int[np.ndarray, " C"], examples: Int[np.ndarray, " C"]) -> JointMoments:
        """See `JointPosterior.moments`."""
        joint = self.joint.moments(target, model, examples)
        sizes, place = np.unique(np.append(target, examples), return_inverse=True)
        mapped = self._centred(sizes)
        targets = mapped.at(slice(None), place[0]).moments(joint.target_mean, joint.target_variance)
        points = mapped.at(model, place[1:]).moments(joint.point_mean, joint.point_variance)
        return joint._replace(
            target_mean=targets[0],
            target_variance=targets[1],
            point_mean=points[0],
            point_variance=points[1],
            covariance=joint.covariance * points[2][:, :, None] * targets[2][:, None, :],
        )

    def together(self, model: Int[np.ndarray, " V"], examples: Int[np.ndarray, " V"]) -> Together:
        """See `JointPosterior.together`."""
        joint = self.joint.together(model, examples)
        sizes, size = np.unique(examples, return_inverse=True)
        variance = np.diagonal(joint.covariance, axis1=1, axis2=2)
        mean, variance, slope = self._centred(sizes).at(model, size).moments(joint.mean, variance)
        covariance = joint.covariance * slope[:, :, None] * slope[:, None, :]
        itself = np.arange(len(model))
        covariance[:, itself, itself] = variance
        return joint._replace(mean=mean, covariance=covariance)

    def _map(self, sizes: Float[np.ndarray, " G"], losses: Losses) -> Map:
        """The map at G sizes, where the joint fit predicts `losses`."""
        middle, octaves = np.log(losses.loss), np.maximum(np.log2(sizes / self.last[:, None]), 0)
        level = self._level()[:, None]
        joint = np.where(octaves > 0, level - middle, 0.0)
        falls = np.concatenate([joint[None], self.rates[:, :, None] * octaves])
        mean, scale = pool(falls, losses.log_sd, self.weights, self.width, self.disagreement)
        skew = np.exp(self.skew * np.minimum(octaves, 1))
        return Map(middle, np.where(octaves > 0, level - mean, middle), scale * skew, scale / skew)

    def _centred(self, sizes: Int[np.ndarray, " G"]) -> Map:
        """The map of log losses less `centre`."""
        mapped = self._map(sizes.astype(np.float64), self.joint.predict(sizes))
        return mapped._replace(middle=mapped.middle - self.centre, stacked=mapped.stacked - self.centre)

    def _level(self) -> Float[np.ndarray, " M"]:
        """Median log loss of the joint fit at each model's largest measured size."""
        sizes, place = np.unique(self.last, return_inverse=True)
        level: Float[np.ndarray, " M"] = np.log(self.joint.predict(sizes).loss[np.arange(len(place)), place])
        return level
