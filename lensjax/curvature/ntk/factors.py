"""Gradients of many examples as factors: what a kernel needs of them, made for a part of the parameters at a time."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array, Float, Int

from lensjax.curvature.jaxpr.linear_uses import Function, Key, Use, find_uses, with_probes
from lensjax.curvature.ntk.contract import Factor


@dataclass(frozen=True)
class Leaf:
    """How the gradients of one parameter are had.

    Attributes:
      number: Among the leaves of the pytree.
      layers: Length of its leading axis, where a scan over layers slices it.
      first: Rows of the matrix that it is, or that a layer of it is.
      width, besides: Numbers that the factors of an example and a layer have for each of these rows, and besides.
      itemsize: Bytes of each.
      divisible: Whether a few of its rows can be had alone.
    """

    number: int
    layers: int | None
    first: int
    width: int
    besides: int
    itemsize: int
    divisible: bool

    @property
    def example_bytes(self) -> int:
        """What the factors of an example take."""
        return (self.layers or 1) * (self.first * self.width + self.besides) * self.itemsize


@dataclass(frozen=True)
class Part:
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
        """What the factors of an example take, of a piece."""
        if self.pieces == 1:
            return sum(leaf.example_bytes for leaf in self.leaves)
        if self.stacked:
            return sum(leaf.example_bytes // (leaf.layers or 1) for leaf in self.leaves) * self.size
        (leaf,) = self.leaves
        return (self.size * leaf.width + leaf.besides) * leaf.itemsize


@dataclass(frozen=True, eq=False)
class Plan:
    """A function traced once, and how its parameters' gradients are had.

    Attributes:
      jaxpr: Of the function, with what it captured as arguments.
      uses: Of the parameters that are only multiplied by or looked up in.
      outputs: Shape of the function's value.
      leaves: Of every parameter.
    """

    jaxpr: Any
    uses: Mapping[Key, Use]
    outputs: tuple[int, ...]
    leaves: tuple[Leaf, ...]

    @property
    def count(self) -> int:
        """Number of outputs."""
        return math.prod(self.outputs)

    @property
    def direct(self) -> tuple[int, ...]:
        """Numbers of the parameters whose gradients are formed as they are."""
        used = {use.leaf for use in self.uses.values()}
        return tuple(leaf.number for leaf in self.leaves if leaf.number not in used)


_SETTINGS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl")  # that tracing depends on
_plans: WeakKeyDictionary[Function, dict[Any, tuple[Plan, list[Any]]]] = WeakKeyDictionary()


def make_plan(f: Function, params: Any, example: Any, itemsize: int | None = None) -> tuple[Plan, list[Any]]:
    """The plan of f(params, example), and the arrays that f captured; factors are of so many bytes a number.

    A function traced for the same shapes and settings of JAX before is not traced again, so that nothing is compiled
    anew.
    """
    leaves, structure = jax.tree.flatten((params, example))
    shapes = tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    key = (structure, shapes, itemsize, *(getattr(jax.config, name) for name in _SETTINGS))
    try:
        known = _plans.setdefault(f, {})
    except TypeError:  # neither hashable nor weakly referable
        known = {}
    if key not in known:
        closed, uses, layers = find_uses(f, params, example)
        made = [_leaf(n, leaf, closed, uses, layers, itemsize) for n, leaf in enumerate(jax.tree.leaves(params))]
        known[key] = Plan(closed.jaxpr, uses, closed.out_avals[0].shape, tuple(made)), closed.consts
    return known[key]


def _leaf(
    number: int, leaf: Any, closed: Any, uses: Mapping[Key, Use], layers: Mapping[int, int], itemsize: int | None
) -> Leaf:
    """How a parameter's gradients are had."""
    count = math.prod(closed.out_avals[0].shape)
    shape = leaf.shape[1:] if number in layers else leaf.shape
    own = [use for use in uses.values() if use.leaf == number]
    if not own:
        return Leaf(number, layers.get(number), math.prod(shape), count, 1, itemsize or leaf.dtype.itemsize, True)
    first = math.prod(shape[axis] for axis in own[0].axes)
    second = math.prod(shape) // max(first, 1)
    width = besides = 0
    for use in own:
        outputs_left = use.kind == "product" and not use.summed_first
        width += use.rows * (count if outputs_left else 1) if use.kind == "product" else 0
        besides += use.rows * second * (1 if outputs_left else count)
    size = itemsize or max(jnp.dtype(use.dtype).itemsize for use in own)
    return Leaf(number, layers.get(number), first, width, besides, size, width > 0)


