"""A slope that lasts: its log is a level and a Wiener path."""

import numpy as np

from lensjax.fit.joint.shapes import LARGEST, SHAPES, USUAL_SLOPE, Medians, Shape, wiener_path

SHAPES.register("lasting")(
    Shape(
        slopes=lambda numbers, path: np.exp(np.minimum(numbers[0] + path, LARGEST)),
        path=wiener_path,
        medians=Medians(shared=(0.7, 0.2), model=(0.4, 0.15), family=(0.3, 0.1), covariate=(0.2, 0.05)),
        centre=np.array([np.log(USUAL_SLOPE)]),
    )
)
