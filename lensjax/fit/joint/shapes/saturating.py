"""A slope whose log trends from one level to another about `CENTRE`, and drifts with a damped trend."""

import jax.numpy as jnp
import numpy as np

from lensjax.fit.joint.shapes import CENTRE, SHAPES, USUAL_SLOPE, Medians, Shape, damped_path, middles

SHAPES.register("saturating")(
    Shape(
        log_slopes=lambda numbers, octaves: numbers[0] + numbers[1] * 3 / 4 * jnp.tanh((middles(octaves) - CENTRE) / 3),
        path=damped_path,
        medians=Medians(
            shared=(0.7, 0.5, 0.2), model=(0.4, 0.2, 0.15), family=(0.3, 0.15, 0.1), covariate=(0.2, 0.1, 0.05)
        ),
        centre=np.array([np.log(USUAL_SLOPE), 0.0]),
    )
)
