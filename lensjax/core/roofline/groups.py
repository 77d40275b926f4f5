"""Which chips a collective joins, and along which axes of the mesh."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

Groups = Int[np.ndarray, "groups members"]


def replica_groups(attributes: str, chips: int) -> Groups:
    """The groups of a collective, by number of partition.

    Args:
      attributes: Text of an instruction after its operands; its groups are written as lists, as a reshaped and
        transposed range, or as axes of a mesh.
      chips: Number of partitions, which are one group where none is named.

    Raises:
      ValueError: they are written in another way.
    """
    found = re.search(r"replica_groups=(\{\{[\d,{}]*\}\}|\{\}|\[[^ ]*|mesh\[.*?\}(?=,|$))", attributes)
    if found is None or found[1] == "{}":
        return np.arange(chips)[None]
    text = found[1].rstrip(",")
    if text.startswith("{{"):
        rows = [list(map(int, row.split(","))) for row in re.findall(r"\{([\d,]+)\}", text)]
        return np.array(rows)
    if text.startswith("["):
        shape, order = text.split("<=")
        return _iota(order).reshape(_sizes(shape))
    axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", text)}
    device_ids = re.search(r"device_ids=\((.*?\]?(?:T\([\d,]+\))?)\)", text)
    ids = np.arange(chips) if device_ids is None else _iota(device_ids[1])
    along = re.findall(r"'(\w+)'(:\(\d+\)\d+)?", text[text.rindex("{") :])
    if any(part for _, part in along):
        raise ValueError(f"groups along a part of an axis: {text}")
    names = [name for name, _ in along]
    grid = ids.reshape(tuple(axes.values()))
    last = [list(axes).index(name) for name in names]
    rest = [place for place in range(grid.ndim) if place not in last]
    return grid.transpose(*rest, *last).reshape(-1, int(np.prod([axes[name] for name in names], dtype=int)))


def permuted_pairs(attributes: str) -> Groups:
    """The pairs (source, target) of a permutation, those from a chip to itself left out."""
    found = re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", attributes)
    pairs = re.findall(r"\{(\d+),(\d+)\}", found[1] if found else "")
    return np.array([[int(a), int(b)] for a, b in pairs if a != b]).reshape(-1, 2)


def axes_of(groups: Groups, names: Sequence[str], sizes: Sequence[int]) -> tuple[str, ...]:
    """The mesh axes along which members of a group differ."""
    if groups.size == 0:
        return ()
    places = np.unravel_index(groups, tuple(sizes))
    return tuple(name for name, place in zip(names, places, strict=True) if bool(np.any(place != place[:, :1])))


def _iota(text: str) -> Any:
    """A range, reshaped and transposed, as in [2,4]T(1,0); or listed numbers."""
    found = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if found is None:
        return np.array(list(map(int, re.findall(r"\d+", text))))
    shape = _sizes(found[1])
    made = np.arange(int(np.prod(shape))).reshape(shape)
    return (made if found[2] is None else made.transpose(_sizes(found[2]))).reshape(-1)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))
