"""Shapes of local slopes: how the slope of an average model runs, and how models deviate from it.

Each is a prior belief about v(x) = -d log L / d log2 D, x octaves above the smallest measured size, in the file that is
named after it. The joint fitter averages over those that `JointSettings.priors` names.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from lensjax.core.registry import Registry

CENTRE = 6.0  # octaves above the smallest size, mid-way along a typical ladder
USUAL_SLOPE = 0.05  # nats of log loss per octave


class Medians(NamedTuple):
    """Median standard deviations a priori of a shape's S coefficients and, last, of its path, by who deviates.

    They are in units of the usual slope, or of whatever the coefficients are of.

    Attributes:
      shared: what all models have in common.
      model, family: a model's own deviations, and its family's.
      covariate: deviations for one standard deviation of a covariate.
    """

    shared: tuple[float, ...]
    model: tuple[float, ...]
    family: tuple[float, ...]
    covariate: tuple[float, ...]


@dataclass(frozen=True)
class Shape:
    """A prior belief about local slopes.

    Attributes:
      slopes: (P numbers of the population, octaves T) → slope of an average model in each octave, in nats of log loss,
        and the basis of S coefficients by which models deviate from it, T × S. Traced by JAX.
      path: octaves T → lower Cholesky factor of the covariance of a random path, T × T, by which any slope may drift
        in units of the average one.
      medians: of the deviations.
      centre: prior means of the P numbers, which are learned; each has the prior standard deviation of log amplitudes.
    """

    slopes: Callable[[Float[Array, " P"], int], tuple[Float[Array, " T"], Float[Array, "T S"]]]
    path: Callable[[int], Float[np.ndarray, "T T"]]
    medians: Medians
    centre: Float[np.ndarray, " P"] = field(default_factory=lambda: np.zeros(0))


SHAPES: Registry[Shape] = Registry("slope prior", __name__, "lensjax.laws")


def middles(octaves: int) -> Float[np.ndarray, " T"]:
    """x in the middle of each octave."""
    return np.arange(octaves) + 0.5


def wiener_path(octaves: int) -> Float[np.ndarray, "T T"]:
    """A Wiener process, with standard deviation 1 after four octaves."""
    x = middles(octaves)
    return np.linalg.cholesky(np.minimum(x[:, None], x) / 4)


def smooth_path(octaves: int) -> Float[np.ndarray, "T T"]:
    """An integrated Wiener process."""
    x = middles(octaves)
    low, gap = np.minimum(x[:, None], x), np.abs(x[:, None] - x)
    return np.linalg.cholesky((low**3 / 3 + gap * low**2 / 2) / 64 + 1e-12 * np.eye(octaves))


def drifting(path: Callable[[int], np.ndarray], *trends: Callable[[np.ndarray], np.ndarray]) -> Shape:
    """A constant slope from which models deviate by a level, a path, and at most one trend, a function of x."""

    def slopes(_: Float[Array, " P"], octaves: int) -> tuple[Float[Array, " T"], Float[Array, "T S"]]:
        basis = np.stack([np.ones(octaves), *(trend(middles(octaves)) for trend in trends)], axis=1)
        return jnp.full(octaves, USUAL_SLOPE), jnp.asarray(USUAL_SLOPE * basis)

    def of(level: float, trend: float, path: float) -> tuple[float, ...]:
        return (level, *[trend] * len(trends), path)

    medians = Medians(of(0.7, 0.5, 0.2), of(0.4, 0.2, 0.15), of(0.3, 0.15, 0.1), of(0.2, 0.1, 0.05))
    return Shape(slopes, path, medians)
