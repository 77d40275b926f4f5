"""A slope that rises to a plateau, and stays: log v = log plateau + log sigmoid(position + rate · (x - CENTRE))."""

import jax.numpy as jnp
import numpy as np
from jax.nn import log_sigmoid

from lensjax.fit.joint.shapes import CENTRE, SHAPES, Medians, Shape, middles, wiener_path

PLATEAU, WIDTH = 0.09, 1.5  # nats of log loss per octave; octaves

SHAPES.register("plateau")(
    Shape(
        log_slopes=lambda numbers, octaves: (
            numbers[0] + log_sigmoid((middles(octaves) - CENTRE + 2 * numbers[1]) / jnp.exp(numbers[2]))
        ),
        path=wiener_path,
        medians=Medians(
            shared=(0.6, 1.0, 0.3, 0.1),
            model=(0.4, 0.8, 0.2, 0.1),
            family=(0.3, 0.6, 0.15, 0.05),
            covariate=(0.2, 0.4, 0.1, 0.05),
        ),
        centre=np.array([np.log(PLATEAU), 0.5, np.log(WIDTH)]),
    )
)
