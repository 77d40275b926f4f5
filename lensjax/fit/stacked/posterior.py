"""The joint posterior with its medians stacked: averaged with those of simpler methods, and its widths recalibrated.

Beyond each model's largest measured size D_i, the median log loss is the joint fit's level there less a sum of the
falls that the components predict (see `lensjax.fit.stacked.weights`), which grows with the octaves from there,

    m_i(D) = m_i(D_i) - (1 + λ min(o, 9)) (u_0 fall_0i(D) + Σ_c u_c rate_ci o),    o = log2(D / D_i),

as curves fall further than foreseen more often than less far, and the more so the further ahead. The shares u are the
components' weights w, unless models are many (see `lensjax.fit.stacked.learned`). Deviations from the median are the
joint fit's times

    s_i(D) = √(τ² + ζ² Σ_c w_c (fall_ci - mean)² / sd_i²),

so that they are wider where components disagree, and models' errors stay as correlated as the joint fit has them. That
is a map of each model's log loss at each size, so that quantiles, draws and moments are all of one distribution.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lensjax.fit.joint.moments import JointMoments, Together
from lensjax.fit.joint.posterior import JointPosterior
from lensjax.fit.posterior import DRAWS, CurvePosterior, Losses

TRIED = 9  # octaves ahead


def pool(
    falls: Float[np.ndarray, " components *points"],
    log_sd: Float[np.ndarray, " *points"],
    weights: Float[np.ndarray, " components"],
    shares: Float[np.ndarray, " components"],
    width: float,
    disagreement: float,
) -> tuple[Float[np.ndarray, " *points"], Float[np.ndarray, " *points"]]:
    """The sum of falls, and the factor s of deviations from the median; see the top of the module."""
    spread = np.tensordot(weights, (falls - np.tensordot(weights, falls, 1)) ** 2, 1)
    return np.tensordot(shares, falls, 1), np.sqrt(width**2 + disagreement**2 * spread / log_sd**2)


def grown(fall: np.ndarray, octaves: Float[np.ndarray, " points"], growth: float | np.ndarray) -> np.ndarray:
    """Falls so many octaves ahead, with the growth λ of the top of the module, which was tried as far as `TRIED`."""
    longer: np.ndarray = (1 + growth * np.minimum(octaves, TRIED)) * fall
    return longer


@dataclass(frozen=True, repr=False)
class StackedPosterior(CurvePosterior):
    """Posterior over the curves of M models; made by `lensjax.fit.stacked.weights.stack`.

    Attributes:
      joint: the joint fit.
      last: largest measured size of each model, in examples.
      weights, shares: w and u, of the joint fit, and of C simpler components.
      rates: fall of log loss per octave of the latter.
      width: τ.
      disagreement: ζ.
      growth: λ.
    """

    joint: JointPosterior
    last: Float[np.ndarray, " M"]
    weights: Float[np.ndarray, " C+1"]
    shares: Float[np.ndarray, " C+1"]
    rates: Float[np.ndarray, "C M"]
    width: float
    disagreement: float
    growth: float

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
        middle = np.log(losses.loss)
        stacked, scale = self._map(np.atleast_1d(np.asarray(examples, dtype=np.float64)), losses)
        parts = (np.exp(stacked + scale * (np.log(part) - middle)) for part in losses.parts)
        return Losses(losses.models, losses.examples, *parts)

    def sample(self, examples: int, draws: int = DRAWS, seed: int = 0) -> Float[np.ndarray, "draws M"]:
        """See `CurvePosterior.sample`."""
        losses = self.joint.predict(examples)
        stacked, scale = self._map(np.array([float(examples)]), losses)
        drawn = self.joint.sample(examples, draws, seed)
        np.log(drawn, out=drawn)
        drawn -= np.log(losses.loss[:, 0])
        drawn *= scale[:, 0]
        drawn += stacked[:, 0]
        return np.exp(drawn, out=drawn)

    def moments(self, target: int, model: Int[np.ndarray, " C"], examples: Int[np.ndarray, " C"]) -> JointMoments:
        """See `JointPosterior.moments`."""
        joint = self.joint.moments(target, model, examples)
        sizes, place = np.unique(np.append(target, examples), return_inverse=True)
        losses = self.joint.predict(sizes)
        middle = np.log(losses.loss) - self.centre
        stacked, scale = self._map(sizes.astype(np.float64), losses)
        stacked = stacked - self.centre
        at_target, at_points = (slice(None), place[0]), (model, place[1:])
        mean, points = joint.target_mean, joint.point_mean
        return joint._replace(
            target_mean=stacked[at_target] + scale[at_target] * (mean - middle[at_target]),
            target_variance=joint.target_variance * scale[at_target] ** 2,
            point_mean=stacked[at_points] + scale[at_points] * (points - middle[at_points]),
            point_variance=joint.point_variance * scale[at_points] ** 2,
            covariance=joint.covariance * scale[at_points][:, None] * scale[at_target],
        )

    def together(self, model: Int[np.ndarray, " V"], examples: Int[np.ndarray, " V"]) -> Together:
        """See `JointPosterior.together`."""
        joint = self.joint.together(model, examples)
        sizes, size = np.unique(examples, return_inverse=True)
        losses = self.joint.predict(sizes)
        middle = np.log(losses.loss) - self.centre
        stacked, scale = self._map(sizes.astype(np.float64), losses)
        at = model, size
        mean = stacked[at] - self.centre + scale[at] * (joint.mean - middle[at])
        return joint._replace(mean=mean, covariance=joint.covariance * scale[at][:, None] * scale[at])

    def _map(
        self, sizes: Float[np.ndarray, " G"], losses: Losses
    ) -> tuple[Float[np.ndarray, "M G"], Float[np.ndarray, "M G"]]:
        """Stacked median log losses, and the factor of deviations from them; `losses` are the joint fit's."""
        middle, octaves = np.log(losses.loss), np.maximum(np.log2(sizes / self.last[:, None]), 0)
        level = self._level()[:, None]
        joint = np.where(octaves > 0, level - middle, 0.0)
        falls = np.concatenate([joint[None], self.rates[:, :, None] * octaves])
        fall, scale = pool(falls, losses.log_sd, self.weights, self.shares, self.width, self.disagreement)
        return np.where(octaves > 0, level - grown(fall, octaves, self.growth), middle), scale

    def _level(self) -> Float[np.ndarray, " M"]:
        """Median log loss of the joint fit at each model's largest measured size."""
        sizes, place = np.unique(self.last, return_inverse=True)
        level: Float[np.ndarray, " M"] = np.log(self.joint.predict(sizes).loss[np.arange(len(place)), place])
        return level
