"""Empirical neural tangent kernels: exact, as operators, and by random projections."""

from lensjax.curvature.ntk.explain import Explanation, explain
from lensjax.curvature.ntk.ntk import ntk, ntk_flops
from lensjax.curvature.ntk.products import ntk_vp
from lensjax.curvature.ntk.sketch import Sketch, SketchPlan, ntk_sketch, sketch_plan

__all__ = ["Explanation", "Sketch", "SketchPlan", "explain", "ntk", "ntk_flops", "ntk_sketch", "ntk_vp", "sketch_plan"]
