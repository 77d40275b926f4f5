"""A slope that goes from one level to another about `CENTRE` and drifts with a damped trend, made positive."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from lensjax.fit.joint.shapes import CENTRE, SHAPES, USUAL_LEVEL, Medians, Shape, damped_path, middles, soft_slope


def saturating_slope(numbers: Float[Array, "2"], path: Float[Array, " T"]) -> Float[Array, " T"]:
    """Slope in each octave; near `CENTRE` the second number is its rise in four octaves."""
    trend = 3 * jnp.tanh((middles(len(path)) - CENTRE) / 3) / 4
    return soft_slope(numbers[0] + numbers[1] * trend + path)


SHAPES.register("saturating")(
    Shape(
        slopes=saturating_slope,
        path=damped_path,
        medians=Medians(
            shared=(0.7, 0.5, 0.2), model=(0.4, 0.2, 0.15), family=(0.3, 0.15, 0.1), covariate=(0.2, 0.1, 0.05)
        ),
        centre=np.array([USUAL_LEVEL, 0.0]),
    )
)
