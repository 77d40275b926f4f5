"""Gradients of many examples as the factors that a kernel needs, made for a part of the parameters at a time."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from numpy.typing import DTypeLike

from lensjax.core.pytrees import PyTree
from lensjax.curvature.jaxpr.linear_uses import Use, with_probes
from lensjax.curvature.jaxpr.program import Program
from lensjax.curvature.jaxpr.walker import Key, aval
from lensjax.curvature.ntk.costs import Output, Sides, Ways, ways
from lensjax.curvature.ntk.factor import Factor, constrain


@dataclass(frozen=True)
class Leaf:
    """The factors of one parameter's gradients.

    Attributes:
      number: Of the parameter among the leaves of the pytree.
      layers: Length of its leading axis if a scan over layers slices it.
      first, second: Rows and columns of its matrix, or of a layer's.
      uses: The shapes of its factors, one for each use; a gradient that has no factors is one row, gradient ⊗ 1.
      outputs: Of the function.
      itemsize: Bytes of each number.
    """

    number: int
    layers: int | None
    first: int
    second: int
    uses: tuple[Sides, ...]
    outputs: int
    itemsize: int

    @property
    def width(self) -> int:
        """Numbers in the factors of an example and a layer, for each row of the matrix."""
        return sum(use.rows * (self.outputs if use.outputs_left else 1) for use in self.uses if not use.looks_up)

    @property
    def besides(self) -> int:
        """Numbers in these factors whatever the rows of the matrix."""
        return sum(use.rows * self.second * (1 if use.outputs_left else self.outputs) for use in self.uses)

    @property
    def divisible(self) -> bool:
        """Whether factors can be made for a few rows alone."""
        return self.width > 0

    def ways(self, examples: tuple[int, int], output: Output) -> Ways:
        """What both ways to its kernel take, of all its layers; see `lensjax.curvature.ntk.costs.ways`."""
        matrix = self.first, self.second
        return ways(self.uses, examples, matrix, self.outputs, output, layers=self.layers or 1)

    @property
    def example_bytes(self) -> int:
        """Bytes of the factors of an example."""
        return (self.layers or 1) * (self.first * self.width + self.besides) * self.itemsize


@dataclass(frozen=True)
class Portion:
    """Parameters whose factors are held at the same time, whole or `pieces` times a part of them.

    A piece is some layers of parameters that are stacked over layers, or some rows of a single one.
    """

    leaves: tuple[Leaf, ...]
    pieces: int
    size: int  # layers or rows of a piece

    @property
    def stacked(self) -> bool:
        """Whether its pieces are layers."""
        return self.leaves[0].layers is not None

    @property
    def example_bytes(self) -> int:
        """Bytes of the factors of an example, for one piece."""
        if self.pieces == 1:
            return sum(leaf.example_bytes for leaf in self.leaves)
        if self.stacked:
            return sum(leaf.example_bytes // (leaf.layers or 1) for leaf in self.leaves) * self.size
        (leaf,) = self.leaves
        return (self.size * leaf.width + leaf.besides) * leaf.itemsize


@dataclass(frozen=True)
class ContractionPlan:
    """A program of parameters and one example, with the factors of its gradients.

    Attributes:
      program: Its value is one array.
      itemsize: Bytes of each number in factors that are rounded.
      plain: Numbers of parameters whose gradients are formed although they have factors.
    """

    program: Program
    itemsize: int | None = None
    plain: frozenset[int] = frozenset()

    @cached_property
    def uses(self) -> Mapping[Key, Use]:
        """Uses of parameters that are only factors of products, or only tables."""
        known = self.program.uses.uses.items()
        return {key: use for key, use in known if use.leaf not in self.plain and use.layers != 0}

    @property
    def outputs(self) -> tuple[int, ...]:
        """Shape of the function's value."""
        return self.program.shapes[0]

    @property
    def count(self) -> int:
        """Number of outputs."""
        return math.prod(self.outputs)

    @cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """Of every parameter."""
        return tuple(self._leaf(number) for number in range(self.program.parameters))

    @property
    def direct(self) -> tuple[int, ...]:
        """Numbers of the parameters whose gradients have no factors."""
        used = {use.leaf for use in self.uses.values()}
        return tuple(leaf.number for leaf in self.leaves if leaf.number not in used)

    def _leaf(self, number: int) -> Leaf:
        leaf, layers = aval(self.program.jaxpr.invars[number]), self.program.uses.scanned.get(number) or None
        shape = leaf.shape if layers is None else leaf.shape[1:]
        own = [use for use in self.uses.values() if use.leaf == number]
        if not own:
            gradient = Sides(1, looks_up=False, outputs_left=True)
            size = self.itemsize or leaf.dtype.itemsize
            return Leaf(number, layers, math.prod(shape), 1, (gradient,), self.count, size)
        first = math.prod(shape[axis] for axis in own[0].axes)
        uses = tuple(Sides(use.all_rows, use.kind == "rows", use.outputs_first) for use in own)
        size = self.itemsize or max(jnp.dtype(use.dtype).itemsize for use in own)
        return Leaf(number, layers, first, math.prod(shape) // max(first, 1), uses, self.count, size)


def make_parts(plan: ContractionPlan, examples: int, budget: int, alone: int | None = None) -> list[Portion]:
    """Parts whose factors, of so many examples, take at most `budget` bytes, where that is possible at all.

    Args:
      alone: Bytes that the factors of one example, of all layers, may take while they are made, where that is possible
        at all; by default the parameters of a stack are made together.
    """
    whole = Portion(plan.leaves, 1, 0)
    if alone is None and examples * whole.example_bytes <= budget:
        return [whole]
    parts: list[Portion] = []
    for layers in sorted({leaf.layers for leaf in plan.leaves if leaf.layers is not None}):
        stack = [leaf for leaf in plan.leaves if leaf.layers == layers]
        sizes = [size for size in range(1, layers + 1) if layers % size == 0]
        pieces = [(layers // size, size) for size in sizes]
        most = None if alone is None else min(alone, budget // examples)  # of which all layers have room
        parts += [_largest(some, pieces, examples, budget) for some in _together(stack, most)]
    loose: list[Leaf] = []
    for leaf in sorted((leaf for leaf in plan.leaves if leaf.layers is None), key=lambda leaf: leaf.example_bytes):
        together = sum(each.example_bytes for each in (*loose, leaf))
        if not leaf.first or (examples * together <= budget and (alone is None or together <= alone)):
            loose.append(leaf)
            continue
        sizes = [-(-leaf.first // pieces) for pieces in range(leaf.first if leaf.divisible else 1, 0, -1)]
        pieces = [(-(-leaf.first // size), size) for size in dict.fromkeys(sizes)]
        parts.append(_largest((leaf,), pieces, examples, budget))
    return parts if not loose else [*parts, Portion(tuple(loose), 1, 0)]


def _together(stack: Sequence[Leaf], most: int | None) -> list[tuple[Leaf, ...]]:
    """Parameters of a stack whose factors are made together, of so many bytes for an example."""
    groups: list[tuple[Leaf, ...]] = []
    for leaf in stack:
        last = groups[-1] if groups else ()
        joined = most is None or sum(one.example_bytes for one in (*last, leaf)) <= most
        groups = [*groups[:-1], (*last, leaf)] if last and joined else [*groups, (leaf,)]
    return groups


def _largest(leaves: tuple[Leaf, ...], pieces: Sequence[tuple[int, int]], examples: int, budget: int) -> Portion:
    """The part with the largest piece that fits, or else the smallest; pieces come with rising size."""
    parts = [Portion(leaves, count, size) for count, size in pieces]
    fitting = [part for part in parts if examples * part.example_bytes <= budget]
    return fitting[-1] if fitting else parts[0]


def kept_bytes(plan: ContractionPlan) -> int:
    """Bytes that a backward pass keeps of each example besides factors."""
    own = frozenset(range(plan.program.parameters))
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in map(aval, plan.program.jaxpr.invars)]
    captured = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in map(aval, plan.program.jaxpr.constvars)]
    params, one = shapes[: len(own)], shapes[len(own) :]

    def pulled(captured: PyTree, params: PyTree, examples: PyTree) -> PyTree:
        g, probes, apart = _probed(plan, own, None, captured, params)
        direct = [params[number] for number in apart]
        return jax.vjp(lambda *some: jax.vmap(lambda x: g(*some, x))(examples), probes, direct, has_aux=True)[1]

    def kept(count: int) -> int:
        examples = [jax.ShapeDtypeStruct((count, *x.shape), x.dtype) for x in one]
        leaves = jax.tree.leaves(jax.eval_shape(pulled, captured, params, examples))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    return kept(2) - kept(1)  # without what examples have in common


def make_factors(
    plan: ContractionPlan,
    part: Portion,
    captured: PyTree,
    params: PyTree,
    examples: PyTree,
    piece: Int[Array, ""],
    dtype: DTypeLike | None = None,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "n outputs"], list[list[Factor]]]:
    """Values of the function, and factors of the gradients of a piece of a part's parameters, in their order.

    A gradient without factors becomes one row: gradient ⊗ 1.

    Args:
      captured: Arrays that the function captured.
      examples: Pytree of arrays with a leading axis of n.
      piece: Its number.
      dtype: Type that factors are rounded to.
      mesh: Devices that share the examples: of parameters, each gathers one layer at a time, and no activations.
    """
    own = frozenset(leaf.number for leaf in part.leaves)
    one = partial(_one, plan, own, mesh, captured, params)
    values, made = jax.vmap(one)(examples)

    def taken(leaf: Leaf) -> list[Factor]:
        factors: list[Factor] = made[leaf.number]
        if part.pieces > 1 and part.stacked:
            factors = [factor.layers(piece * part.size, part.size) for factor in factors]
        elif part.pieces > 1:
            factors = [factor.piece(piece, part.size, leaf.first) for factor in factors]
        return factors if dtype is None else [factor.rounded(dtype) for factor in factors]

    return values, [taken(leaf) for leaf in part.leaves]


def _probed(
    plan: ContractionPlan, own: frozenset[int], mesh: Mesh | None, captured: PyTree, params: PyTree
) -> tuple[Callable[..., tuple[Array, dict[Key, Array]]], dict[Key, Array], list[int]]:
    """The function of probes of some parameters, others of them and an example; the probes; and which the others are.

    Its value is that for the example, and, for every probe, the other factor of its product.
    """
    leaves = jax.tree.leaves(params)
    uses = {key: use for key, use in plan.uses.items() if use.leaf in own}
    every = uses if mesh is None else plan.uses
    apart = [number for number in plan.direct if number in own]

    def g(probes: dict[Key, Array], direct: list[Array], example: PyTree) -> tuple[Array, dict[Key, Array]]:
        mixed = list(leaves)
        for number, leaf in zip(apart, direct, strict=True):
            mixed[number] = leaf
        inputs = [*mixed, *jax.tree.leaves(example)]
        value, rows = with_probes(plan.program.jaxpr, captured, every, inputs, probes, partial(constrain, mesh=mesh))
        return value.reshape(plan.count), rows

    return g, {key: jnp.zeros(use.probe_shape, use.dtype) for key, use in uses.items()}, apart


def _one(
    plan: ContractionPlan, own: frozenset[int], mesh: Mesh | None, captured: PyTree, params: PyTree, example: PyTree
) -> tuple[Array, dict[int, list[Factor]]]:
    """Values for one example, and the factors of some parameters without the axis of examples."""
    leaves = jax.tree.leaves(params)
    g, probes, apart = _probed(plan, own, mesh, captured, params)
    direct = [leaves[number] for number in apart]
    value, pull, rows = jax.vjp(lambda *some: g(*some, example), probes, direct, has_aux=True)
    deltas, gradients = jax.vmap(pull)(jnp.eye(plan.count, dtype=value.dtype))
    made: dict[int, list[Factor]] = {number: [] for number in own}
    for number, gradient in zip(apart, gradients, strict=True):
        layers = () if plan.leaves[number].layers is None else (plan.leaves[number].layers,)
        row = gradient.reshape(plan.count, *layers, 1, plan.leaves[number].first)
        made[number].append(Factor(row, jnp.ones((*layers, 1, 1), row.dtype)))
    for key, delta in deltas.items():
        use = plan.uses[key]
        delta, row = jax.vmap(use.joined)(delta), use.joined(rows[key])
        made[use.leaf].append(Factor(*((delta, row) if use.outputs_first else (row, delta))))
    return value, made