def make_parts(plan: Plan, examples: int, budget: int) -> list[Part]:
    """Parts whose factors, of so many examples, take at most `budget` bytes, where that is possible at all."""
    whole = Part(plan.leaves, 1, 0)
    if examples * whole.example_bytes <= budget:
        return [whole]
    parts: list[Part] = []
    for layers in sorted({leaf.layers for leaf in plan.leaves if leaf.layers is not None}):
        stack = tuple(leaf for leaf in plan.leaves if leaf.layers == layers)
        sizes = [size for size in range(1, layers + 1) if layers % size == 0]
        parts.append(_largest(stack, [(layers // size, size) for size in sizes], examples, budget))
    loose: list[Leaf] = []
    for leaf in sorted((leaf for leaf in plan.leaves if leaf.layers is None), key=lambda leaf: leaf.example_bytes):
        if examples * sum(each.example_bytes for each in (*loose, leaf)) <= budget:
            loose.append(leaf)
            continue
        sizes = [-(-leaf.first // pieces) for pieces in range(leaf.first if leaf.divisible else 1, 0, -1)]
        pieces = [(-(-leaf.first // size), size) for size in dict.fromkeys(sizes)]
        parts.append(_largest((leaf,), pieces, examples, budget))
    return parts if not loose else [*parts, Part(tuple(loose), 1, 0)]


def _largest(leaves: tuple[Leaf, ...], pieces: Sequence[tuple[int, int]], examples: int, budget: int) -> Part:
    """The part with the largest piece that fits, or else the smallest; pieces come with rising size."""
    parts = [Part(leaves, count, size) for count, size in pieces]
    fitting = [part for part in parts if examples * part.example_bytes <= budget]
    return fitting[-1] if fitting else parts[0]


def make_factors(
    plan: Plan, part: Part, captured: list[Any], params: Any, examples: Any, piece: Int[Array, ""], dtype: Any = None
) -> tuple[Float[Array, "n outputs"], list[list[Factor]]]:
    """Values of the function, and factors of the gradients of a piece of a part's parameters, in their order.

    A gradient that is formed as it is becomes one row: gradient ⊗ 1.

    Args:
      captured: Arrays that the function captured.
      examples: Pytree of arrays with a leading axis of n.
      piece: Which one.
      dtype: Type that factors are rounded to.
    """
    values, made = jax.vmap(lambda example: _one(plan, captured, params, example))(examples)

    def taken(leaf: Leaf) -> list[Factor]:
        factors: list[Factor] = made[leaf.number]
        if part.pieces > 1 and part.stacked:
            factors = [factor.layers(piece * part.size, part.size) for factor in factors]
        elif part.pieces > 1:
            factors = [factor.piece(piece, part.size, leaf.first) for factor in factors]
        return factors if dtype is None else [factor.rounded(dtype) for factor in factors]

    return values, [taken(leaf) for leaf in part.leaves]


def _one(plan: Plan, captured: list[Any], params: Any, example: Any) -> tuple[Array, list[list[Factor]]]:
    """Values for one example, and the factors of every parameter without the axis of examples."""
    leaves, structure = jax.tree.flatten(params)
    closed = ClosedJaxpr(plan.jaxpr, captured)
    probes = {key: jnp.zeros(_probe_shape(use), use.dtype) for key, use in plan.uses.items()}

    def g(probes: Any, direct: list[Array]) -> tuple[Array, Any]:
        mixed = list(leaves)
        for i, leaf in zip(plan.direct, direct, strict=True):
            mixed[i] = leaf
        value, found = with_probes(closed, plan.uses, jax.tree.unflatten(structure, mixed), probes, example)
        return value.reshape(plan.count), found

    value, pull, found = jax.vjp(g, probes, [leaves[i] for i in plan.direct], has_aux=True)
    deltas, gradients = jax.vmap(pull)(jnp.eye(plan.count, dtype=value.dtype))
    made: list[list[Factor]] = [[] for _ in leaves]
    for i, gradient in zip(plan.direct, gradients, strict=True):
        layers = () if plan.leaves[i].layers is None else (plan.leaves[i].layers,)
        row = gradient.reshape(plan.count, *layers, 1, plan.leaves[i].first)
        made[i].append(Factor(row, jnp.ones((*layers, 1, 1), row.dtype)))
    for key, use in plan.uses.items():
        row, delta = found[key], deltas[key]
        product = use.kind == "product" and not use.summed_first
        made[use.leaf].append(Factor(delta, row) if product else Factor(row, delta))
    return value, made


def _probe_shape(use: Use) -> tuple[int, ...]:
    flat = (use.rows, math.prod(use.shape) // use.rows)
    return flat if use.layers is None else (use.layers, *flat)
