"""Exact empirical neural tangent kernels."""

from lensjax.curvature.ntk.ntk import ntk, ntk_flops, ntk_vp

__all__ = ["ntk", "ntk_flops", "ntk_vp"]
