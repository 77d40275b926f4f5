"""A slope that goes from one level to another about `CENTRE` and drifts with a damped trend, made positive."""

import numpy as np
from jaxtyping import Float

from lensjax.fit.joint.shapes import CENTRE, SHAPES, USUAL_LEVEL, Medians, Shape, damped_path, middles, soft_slope


def saturating_slope(
    numbers: Float[np.ndarray, "2 *b 1"], path: Float[np.ndarray, "*b T"]
) -> Float[np.ndarray, "*b T"]:
    """Slope in each octave; near `CENTRE` the second number is its rise in four octaves."""
    trend = 3 * np.tanh((middles(path.shape[-1]) - CENTRE) / 3) / 4
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
