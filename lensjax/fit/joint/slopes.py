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

PRIORS = ("lasting", "damped", "saturating", "floor")  # that are averaged by default; they extrapolate differently
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
      centre: numbers of a usual model.
      names: of all shapes that are stacked.
    """

    which: Int[Array, ""]
    path: Float[Array, "T T"]
    amplitudes: Float[Array, "R C"]
    centre: Float[Array, " S"]
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

    def padded(medians: Sequence[float]) -> list[float]:
        *used, path = medians
        return [*used, *[0.0] * (coefficients - len(used)), path]

    amplitudes = [[padded(getattr(shape.medians, row)) for row in rows] for shape in shapes]
    return SlopePrior(
        which=jnp.arange(len(shapes)),
        path=jnp.asarray([shape.path(octaves) for shape in shapes]),
        amplitudes=jnp.maximum(jnp.asarray(amplitudes), UNUSED),
        centre=jnp.asarray([np.pad(shape.centre, (0, coefficients - len(shape.centre))) for shape in shapes]),
        names=tuple(names),
    )


def slopes_of(prior: SlopePrior, coefficients: Float[Array, " q"]) -> Float[Array, " T"]:
    """Slopes of a model whose numbers and path deviate by the coefficients from the usual."""
    count = prior.amplitudes.shape[-1] - 1

    def of(shape: Shape) -> Callable[[Array, Array], Array]:
        return lambda numbers, path: shape.slopes(numbers[: len(shape.centre)], path)

    numbers, path = prior.centre + coefficients[:count], prior.path @ coefficients[count:]
    slopes: Array = jax.lax.switch(prior.which, [of(SHAPES[name]) for name in prior.names], numbers, path)
    return slopes


def linearised(prior: SlopePrior, coefficients: Float[Array, "M q"]) -> Slopes:
    """Slopes of M models as they depend on the coefficients, to first order about those given."""
    slopes = jax.vmap(partial(slopes_of, prior))(coefficients)
    basis = jax.vmap(jax.jacfwd(partial(slopes_of, prior)))(coefficients)
    return Slopes(mean=slopes - jnp.einsum("mtq,mq->mt", basis, coefficients), basis=basis)
