"""Halves of symmetric kernels."""

import itertools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array

_PANELS = 4


def panels(n: int, symmetric: bool, least: int, most: int = _PANELS) -> list[slice]:
    """Up to `most` panels of about as many examples, `least` or more; one of all where nothing is symmetric."""
    count = max(min(n // least, most), 1) if symmetric else 1
    edges = [n * i // count for i in range(count + 1)]
    return [slice(*pair) for pair in itertools.pairwise(edges)]


def computed_share(n: int, least: int, most: int = _PANELS) -> float:
    """The share of a symmetric kernel that is computed."""
    count = len(panels(n, True, least, most))
    return (count + 1) / (2 * count)


def by_panels(n: int, symmetric: bool, least: int, product: Callable[[slice, slice], Array]) -> Array:
    """The kernel of rows and columns of examples, of which about half is computed if it is symmetric.

    Args:
      n: Examples of the rows.
      symmetric: Whether columns are the same examples.
      least: Fewest examples of a panel.
      product: The kernel of some rows and columns.
    """
    parts = panels(n, symmetric, least)
    if len(parts) < 2:
        return product(slice(None), slice(None))
    kernel: Array | None = None
    for part in parts:
        start, end = part.start, part.stop
        panel = product(part, slice(start, None))
        kernel = jnp.zeros((n, *panel.shape[1:]), panel.dtype) if kernel is None else kernel
        kernel = kernel.at[start:end, start:].set(panel)
        kernel = kernel.at[end:, start:end].set(turned(panel[:, end - start :]))
    assert kernel is not None
    return kernel


def from_upper(blocks: Sequence[Sequence[Array]]) -> Array:
    """A symmetric kernel from its blocks: those of each panel of rows from the diagonal on."""
    count = len(blocks)
    rows = [[blocks[i][j - i] if i <= j else turned(blocks[j][i - j]) for j in range(count)] for i in range(count)]
    return jnp.concatenate([jnp.concatenate(row, axis=1) for row in rows])


def turned(kernel: Array) -> Array:
    """[m, n, …] of a kernel [n, m, …]; pairs of outputs change their order too."""
    other = kernel.swapaxes(0, 1)
    return other.swapaxes(2, 3) if kernel.ndim == 4 else other
