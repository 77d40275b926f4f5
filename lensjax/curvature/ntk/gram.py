"""The kernel of one matrix without forming gradients: (left_r · left_s)(right_r · right_s), summed over pairs of rows.

A matrix that is used several times, as tied embeddings are, has a part for every pair of uses.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from lensjax.curvature.ntk.costs import ROWS, Output
from lensjax.curvature.ntk.factor import Factor, constrain, einsum
from lensjax.curvature.ntk.panels import by_panels, turned
from lensjax.curvature.streaming import wide


def gram(a: Sequence[Factor], b: Sequence[Factor], output: Output, chunk_bytes: int, mesh: Mesh | None = None) -> Array:
    """[n, m, …]; see `lensjax.curvature.ntk.contract.contract`."""
    total: Array | None = None
    for i, j in itertools.product(range(len(a)), range(len(b))):
        if a is b and j < i:  # the part of the pair (j, i), turned
            continue
        part = _pair(a[i], a[i] if a is b and i == j else b[j], output, chunk_bytes, mesh)
        if a is b and i < j:
            part = part + turned(part)
        total = part if total is None else total + part
    assert total is not None
    return total


def _pair(a: Factor, b: Factor, output: Output, chunk_bytes: int, mesh: Mesh | None) -> Array:
    """The part of one use and another."""
    if b.looks_up and not a.looks_up:
        return turned(_pair(b, a, output, chunk_bytes, mesh))
    symmetric = a is b and mesh is None
    if mesh is not None:
        a = jax.tree.map(lambda x: constrain(x, mesh), a)
        b = jax.tree.map(lambda x: constrain(x, mesh, 0), b)

    def products(rows: slice, columns: slice) -> Array:
        some, others = a.some(rows), b.some(columns)
        one = jax.eval_shape(lambda: _sides(Factor(some.left[0], some.right[0]), others, output))
        each = sum(x.size * x.dtype.itemsize for x in one)
        at_once = max(1, chunk_bytes * (1 if mesh is None else mesh.size) // each)

        def example(single: Factor) -> Array:
            return _summed(*_sides(single, others, output), output)

        return jax.lax.map(example, some, batch_size=min(at_once, some.examples))

    return by_panels(a.examples, symmetric, -(-ROWS // a.rows), products)


def _sides(one: Factor, others: Factor, output: Output) -> tuple[Array, Array]:
    """Products of the left sides and of the right sides of an example's rows r and others' rows s.

    Returns:
      Both [k, l, r, m, s]; an axis of outputs of which a side has none is 1 long, and so is k where outputs are summed
      over.
    """
    summed = wide(others.right.dtype)
    if others.looks_up:
        same = (one.left[:, None, None] == others.left) & (others.left >= 0)
        left = same.astype(summed)[None, None]
    elif one.looks_up:
        left = _looked_up(one.left, others.left, output).astype(summed)
    else:
        left = _products(one.left, others.left, output)
    return left, _products(one.right, others.right, output)


def _products(one: Array, others: Array, output: Output) -> Array:
    """[k, l, r, m, s] of vectors [outputs, r, :] and [m, outputs, s, :], of which either may lack outputs."""
    k = "k" if one.ndim == 3 else ""
    other = "" if others.ndim == 3 else "l" if output == "full" else "k"
    kept = "" if output == "trace" and k == other else "".join(dict.fromkeys(k + other))
    found = einsum(f"{k}rq,m{other}sq->{kept}rms", one, others)
    lengths = dict(zip(kept, found.shape, strict=False))
    return found.reshape(lengths.get("k", 1), lengths.get("l", 1), *found.shape[len(kept) :])


def _looked_up(ids: Array, others: Array, output: Output) -> Array:
    """[k, l, r, m, s] of the numbers of others [m, outputs, s, :] at ids [r]; negative ids give 0."""
    taken = jnp.where(ids >= 0, jnp.take(others, jnp.maximum(ids, 0), axis=-1), 0)
    apart = jnp.moveaxis(taken, -1, 0)  # [r, m, s] or [r, m, outputs, s]
    if apart.ndim == 3:
        return apart[None, None]
    outputs = jnp.moveaxis(apart, 2, 0)
    return outputs[None] if output == "full" else outputs[:, None]


def _summed(left: Array, right: Array, output: Output) -> Array:
    """[m], [m, outputs] or [m, outputs, outputs]."""
    products = left * right
    if output == "trace":
        return products.sum(axis=(0, 1, 2, 4))
    summed = products.sum(axis=(2, 4))  # [k, l, m]
    return summed[:, 0].T if output == "diagonal" else jnp.moveaxis(summed, 2, 0)
