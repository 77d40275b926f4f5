"""What of a kernel is computed at a time, so that it fits into memory: examples in batches, parameters in portions."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from lensjax.core.errors import InputError
from lensjax.core.pytrees import PyTree, numeric
from lensjax.curvature.compiling import exact_options
from lensjax.curvature.jaxpr.program import Function, traced_program
from lensjax.curvature.ntk.costs import ALONE, WRITTEN, Output
from lensjax.curvature.ntk.factor import Factor, constrain
from lensjax.curvature.ntk.factors import ContractionPlan, Leaf, Portion, kept_bytes, make_factors, make_parts
from lensjax.curvature.ntk.inputs import count_examples, free_memory, kind, on_host, one_after_another
from lensjax.curvature.ntk.proof import Sample, draw
from lensjax.curvature.streaming import check_params, layout

HELD = 0.5  # share of the memory limit for the factors that are held; the rest is for making and contracting them
_WITH_BACKWARD = 3  # times the factors' memory is needed to make them
_BATCH = 64  # examples at most whose factors are made at a time
_CHUNK = {"cpu": 2 * 2**20, "gpu": 256 * 2**20}  # bytes formed at a time: on a CPU they stay in its cache
_LEAST = 1024  # numbers formed at a time of every example's gradient, if memory allows it

Besides = Callable[[Sequence[Leaf]], tuple[int, int]]  # leaves → bytes for each example of a batch, and bytes in all


@dataclass(frozen=True)
class Resources:
    """What computing something of many examples will take.

    Attributes:
      batch: Examples at a time.
      device_bytes: Memory on a device besides parameters, and besides examples where all are there, at most.
      host_bytes: Memory of the result.
      flops: Of products of matrices.
    """

    batch: int
    device_bytes: int
    host_bytes: int
    flops: int


@dataclass(frozen=True)
class Job:
    """The work of `ntk`: on which examples, in which portions of the parameters.

    Attributes:
      captured: Arrays that the function captured.
      sizes: N, and M or 0.
      examples: Those of xs, then those of ys.
      batch, batches: Number of examples whose factors are made at a time, and of such batches.
      limit: Bytes that may be used on a device.
      dtype: Type that factors are rounded to, if any.
    """

    plan: ContractionPlan
    captured: PyTree
    parts: list[Portion]
    sizes: tuple[int, int]
    examples: PyTree
    batch: int
    batches: int
    limit: int
    dtype: Any
    mesh: Mesh | None

    @property
    def chunk_bytes(self) -> int:
        """Bytes on a device for what is contracted at a time."""
        platform = jax.default_backend() if self.mesh is None else self.mesh.devices.flat[0].platform
        chunk = max(_CHUNK.get(platform, _CHUNK["gpu"]), 4 * sum(self.sizes) * _LEAST)
        return min(int(self.limit * (1 - HELD)), chunk)

    def numbers(self, batch: int) -> np.ndarray:
        """Of the examples of a batch, every so many-th one; numbers past the last fill up batches.

        So devices that share every batch have neighbours of all batches together, which are never moved.
        """
        return batch + self.batches * np.arange(self.batch)

    def examples_of(self, batch: int) -> PyTree:
        """The examples of a batch, of which the last example fills up those that there are not."""
        rows = np.minimum(self.numbers(batch), sum(self.sizes) - 1)
        return jax.device_put(jax.tree.map(lambda x: x[rows], self.examples), shared_out(self.mesh))

    def contraction(self, part: Portion, leaf: Leaf, gradients: list[Factor], output: Output) -> tuple[Any, ...]:
        """Arguments of `_contract` after the first."""
        first = part.size if part.pieces > 1 and not part.stacked else leaf.first
        layers = leaf.layers and gradients[0].right.shape[-3]
        return self.sizes, first, layers, output, self.chunk_bytes, self.mesh

    def sample(self, output: Output, seed: int) -> Sample:
        """Entries to verify: more where not all gradients are simply formed and multiplied."""
        clever = bool(self.plan.uses) or any(part.pieces > 1 for part in self.parts)
        return draw(self.sizes, self.plan.count, output, seed, clever=clever)

    def batch_bytes(self, besides: Besides) -> int:
        """Bytes on a device for a batch whose factors are used at once."""
        each, in_all = batch_bytes(self.plan.leaves, besides)
        return self.batch // (1 if self.mesh is None else self.mesh.size) * each + in_all

    def kind(self, output: Output) -> Hashable:
        """What kernels of a function have in common that are computed alike."""
        return output, self.sizes, self.plan.plain, self.dtype, self.mesh, tuple(self.parts)

    def share(self, sample: Sample) -> float:
        """What verifying a sample takes, as a share of what the kernel takes: predicted from operations."""
        outputs, examples = self.plan.count, sum(self.sizes)
        compared = len(set(sample.pairs.ravel().tolist()))
        one, numbers, contracted = 0, 0, 0  # FLOPs of a product with all matrices, numbers in them
        for leaf in self.plan.leaves:
            size = (leaf.layers or 1) * leaf.first * leaf.second
            one += 2 * size * sum(use.rows for use in leaf.uses if not use.looks_up)
            numbers += size
            both = leaf.ways(self.sizes, sample.output)
            contracted += min(both.form.cost, both.gram.cost)
        made = sum(part.pieces for part in self.parts) * examples * (1 + outputs) * one
        rows = len(sample.rows) + (0 if sample.same else len(sample.columns))
        plain = rows * (ALONE * (1 + 2 * compared) * one + WRITTEN * compared * numbers)
        return plain / max(made + contracted, 1)


def prepare(
    f: Function,
    params: PyTree,
    xs: PyTree,
    ys: PyTree | None,
    factors: str,
    memory_limit: int | None,
    plain: frozenset[int] = frozenset(),
    besides: Besides | None = None,
) -> Job:
    """Check the arguments, and plan.

    Args:
      f, params, xs, ys, factors, memory_limit: See `ntk`.
      plain: Numbers of parameters that have plain gradients.
      besides: Where a batch's factors are used at once and none are held: memory that this takes besides them.

    Raises:
      InputError: see `ntk`.
    """
    xs, ys = numeric(xs), numeric(ys)
    n, m = count_examples(xs, "xs"), 0 if ys is None else count_examples(ys, "ys")
    if ys is not None and jax.tree.map(kind, xs) != jax.tree.map(kind, ys):
        raise InputError("xs and ys hold examples of different shapes or types; give both the same fields and lengths.")
    check_params(params)
    mesh = next((s.mesh for s in layout(params) if s is not None and isinstance(s.mesh, Mesh)), None)
    limit = free_memory() if memory_limit is None else memory_limit
    dtype = None if factors == "exact" else "bfloat16"
    program, captured = traced_program(f, params, jax.tree.map(lambda x: on_host(x)[0], xs))
    one = program.alone if len(program.shapes) == 1 else program.joined
    plan = ContractionPlan(one, None if dtype is None else 2, plain)
    parts, batch = _fit(plan, n + m, limit, 1 if mesh is None else mesh.size, besides)
    examples = jax.tree.map(on_host, xs) if ys is None else jax.tree.map(one_after_another, xs, ys)
    return Job(plan, captured, parts, (n, m), examples, batch, -(-(n + m) // batch), limit, dtype, mesh)


def _fit(
    plan: ContractionPlan, examples: int, limit: int, devices: int, besides: Besides | None
) -> tuple[list[Portion], int]:
    """Portions whose factors fit, and the number of examples whose factors are made at a time.

    Raises:
      InputError: the memory does not suffice.
    """
    if besides is None:
        parts, each, least = _portions(plan, examples, limit, devices)
        if least > limit:  # the smallest portions may fit where larger ones did not
            parts, each, least = _portions(plan, examples, 1, devices)
        free = int(limit * (1 - HELD))
    else:
        each, in_all = batch_bytes(plan.leaves, besides)
        parts, least, free = [Portion(plan.leaves, 1, 0)], each + in_all, limit - in_all
    if least > limit:
        raise InputError(f"memory_limit is {limit:,} bytes; these examples need {least:,} at least.")
    return parts, min(_BATCH, free // max(each, 1), -(-examples // devices)) * devices


def _portions(plan: ContractionPlan, examples: int, limit: int, devices: int) -> tuple[list[Portion], int, int]:
    """Portions as a limit divides them, and what an example's factors take while they are made, and what all takes."""
    each, _ = batch_bytes(plan.leaves)
    budget, free = int(limit * devices * HELD), int(limit * (1 - HELD))
    parts = make_parts(plan, examples, budget)
    if each > free:  # the factors of an example have no room all together
        stacked = [leaf for leaf in plan.leaves if leaf.layers]
        kept = kept_bytes(plan) + batch_bytes(stacked)[0] // max((leaf.layers or 1 for leaf in stacked), default=1)
        some = make_parts(plan, examples, budget, (free - kept) // _WITH_BACKWARD)
        apart = kept + max(batch_bytes(part.leaves)[0] for part in some)
        parts, each = (some, apart) if apart < each else (parts, each)
    held = max(-(-examples // devices) * part.example_bytes for part in parts)
    return parts, each, math.ceil(max(each / (1 - HELD), held / HELD))


def batch_bytes(leaves: Sequence[Leaf], besides: Besides | None = None) -> tuple[int, int]:
    """Bytes that making, and using at once, the factors of each example of a batch takes, and what comes besides."""
    more, in_all = (0, 0) if besides is None else besides(leaves)
    return _WITH_BACKWARD * sum(leaf.example_bytes for leaf in leaves) + more, in_all


def _fill(
    plan: ContractionPlan,
    part: Portion,
    dtype: Any,
    mesh: Mesh | None,
    held: PyTree,
    captured: PyTree,
    params: PyTree,
    examples: PyTree,
    piece: Array,
    batch: Array,
) -> tuple[Array, PyTree]:
    """Values of the function, and `held` with the factors of a batch of examples put in."""
    values, made = make_factors(plan, part, captured, params, examples, piece, dtype, mesh)
    made = jax.tree.map(lambda x: constrain(x, mesh, 0), made)
    if held is None:
        return constrain(values, mesh), jax.tree.map(lambda new: new[:, None], made)

    def put(old: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_index_in_dim(old, new, batch, 1)

    return constrain(values, mesh), jax.tree.map(put, held, made)


@cache
def filler() -> Callable[..., tuple[Array, Any]]:
    """`_fill`, compiled for each plan and part once."""
    return jax.jit(_fill, static_argnums=(0, 1, 2, 3), donate_argnums=4, compiler_options=exact_options())


def shared_out(mesh: Mesh | None) -> NamedSharding | None:
    """The sharding of arrays whose examples the devices share."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec(mesh.axis_names))
