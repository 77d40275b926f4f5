"""Curvature of models: empirical neural tangent kernels."""
