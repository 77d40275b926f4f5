"""Nested containers of arrays, and the names of their leaves."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax

PyTree: TypeAlias = Any  # a nested container of arrays, which Python's types cannot say


def path_name(path: Sequence[Any]) -> str:
    """The path of a leaf as text: keys with slashes between."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")
