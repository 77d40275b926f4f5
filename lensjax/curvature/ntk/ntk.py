"""Exact empirical neural tangent kernels: Θ(x, x') = J_f(x) J_f(x')ᵀ, of any function and any pytree of parameters.

theta = ntk(loss, params, examples)  # [N, N]

Gradients of matrices are contracted from their factors (see `linear_uses`, `factors` and `contract`), so that the
examples' gradients, N × P values, are never held. If the factors of all examples take too much memory, they are made
for a part of the parameters at a time. The kernel is that of Novak et al. (arXiv 2206.08720), at finite width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from lensjax.core.errors import InputError
from lensjax.core.flops import matmul_flops
from lensjax.core.pytrees import PyTree, numeric
from lensjax.curvature.compiling import exact_options
from lensjax.curvature.form_checks import check_on_mismatch
from lensjax.curvature.jaxpr.program import Function, traced_program
from lensjax.curvature.ntk.contract import Factor, Output, constrain, contract
from lensjax.curvature.ntk.factors import ContractionPlan, Leaf, Portion, make_factors, make_parts
from lensjax.curvature.ntk.inputs import (
    automatic_axes,
    check_finite,
    count_examples,
    free_memory,
    kind,
    on_host,
    one_after_another,
)
from lensjax.curvature.ntk.proof import Sample, Verification, WrongKernelError, draw
from lensjax.curvature.ntk.proof import verify as verified
from lensjax.curvature.ntk.total import Total
from lensjax.curvature.operator import LinearOperator
from lensjax.curvature.streaming import check_params, layout

_HELD = 0.5  # share of the memory limit for the factors that are held; the rest is for making and contracting them
_WITH_BACKWARD = 3  # times the factors' memory is needed to make them
_BATCH = 64  # examples at most whose factors are made at a time
_CHUNK = {"cpu": 8 * 2**20, "gpu": 256 * 2**20}  # gradients formed at a time: on a CPU they stay in its cache


def ntk(
    f: Function,
    params: PyTree,
    xs: PyTree,
    ys: PyTree | None = None,
    *,
    output: Output = "trace",
    factors: Literal["exact", "bfloat16"] = "exact",
    memory_limit: int | None = None,
    by_parameter: bool = False,
    verify: bool = True,
    on_mismatch: Literal["raise", "dense"] = "raise",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> PyTree:
    """The empirical neural tangent kernel of f between the examples of xs, or between those of xs and ys.

    If parameters are sharded over a mesh, its devices share the examples whose gradients are made, and then the
    parameters over which these are contracted; every process gets the whole kernel.

    Every kernel is verified: entries of two or three examples are computed a second time, from plain gradients, and
    compared parameter by parameter and layer by layer.

    Args:
      f: (params, example) → array; the example is one of xs, without its leading axis. A pytree of several arrays
        counts as one vector: all of them flattened, in the order of its leaves.
      params: Pytree of floating-point arrays.
      xs, ys: Pytrees of arrays with a leading axis of N, and of M, examples; f gets None for texts and the like.
      output: "trace" sums over outputs, "diagonal" keeps each output with itself, "full" all pairs of outputs.
      factors: "bfloat16" rounds the factors of gradients, which halves memory; sums stay in float32.
      memory_limit: Bytes that may be used on a device besides parameters, examples and the result; by default half of
        the machine's memory, or 80 % of what is free on an accelerator.
      by_parameter: Return a dict of the parameters' parts, which sum to the kernel, by path; parts of parameters
        stacked over layers have a leading axis of layers.
      verify: Whether to. Of many examples it takes less than 3 % of the time; `.verified` of the result says what was.
      on_mismatch: What to do where entries differ by more than rounding: "raise", or compute the kernels of these
        parameters from their plain gradients, "dense", and verify them again.
      seed: Of the choice of entries.
      progress: Called with the number of finished batches of examples, and of all.

    Returns:
      [N, M], [N, M, *outputs] or [N, M, *outputs, *outputs] in float32 or f's wider type, and in f's unit squared.

    Raises:
      InputError: parameters are not floating-point numbers, xs and ys do not match, f is not finite for an example, or
        the memory does not suffice.
      WrongKernelError: the kernel is not that of plain gradients.
    """
    check_on_mismatch(on_mismatch)

    def computed(plain: frozenset[int]) -> PyTree:
        job = _prepare(f, params, xs, ys, factors, memory_limit, plain)
        sample = job.sample(output, seed) if verify else None
        total = Total(params, job.plan, output, sample, by_parameter=by_parameter)
        _sum_up(job, params, total, progress)
        return total.result(None if sample is None else _verified(job, params, total), symmetric=ys is None)

    with automatic_axes(params) as params:
        try:
            return computed(frozenset())
        except WrongKernelError as error:
            if on_mismatch == "raise":
                raise
            wrong = error.leaves
        return computed(wrong)


def _verified(job: "_Job", params: PyTree, total: Total) -> Verification:
    """Compare the sample of a kernel with plain gradients."""
    assert total.sample is not None
    sample, plan = total.sample, job.plan
    rows = sample.rows if sample.same else np.concatenate([sample.rows, job.sizes[0] + sample.columns])
    examples = jax.tree.map(lambda x: x[rows], job.examples)
    some = sample, plan.program, total.names, [leaf.layers for leaf in plan.leaves], job.captured, params, examples
    limit = int(job.limit * (1 - _HELD))
    said = verified(*some, rounded=job.dtype, limit=limit, mesh=job.mesh)
    return replace(said, dense=tuple(total.names[number] for number in sorted(plan.plain)))


def _sum_up(job: "_Job", params: PyTree, kernel: Total, progress: Callable[[int, int], None] | None) -> None:
    """Add the parts of all parameters to the kernel."""
    done = 0
    for part in job.parts:
        for piece in range(part.pieces):
            held: PyTree = None if job.batches == 1 else _room(job, part, params)
            for i in range(job.batches):
                some = job.captured, params, job.examples_of(i), jnp.asarray(piece), jnp.asarray(i)
                values, held = _filler()(job.plan, part, job.dtype, job.mesh, held, *some)
                check_finite(values, i * job.batch, job.sizes[0])
                done += 1
                if progress is not None:
                    progress(done, job.batches * sum(part.pieces for part in job.parts))
            for leaf, gradients in zip(part.leaves, held, strict=True):
                block = _contract(gradients, *job.contraction(part, leaf, gradients, kernel.output))
                kernel.add(leaf, piece * part.size if part.stacked else 0, np.asarray(block))
            del held


def ntk_flops(
    f: Function,
    params: PyTree,
    xs: PyTree,
    ys: PyTree | None = None,
    *,
    output: Output = "trace",
    factors: Literal["exact", "bfloat16"] = "exact",
    memory_limit: int | None = None,
) -> int:
    """FLOPs of the matrix products that `ntk` with the same arguments computes.

    `lensjax.core.flops.matmul_flops` counts them; both halves of a symmetric product count.

    Args:
      f, params, xs, ys, output, factors, memory_limit: See `ntk`; parameters may be shapes.

    Raises:
      InputError: see `ntk`.
    """
    with automatic_axes(params) as params:
        return _flops(_prepare(f, params, xs, ys, factors, memory_limit), params, output)


def _flops(job: "_Job", params: PyTree, output: Output) -> int:
    """What `ntk_flops` counts."""
    total, some, zero = 0, job.examples_of(0), jnp.asarray(0)
    for part in job.parts:
        static = job.plan, part, job.dtype, job.mesh
        room = _room_shapes(job, part, params)
        held = None if job.batches == 1 else room
        each = job.batches * matmul_flops(_filler(), *static, held, job.captured, params, some, zero, zero)
        for leaf, gradients in zip(part.leaves, room, strict=True):
            each += matmul_flops(_contract, gradients, *job.contraction(part, leaf, gradients, output))
        total += each * part.pieces
    return total


def ntk_vp(f: Function, params: PyTree, xs: PyTree, batch_size: int | None = None) -> LinearOperator:
    """The kernel Θ as an operator v ↦ Θ v: one backward and one forward product with the Jacobian.

    Args:
      f, params, xs: See `ntk`.
      batch_size: Examples at a time; each product then computes the function twice. By default all examples at once,
        with the function linearised once, which takes memory in proportion to N.

    Returns:
      An operator on vectors [N, *outputs].

    Raises:
      InputError: the arrays of xs do not have a leading axis of the same length.
    """
    xs = numeric(xs)
    n = count_examples(xs, "xs")

    def values(params: PyTree, examples: PyTree) -> Array:
        return jax.vmap(f, in_axes=(None, 0))(params, examples)

    shape = jax.eval_shape(values, params, xs)
    like = jnp.zeros(shape.shape, shape.dtype)
    if batch_size is None or batch_size >= n:
        _, push = jax.linearize(lambda p: values(p, xs), params)
        pull = jax.linear_transpose(push, params)
        return LinearOperator(jax.jit(lambda v: push(*pull(v))), like)
    batches = -(-n // batch_size)
    rows = np.minimum(np.arange(batches * batch_size), n - 1).reshape(batches, batch_size)
    stacked = jax.tree.map(lambda x: on_host(x)[rows], xs)

    @jax.jit
    def product(v: Array) -> Array:
        padded = jnp.zeros((batches * batch_size, *v.shape[1:]), v.dtype).at[:n].set(v)  # repeated examples get 0

        def add(total: PyTree, batch: tuple[PyTree, Array]) -> tuple[PyTree, None]:
            (gradient,) = jax.vjp(lambda p: values(p, batch[0]), params)[1](batch[1])
            return jax.tree.map(jnp.add, total, gradient), None

        zeros = jax.tree.map(jnp.zeros_like, params)
        pulled, _ = jax.lax.scan(add, zeros, (stacked, padded.reshape(batches, batch_size, *v.shape[1:])))
        pushed = jax.lax.map(lambda some: jax.jvp(lambda p: values(p, some), (params,), (pulled,))[1], stacked)
        return pushed.reshape(-1, *v.shape[1:])[:n]

    return LinearOperator(product, like)


@dataclass(frozen=True)
class _Job:
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
        return min(int(self.limit * (1 - _HELD)), _CHUNK.get(jax.default_backend(), _CHUNK["gpu"]))

    def examples_of(self, number: int) -> PyTree:
        """The examples of a batch; the last example fills up the last batch."""
        rows = np.minimum(np.arange(number * self.batch, (number + 1) * self.batch), sum(self.sizes) - 1)
        return jax.device_put(jax.tree.map(lambda x: x[rows], self.examples), _shared_out(self.mesh))

    def contraction(self, part: Portion, leaf: Leaf, gradients: list[Factor], output: Output) -> tuple[Any, ...]:
        """Arguments of `_contract` after the first."""
        first = part.size if part.pieces > 1 and not part.stacked else leaf.first
        layers = leaf.layers and gradients[0].right.shape[-3]
        return self.sizes, first, layers, output, self.chunk_bytes, self.mesh

    def sample(self, output: Output, seed: int) -> Sample:
        """Entries to verify: more where not all gradients are simply formed and multiplied."""
        clever = bool(self.plan.uses) or any(part.pieces > 1 for part in self.parts)
        return draw(self.sizes, self.plan.count, output, seed, clever=clever)


def _prepare(
    f: Function,
    params: PyTree,
    xs: PyTree,
    ys: PyTree | None,
    factors: str,
    memory_limit: int | None,
    plain: frozenset[int] = frozenset(),
) -> _Job:
    """Check the arguments, and plan; `plain` parameters have plain gradients.

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
    plan = ContractionPlan(program if len(program.shapes) == 1 else program.joined, None if dtype is None else 2, plain)
    parts, batch = _fit(plan, n + m, limit, 1 if mesh is None else mesh.size)
    examples = jax.tree.map(on_host, xs) if ys is None else jax.tree.map(one_after_another, xs, ys)
    return _Job(plan, captured, parts, (n, m), examples, batch, -(-(n + m) // batch), limit, dtype, mesh)


def _fit(plan: ContractionPlan, examples: int, limit: int, devices: int) -> tuple[list[Portion], int]:
    """Portions whose factors fit, and the number of examples whose factors are made at a time.

    Raises:
      InputError: the memory does not suffice.
    """
    parts = make_parts(plan, examples, int(limit * devices * _HELD))
    each = _WITH_BACKWARD * sum(leaf.example_bytes for leaf in plan.leaves)
    held = max(-(-examples // devices) * part.example_bytes for part in parts)
    least = math.ceil(max(each / (1 - _HELD), held / _HELD))
    if least > limit:
        raise InputError(f"memory_limit is {limit:,} bytes; these examples need {least:,} at least.")
    batch = min(_BATCH, int(limit * (1 - _HELD)) // max(each, 1), -(-examples // devices))
    return parts, batch * devices


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
    values, made = make_factors(plan, part, captured, params, examples, piece, dtype)
    if held is None:
        return constrain(values, mesh), jax.tree.map(lambda new: new[None], made)

    def put(old: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_index_in_dim(old, new, batch, 0)

    return constrain(values, mesh), jax.tree.map(put, held, made)


@cache
def _filler() -> Callable[..., tuple[Array, Any]]:
    """`_fill`, compiled for each plan and part once."""
    return jax.jit(_fill, static_argnums=(0, 1, 2, 3), donate_argnums=4, compiler_options=exact_options())


def _room_shapes(job: _Job, part: Portion, params: PyTree) -> PyTree:
    """Shapes of the factors of all batches, [batches, batch, …]."""
    some = jax.tree.map(lambda x: jax.ShapeDtypeStruct((job.batch, *x.shape[1:]), x.dtype), job.examples)
    made = jax.eval_shape(
        lambda p, x: make_factors(job.plan, part, job.captured, p, x, jnp.asarray(0), job.dtype)[1], params, some
    )
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((job.batches, *leaf.shape), leaf.dtype), made)


def _room(job: _Job, part: Portion, params: PyTree) -> PyTree:
    """Zeros for the factors of all batches, which the devices share."""
    where = _shared_out(job.mesh, 1)
    shapes = _room_shapes(job, part, params)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=where), shapes)


@partial(jax.jit, static_argnums=(1, 2, 3, 4, 5, 6))
def _contract(
    factors: list[Factor],
    sizes: tuple[int, int],
    first: int,
    layers: int | None,
    output: Output,
    chunk_bytes: int,
    mesh: Mesh | None,
) -> Array:
    """The kernel of every layer, [layers or 1, N, M, …], from factors of N + M examples, or of N with themselves."""
    n, m = sizes
    whole = jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), factors)
    a = jax.tree.map(lambda x: x[:n], whole)
    b = jax.tree.map(lambda x: x[n : n + m], whole) if m else a
    if len(a) == 1 and a[0].looks_up and layers is None:
        a, b, first = _compact(a, b, first)
    if layers is None:
        return constrain(contract(a, b, first, output, chunk_bytes, mesh)[None], mesh)

    def layer(number: Array) -> Array:
        one = [factor.layer(number) for factor in a]
        other = one if b is a else [factor.layer(number) for factor in b]
        return contract(one, other, first, output, chunk_bytes, mesh)

    return constrain(jax.lax.map(layer, jnp.arange(layers)), mesh)


def _compact(a: list[Factor], b: list[Factor], first: int) -> tuple[list[Factor], list[Factor], int]:
    """Factors of the rows that are looked up at all, numbered anew, and an upper limit on their number."""
    every = a if b is a else [*a, *b]
    ids = jnp.concatenate([factor.left.ravel() for factor in every])
    count = min(first, ids.size)
    present = jnp.unique(ids, size=count, fill_value=first)
    made = [Factor(jnp.searchsorted(present, factor.left), factor.right) for factor in every]
    return made[:1], made[:1] if b is a else made[1:], count


def _shared_out(mesh: Mesh | None, axis: int = 0) -> NamedSharding | None:
    """The sharding of arrays whose examples the devices share."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec(*(None,) * axis, mesh.axis_names))
