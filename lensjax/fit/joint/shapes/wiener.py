"""A constant slope; models deviate by a level, a linear trend and a Wiener path."""

from lensjax.fit.joint.shapes import CENTRE, SHAPES, drifting, wiener_path

SHAPES.register("wiener")(drifting(wiener_path, lambda x: (x - CENTRE) / 4))
