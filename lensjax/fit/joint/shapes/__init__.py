"""Shapes of local slopes: how the slope of an average model runs, and how models deviate from it.

Each is a prior belief about v(x) = -d log L / d log2 D, x octaves above the smallest measured size, in the file that is
named after it. The joint fitter averages over those that `JointSettings.priors` names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lensjax.core.registry import Registry

CENTRE = 6.0  # octaves above the smallest size, mid-way along a typical ladder
USUAL_SLOPE = 0.05  # nats of log loss per octave
SOFTNESS = 0.5  # usual slopes, below which `soft_slope` bends; 1 has the same errors on two public tasks, more on one
LARGEST = 30.0  # of the log of a slope, far beyond any that losses can have; exponentials stay finite
USUAL_LEVEL = SOFTNESS * np.log(np.expm1(1 / SOFTNESS))  # where `soft_slope` has the usual slope


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
    """A prior belief about local slopes, which are positive: more data does not raise a loss.

    Attributes:
      slopes: (S numbers, a path over T octaves) → the slope in each octave, in nats of log loss. Numbers
        broadcast with the path, whose last axis is that of octaves; what is in front of it are models and draws. The
        path in an octave changes the slope in that octave alone.
      path: octaves T → lower Cholesky factor of the covariance of the path, by which slopes drift.
      medians: of the deviations of the numbers from `centre`, and of the path from 0.
      centre: the S numbers of a usual model.
    """

    slopes: Callable[[Float[np.ndarray, "S *b 1"], Float[np.ndarray, "*b T"]], Float[np.ndarray, "*b T"]]
    path: Callable[[int], Float[np.ndarray, "T T"]]
    medians: Medians
    centre: Float[np.ndarray, " S"]


SHAPES: Registry[Shape] = Registry("slope prior", __name__, "lensjax.laws")


def middles(octaves: int) -> Float[np.ndarray, " T"]:
    """x in the middle of each octave."""
    return np.arange(octaves) + 0.5


def wiener_path(octaves: int) -> Float[np.ndarray, "T T"]:
    """A Wiener process, with standard deviation 1 after four octaves."""
    x = middles(octaves)
    return np.linalg.cholesky(np.minimum(x[:, None], x) / 4)


def damped_path(octaves: int, time: float = 3.0) -> Float[np.ndarray, "T T"]:
    """The integral of an Ornstein–Uhlenbeck process: a trend that is forgotten after `time` octaves."""
    x = middles(octaves) / time
    low, gap = np.minimum(x[:, None], x), np.abs(x[:, None] - x)
    covariance = 2 * low - 1 + np.exp(-x[:, None]) + np.exp(-x) - np.exp(-gap)
    at = middles(4)[-1] / time
    return np.linalg.cholesky(covariance / (2 * at - 2 + 2 * np.exp(-at)) + 1e-12 * np.eye(octaves))


def softplus(u: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
    """log(1 + exp(u))."""
    soft: np.ndarray = np.maximum(u, 0) + np.log1p(np.exp(-np.abs(u)))
    return soft


def soft_slope(u: Float[np.ndarray, "*b T"]) -> Float[np.ndarray, "*b T"]:
    """Positive slopes, linear in u where they are steep; where they are flat, a fall of u shrinks them by a factor."""
    return USUAL_SLOPE * SOFTNESS * softplus(u / SOFTNESS)
