"""Several shapes of local slopes as arrays, stacked so that one compiled program fits all of them.

Shapes with fewer coefficients or numbers than the others are padded with coefficients that they do not use.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from lensjax.fit.joint.hierarchy import Slopes
from lensjax.fit.joint.shapes import SHAPES, Shape

PRIORS = ("law", "wiener", "smooth", "saturating")  # that are averaged by default; they extrapolate differently
NOISE = 0.008  # median sd of noise and of jumps, in log loss
UNUSED = 1e-6  # sd of a coefficient that a shape does not use


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("which", "path", "amplitudes", "centre"),
    meta_fields=("names",),
)
@dataclass(frozen=True)
class SlopePrior:
    """One shape, or several along a leading axis.

    Attributes:
      which: position of the shape in `names`.
      path: Cholesky factor of the path's covariance over octaves.
      amplitudes: median sd of C coefficients, the last the path's: model, family, then the covariates, the first one
        shared.
      centre: prior means of the population's numbers.
      names: of all shapes that are stacked.
    """

    which: Int[Array, ""]
    path: Float[Array, "T T"]
    amplitudes: Float[Array, "R C"]
    centre: Float[Array, " P"]
    names: tuple[str, ...]


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
    numbers = max(len(shape.centre) for shape in shapes)

    def padded(medians: Sequence[float]) -> list[float]:
        *used, path = medians
        return [*used, *[0.0] * (coefficients - len(used)), path]

    amplitudes = [[padded(getattr(shape.medians, row)) for row in rows] for shape in shapes]
    return SlopePrior(
        which=jnp.arange(len(shapes)),
        path=jnp.asarray([shape.path(octaves) for shape in shapes]),
        amplitudes=jnp.maximum(jnp.asarray(amplitudes), UNUSED),
        centre=jnp.asarray([np.pad(shape.centre, (0, numbers - len(shape.centre))) for shape in shapes]),
        names=tuple(names),
    )


def population_slopes(prior: SlopePrior, numbers: Float[Array, " P"]) -> Slopes:
    """Population slope and basis of deviations; a path is scaled by the slope that it deviates from."""
    octaves, coefficients = prior.path.shape[0], prior.amplitudes.shape[-1] - 1

    def of(shape: Shape) -> Callable[[Array], tuple[Array, Array]]:
        def slopes(numbers: Array) -> tuple[Array, Array]:
            mean, basis = shape.slopes(numbers[: len(shape.centre)], octaves)
            return mean, jnp.pad(basis, ((0, 0), (0, coefficients - basis.shape[1])))

        return slopes

    mean, basis = jax.lax.switch(prior.which, [of(SHAPES[name]) for name in prior.names], numbers)
    return Slopes(mean=mean, basis=jnp.concatenate([basis, mean[:, None] * prior.path], axis=1))
