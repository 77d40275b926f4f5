"""Exact empirical neural tangent kernels: Θ(x, x') = J_f(x) J_f(x')ᵀ, of any function and any pytree of parameters.

theta = ntk(loss, params, examples)  # [N, N]

Gradients of matrices are contracted from their factors (see `linear_uses`, `factors` and `contract`), so that the
examples' gradients, N × P values, are never held. If the factors of all examples take too much memory, they are made
for a part of the parameters at a time. The kernel is that of Novak et al. (arXiv 2206.08720), at finite width.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from lensjax.core.flops import matmul_flops
from lensjax.core.pytrees import PyTree, shaped_as
from lensjax.curvature.form_checks import check_on_mismatch
from lensjax.curvature.jaxpr.program import Function
from lensjax.curvature.ntk.contract import contract
from lensjax.curvature.ntk.costs import Output
from lensjax.curvature.ntk.factor import Factor, constrain
from lensjax.curvature.ntk.factors import Portion, make_factors
from lensjax.curvature.ntk.inputs import (
    automatic_axes,
    check_finite,
)
from lensjax.curvature.ntk.plan import HELD, Job, filler, prepare, shared_out
from lensjax.curvature.ntk.proof import Verification, WrongKernelError, check_next, kernels_since
from lensjax.curvature.ntk.proof import verify as verified
from lensjax.curvature.ntk.total import Total


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
    verify: bool | Literal["always"] = True,
    on_mismatch: Literal["raise", "dense"] = "raise",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> PyTree:
    """The empirical neural tangent kernel of f between the examples of xs, or between those of xs and ys.

    If parameters are sharded over a mesh, its devices share the examples whose gradients are made, and then the
    parameters over which these are contracted; every process gets the whole kernel.

    Kernels are verified: entries of two or three examples are computed a second time, from plain gradients, and
    compared parameter by parameter and layer by layer. The first kernel of a function, plan and number of examples
    always is. Others are as often as that takes 3 % of the time: from about a hundred examples on, every one.

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
      verify: Whether to, or "always": every kernel, however small. `.verified` of the result says what was.
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
        job = prepare(f, params, xs, ys, factors, memory_limit, plain)
        sample, since = job.sample(output, seed) if verify else None, 0
        if sample is not None and verify != "always":
            since = kernels_since(job.plan.program, job.kind(output), job.share(sample))
        said = Verification((), (), 0, 0.0, since=since) if since else None
        total = Total(params, job.plan, output, None if since else sample, by_parameter=by_parameter)
        _sum_up(job, params, total, progress)
        return total.result(said if total.sample is None else _verified(job, params, total), symmetric=ys is None)

    with automatic_axes(params) as params:
        try:
            return computed(frozenset())
        except WrongKernelError as error:
            if on_mismatch == "raise":
                raise
            wrong = error.leaves
        return computed(wrong)


def _verified(job: Job, params: PyTree, total: Total) -> Verification:
    """Compare the sample of a kernel with plain gradients."""
    assert total.sample is not None
    began = time.perf_counter()
    sample, plan = total.sample, job.plan
    rows = sample.rows if sample.same else np.concatenate([sample.rows, job.sizes[0] + sample.columns])
    examples = jax.tree.map(lambda x: x[rows], job.examples)
    some = sample, plan.program, total.names, [leaf.layers for leaf in plan.leaves], job.captured, params, examples
    limit = int(job.limit * (1 - HELD))
    try:
        said = verified(*some, rounded=job.dtype, limit=limit, mesh=job.mesh)
    except WrongKernelError:
        check_next(plan.program)
        raise
    dense = tuple(total.names[number] for number in sorted(plan.plain))
    return replace(said, dense=dense, seconds=time.perf_counter() - began)


def _sum_up(job: Job, params: PyTree, kernel: Total, progress: Callable[[int, int], None] | None) -> None:
    """Add the parts of all parameters to the kernel."""
    done = 0
    for part in job.parts:
        shapes: PyTree = None if job.batches == 1 else _room_shapes(job, part, params)
        for piece in range(part.pieces):
            held = _room(job, shapes)
            for i in range(job.batches):
                some = job.captured, params, job.examples_of(i), jnp.asarray(piece), jnp.asarray(i)
                values, held = filler()(job.plan, part, job.dtype, job.mesh, held, *some)
                check_finite(values, job.numbers(i), job.sizes)
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
        return _flops(prepare(f, params, xs, ys, factors, memory_limit), params, output)


def _flops(job: Job, params: PyTree, output: Output) -> int:
    """What `ntk_flops` counts."""
    total, some, zero = 0, job.examples_of(0), jnp.asarray(0)
    for part in job.parts:
        static = job.plan, part, job.dtype, job.mesh
        room = _room_shapes(job, part, params)
        held = None if job.batches == 1 else room
        each = job.batches * matmul_flops(filler(), *static, held, job.captured, params, some, zero, zero)
        for leaf, gradients in zip(part.leaves, room, strict=True):
            each += matmul_flops(_contract, gradients, *job.contraction(part, leaf, gradients, output))
        total += each * part.pieces
    return total


def _room_shapes(job: Job, part: Portion, params: PyTree) -> PyTree:
    """Shapes of the factors of all batches, [batch, batches, …]."""
    some = jax.tree.map(lambda x: shaped_as(x, (job.batch, *x.shape[1:])), job.examples)
    made = jax.eval_shape(
        lambda p, x: make_factors(job.plan, part, job.captured, p, x, jnp.asarray(0), job.dtype)[1], params, some
    )
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((job.batch, job.batches, *leaf.shape[1:]), leaf.dtype), made)


def _room(job: Job, shapes: PyTree) -> PyTree:
    """Zeros for the factors of all batches, which the devices share."""
    where = shared_out(job.mesh)
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
    if layers is None:
        return constrain(contract(a, b, first, output, chunk_bytes, mesh)[None], mesh)

    def layer(number: Array) -> Array:
        one = [factor.layer(number) for factor in a]
        other = one if b is a else [factor.layer(number) for factor in b]
        return contract(one, other, first, output, chunk_bytes, mesh)

    return constrain(jax.lax.map(layer, jnp.arange(layers)), mesh)
