"""Empirical neural tangent kernels: exact, as operators, and by random projections."""

from lensjax.curvature.ntk.explain import Explanation, explain
from lensjax.curvature.ntk.ntk import ntk, ntk_flops
from lensjax.curvature.ntk.plan import Resources
from lensjax.curvature.ntk.products import ntk_vp, products_plan
from lensjax.curvature.ntk.sketch import Sketch, ntk_sketch, sketch_plan

__all__ = [
    "Explanation",
    "Resources",
    "Sketch",
    "explain",
    "ntk",
    "ntk_flops",
    "ntk_sketch",
    "ntk_vp",
    "products_plan",
    "sketch_plan",
]
