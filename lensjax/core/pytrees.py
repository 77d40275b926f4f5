"""Nested containers of arrays, and the names of their leaves."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax

PyTree: TypeAlias = Any  # a nested container of arrays, which Python's types cannot say
Params = dict[str, Any]  # a model's parameters: nested dicts of arrays
Batch = Mapping[str, Any]  # arrays by name, each with a leading axis of examples


def path_name(path: Sequence[Any]) -> str:
    """The path of a leaf as text: keys with slashes between."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def device_bytes(tree: PyTree) -> int:
    """Bytes that each device holds of a pytree of arrays, or of shapes with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
