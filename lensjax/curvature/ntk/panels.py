"""Halves of symmetric kernels."""

import itertools
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

_PANELS = 4


def by_panels(n: int, symmetric: bool, least: int, product: Callable[[slice, slice], Array]) -> Array:
    """The kernel of rows and columns of examples, of which about half is computed if it is symmetric.

    Args:
      n: Examples of the rows.
      symmetric: Whether columns are the same examples.
      least: Fewest examples of a panel.
      product: The kernel of some rows and columns.
    """
    panels = min(n // least, _PANELS) if symmetric else 1
    if panels < 2:
        return product(slice(None), slice(None))
    edges = [n * i // panels for i in range(panels + 1)]
    kernel: Array | None = None
    for start, end in itertools.pairwise(edges):
        panel = product(slice(start, end), slice(start, None))
        kernel = jnp.zeros((n, *panel.shape[1:]), panel.dtype) if kernel is None else kernel
        kernel = kernel.at[start:end, start:].set(panel)
        kernel = kernel.at[end:, start:end].set(turned(panel[:, end - start :]))
    assert kernel is not None
    return kernel


def turned(kernel: Array) -> Array:
    """[m, n, …] of a kernel [n, m, …]; pairs of outputs change their order too."""
    other = kernel.swapaxes(0, 1)
    return other.swapaxes(2, 3) if kernel.ndim == 4 else other
