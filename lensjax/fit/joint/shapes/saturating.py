"""A constant slope; models deviate by a level, an integrated Wiener path, and a trend that levels off."""

import numpy as np

from lensjax.fit.joint.shapes import CENTRE, SHAPES, drifting, smooth_path

SHAPES.register("saturating")(drifting(smooth_path, lambda x: 3 * np.tanh((x - CENTRE) / 3) / 4))
