"""Layers of several kinds of blocks, as stacks of groups that repeat."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache

import jax
from flax import nnx
from jaxtyping import Array, Float

from lensjax.core.pytrees import PyTree
from lensjax.models.layers import Stack
from lensjax.models.memory import through
from lensjax.models.options import Options
from lensjax.models.weights import Stored

Segment = tuple[int, int, int]  # first layer, layers of a group, number of groups
_LONGEST = 16  # layers of a group


class Segments(nnx.Module):
    """Blocks of several kinds one after another: a scan over each run of equal groups.

    Args:
      types: The kind of every layer.
      make: Makes a block of each kind.
    """

    def __init__(
        self,
        types: Sequence[str],
        make: Mapping[str, Callable[[nnx.Rngs], nnx.Module]],
        options: Options,
        rngs: nnx.Rngs,
    ) -> None:
        def stack(first: int, size: int, count: int) -> Stack:
            kinds = tuple(types[first : first + size])
            return Stack(lambda rngs: _Group(kinds, [make[kind](rngs) for kind in kinds]), count, options, rngs)

        self.places = tuple(segments(types))
        self.stacks = nnx.List([stack(*segment) for segment in self.places])

    def __call__(
        self, x: Float[Array, "batch time width"], shared: Mapping[str, tuple[PyTree, ...]], each: PyTree = None
    ) -> Float[Array, "batch time width"]:
        """Pass x through every block, called as block(x, *shared[its kind]), with its part of `each` if there is."""
        for stack, (first, size, count) in zip(self.stacks, self.places, strict=True):

            def grouped(values: Array, first: int = first, size: int = size, count: int = count) -> Array:
                own = values[first : first + size * count]
                return own.reshape(count, size, *values.shape[1:])

            x = stack(x, shared, each=jax.tree.map(grouped, each))
        return x


class _Group(nnx.Module):
    """Blocks one after another."""

    def __init__(self, kinds: tuple[str, ...], blocks: list[nnx.Module]) -> None:
        self.kinds, self.blocks = kinds, nnx.List(blocks)

    def __call__(
        self, x: Float[Array, "batch time width"], shared: Mapping[str, tuple[PyTree, ...]], each: PyTree = None
    ) -> Float[Array, "batch time width"]:
        for place, (kind, block) in enumerate(zip(self.kinds, self.blocks, strict=True)):
            own = () if each is None else (jax.tree.map(lambda values, place=place: values[place], each),)
            x = through(block, x, *shared[kind], *own)
        return x


def segments(types: Sequence[str]) -> list[Segment]:
    """Runs of equal groups that make up a sequence of kinds, with as few blocks to compile as can be."""
    kinds, depth = tuple(types), len(types)

    @cache
    def best(first: int) -> tuple[int, tuple[Segment, ...]]:
        """The fewest blocks for the layers from `first` on, and their segments."""
        if first == depth:
            return 0, ()
        choices = []
        for size in range(1, min(_LONGEST, depth - first) + 1):
            group, count = kinds[first : first + size], 1
            while kinds[first + size * count : first + size * (count + 1)] == group:
                count += 1
            cost, rest = best(first + size * count)
            choices.append((size + cost, ((first, size, count), *rest)))
        return min(choices, key=lambda choice: (choice[0], len(choice[1])))

    for first in range(depth - 1, -1, -1):  # so that no call goes deep
        best(first)
    return list(best(0)[1])


def layer_names(
    types: Sequence[str], blocks: Mapping[str, Mapping[str, str | Stored]], under: str = "", before: int = 0
) -> Iterator[tuple[str, Stored]]:
    """The names of the parameters of all layers, given those of every kind of block.

    Args:
      types: The kind of every layer.
      blocks: By kind, the path within a block → its name in a checkpoint, with "{layer}" in it.
      under: Path of the `Segments`; by default "layers", which is a `Stack` where all layers are of one kind.
      before: Number of layers before them.
    """
    alone = not under and len(set(types)) == 1
    for number, (first, size, _) in enumerate(segments(types)):
        for place in range(size):
            path = "layers/blocks" if alone else f"{under or 'layers'}/stacks/{number}/blocks/blocks/{place}"
            for ours, theirs in blocks[types[first + place]].items():
                stored = theirs if isinstance(theirs, Stored) else Stored(theirs)
                yield f"{path}/{ours}", replace(stored, first=before + first + place, step=size)
