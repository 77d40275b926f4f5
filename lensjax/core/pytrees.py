"""Nested containers of arrays, and the names of their leaves."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

PyTree: TypeAlias = Any  # a nested container of arrays, which Python's types cannot say
Params = dict[str, Any]  # a model's parameters: nested dicts of arrays
Batch = Mapping[str, Any]  # arrays by name, each with a leading axis of examples


def numeric(tree: PyTree) -> PyTree:
    """The tree with dicts in place of mappings that JAX does not know, and None in place of leaves such as texts.

    What JAX can trace is kept: numbers, arrays of numbers, and keys of random numbers.
    """

    def leaf(x: Any) -> Any:
        if isinstance(x, Mapping):
            return {key: numeric(value) for key, value in x.items()}
        dtype = x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype
        return x if any(jnp.issubdtype(dtype, kind) for kind in (np.number, np.bool_, jax.dtypes.extended)) else None

    return jax.tree.map(leaf, tree)


def shaped_as(x: Any, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """An array's stand-in of another shape, of the type that JAX takes it for: 64 bits only where they are on."""
    return jax.ShapeDtypeStruct(shape, jax.eval_shape(lambda same: same, x).dtype)


def path_name(path: Sequence[Any]) -> str:
    """The path of a leaf as text: keys with slashes between."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def device_bytes(tree: PyTree) -> int:
    """Bytes that each device holds of a pytree of arrays, or of shapes with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
