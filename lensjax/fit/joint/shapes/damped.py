"""A slope with a damped trend: a level and the integral of an Ornstein–Uhlenbeck process, made positive."""

import numpy as np

from lensjax.fit.joint.shapes import SHAPES, USUAL_LEVEL, Medians, Shape, damped_path, soft_slope

SHAPES.register("damped")(
    Shape(
        slopes=lambda numbers, path: soft_slope(numbers[0] + path),
        path=damped_path,
        medians=Medians(shared=(0.7, 0.2), model=(0.4, 0.15), family=(0.3, 0.1), covariate=(0.2, 0.05)),
        centre=np.array([USUAL_LEVEL]),
    )
)
