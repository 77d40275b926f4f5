"""Several shapes of local slopes as arrays, stacked so that all of them are fitted at once.

Shapes with fewer numbers than the others are padded with numbers that they do not use.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lensjax.fit.joint.hierarchy import Slopes, times
from lensjax.fit.joint.shapes import SHAPES

PRIORS = ("lasting", "damped", "saturating", "floor")  # that are averaged by default; they extrapolate differently
NOISE = 0.008  # median sd of noise and of jumps, in log loss
UNUSED = 1e-6  # sd of a coefficient that a shape does not use
_STEP = 1e-5  # of finite differences


@dataclass(frozen=True)
class SlopePrior:
    """P shapes along a leading axis.

    Attributes:
      names: of the shapes, in `SHAPES`.
      path: Cholesky factor of the path's covariance over octaves.
      amplitudes: median sd of C coefficients, the last the path's: model, family, then the covariates, the first one
        shared.
      centre: numbers of a usual model.
    """

    names: tuple[str, ...]
    path: Float[np.ndarray, "P T T"]
    amplitudes: Float[np.ndarray, "P R C"]
    centre: Float[np.ndarray, "P S"]


def slope_priors(octaves: int, covariates: int, names: Sequence[str] = PRIORS) -> SlopePrior:
    """Slope priors by name, stacked along a leading axis.

    Args:
      octaves: T, length of the grid of slopes.
      covariates: K, counting the constant one.
      names: some of `SHAPES`.

    Raises:
      InputError: there is no shape of a name.
    """
    shapes = [SHAPES[name] for name in names]
    rows = ["model", "family", "shared", *["covariate"] * (covariates - 1)]
    coefficients = max(len(shape.medians.shared) for shape in shapes) - 1

    def padded(medians: Sequence[float]) -> list[float]:
        *used, path = medians
        return [*used, *[0.0] * (coefficients - len(used)), path]

    amplitudes = [[padded(getattr(shape.medians, row)) for row in rows] for shape in shapes]
    return SlopePrior(
        names=tuple(names),
        path=np.array([shape.path(octaves) for shape in shapes]),
        amplitudes=np.maximum(np.array(amplitudes), UNUSED),
        centre=np.array([np.pad(shape.centre, (0, coefficients - len(shape.centre))) for shape in shapes]),
    )


def _split(prior: SlopePrior, number: int, coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of one shape, each with an axis for octaves, and its path."""
    shape, count = SHAPES[prior.names[number]], prior.centre.shape[1]
    used = len(shape.centre)
    numbers = np.moveaxis(shape.centre + coefficients[..., :used], -1, 0)[..., None]
    return numbers, coefficients[..., count:] @ prior.path[number].T


def slopes_of(prior: SlopePrior, coefficients: Float[np.ndarray, "P *b q"]) -> Float[np.ndarray, "P *b T"]:
    """Slopes of models whose numbers and paths deviate by the coefficients from the usual, under each prior."""
    slopes = [
        np.asarray(SHAPES[name].slopes(*_split(prior, number, coefficients[number])))
        for number, name in enumerate(prior.names)
    ]
    return np.stack(slopes)


def linearised(prior: SlopePrior, coefficients: Float[np.ndarray, "P M q"]) -> Slopes:
    """Slopes of M models as they depend on the coefficients, to first order about those given."""
    count = prior.centre.shape[1]
    slopes = slopes_of(prior, coefficients)
    basis = np.zeros((*slopes.shape, coefficients.shape[-1]))
    for number, name in enumerate(prior.names):
        shape = SHAPES[name]
        numbers, path = _split(prior, number, coefficients[number])
        for position in range(len(shape.centre)):
            step = np.zeros_like(numbers)
            step[position] = _STEP
            rise = np.asarray(shape.slopes(numbers + step, path)) - np.asarray(shape.slopes(numbers - step, path))
            basis[number, :, :, position] = rise / (2 * _STEP)
        # An octave's slope depends on the path in that octave alone.
        rise = np.asarray(shape.slopes(numbers, path + _STEP)) - np.asarray(shape.slopes(numbers, path - _STEP))
        basis[number, :, :, count:] = (rise / (2 * _STEP))[..., None] * prior.path[number]
    return Slopes(mean=slopes - times(basis, coefficients), basis=basis)
