"""Models a few at a time: what is computed of each of thousands is held of some."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

BLOCK = 256  # models

Parts = TypeVar("Parts", bound=Iterable[Any])


def blocks(models: int) -> list[slice]:
    """The positions of so many models, a few at a time."""
    return [slice(start, min(start + BLOCK, models)) for start in range(0, models, BLOCK)]


def joined(parts: Sequence[Parts], axes: Sequence[int]) -> Parts:
    """Tuples of arrays, each of some models, as one of all of them.

    Args:
      parts: of one kind, which is made of its members in their order.
      axes: of models, in each of their members.
    """
    if len(parts) == 1:
        return parts[0]
    members = zip(zip(*parts, strict=True), axes, strict=True)
    return type(parts[0])(*(np.concatenate(of_some, axis=axis) for of_some, axis in members))
