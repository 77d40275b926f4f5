"""Exact empirical neural tangent kernels."""
