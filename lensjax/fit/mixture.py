"""Quantiles of mixtures of Gaussians, by bisection: a mixture's median is not the mean of its parts' means."""

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, ndtri

HALVINGS = 60  # of the bracket that the parts' own quantiles make


def mixture_quantile(
    mean: Float[np.ndarray, " parts *b"], sd: Float[np.ndarray, " parts *b"], probability: float
) -> Float[np.ndarray, " *b"]:
    """Quantiles of equal mixtures of Gaussians.

    Args:
      mean, sd: of the parts; an sd of 0 is a point.
      probability: between 0 and 1.
    """
    sd = np.maximum(sd, np.finfo(np.float64).tiny)
    parts = mean + ndtri(probability) * sd
    low, high = parts.min(axis=0), parts.max(axis=0)  # the mixture's quantile lies between those of its parts
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        below = ndtr((middle - mean) / sd).mean(axis=0) < probability
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2
