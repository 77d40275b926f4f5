"""A constant slope; models deviate by a level and an integrated Wiener path."""

from lensjax.fit.joint.shapes import SHAPES, drifting, smooth_path

SHAPES.register("smooth")(drifting(smooth_path))
