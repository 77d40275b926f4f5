"""Neural tangent kernels as operators, of which only products with vectors are computed."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array

from lensjax.core.flops import matmul_flops
from lensjax.core.pytrees import PyTree, numeric, shaped_as
from lensjax.curvature.jaxpr.program import Function, Program
from lensjax.curvature.ntk.inputs import count_examples, on_host
from lensjax.curvature.ntk.plan import Resources, batch_bytes, prepare
from lensjax.curvature.operator import LinearOperator
from lensjax.curvature.streaming import wide

Values = Callable[[PyTree, PyTree], Array]  # of parameters and examples


def ntk_vp(
    f: Function, params: PyTree, xs: PyTree, batch_size: int | None = None, *, memory_limit: int | None = None
) -> LinearOperator:
    """The kernel Θ as an operator v ↦ Θ v: one backward and one forward product with the Jacobian.

    Args:
      f, params, xs: See `lensjax.curvature.ntk.ntk.ntk`.
      batch_size: Examples at a time; each product then computes the function twice, and holds three arrays of the
        parameters' size besides a batch. All examples at once linearise the function once, which takes memory in
        proportion to N. By default all, if the memory suffices.
      memory_limit: Bytes that a product may take on a device besides parameters and examples, where no batch size is
        given; see `ntk`.

    Returns:
      An operator on vectors [N, *outputs]; of functions that give several arrays, [N, all numbers in them].

    Raises:
      InputError: the arrays of xs do not have a leading axis of the same length, or the memory does not suffice.
    """
    xs = numeric(xs)
    n, values = count_examples(xs, "xs"), _values_of(f)
    if batch_size is None:
        traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(xs))
        batch_size = n if traced else _fitting(f, params, xs, memory_limit)[0]
    shape = jax.eval_shape(values, params, xs)
    like = jnp.zeros(shape.shape, shape.dtype)
    if batch_size >= n:
        return LinearOperator(partial(_linear, _linearized(values, params, xs), params), like)
    rows = _rows(n, batch_size)
    stacked = jax.tree.map(lambda x: on_host(x)[rows], xs)
    return LinearOperator(partial(jax.jit(partial(_by_batches, values, n)), params, stacked), like)


def products_plan(
    f: Function, params: PyTree, xs: PyTree, batch_size: int | None = None, *, memory_limit: int | None = None
) -> Resources:
    """What a product with the operator of `ntk_vp` with the same arguments takes; parameters may be shapes.

    The result, on the host, is in float64.

    Raises:
      InputError: see `ntk_vp`.
    """
    xs = numeric(xs)
    n, values = count_examples(xs, "xs"), _values_of(f)
    fitting, each, in_all = _fitting(f, params, xs, memory_limit)
    batch = min(n, fitting if batch_size is None else batch_size)
    v = jax.eval_shape(values, params, xs)
    if batch == n:
        push = jax.eval_shape(partial(_linearized, values), params, xs)
        return Resources(n, n * each, 8 * v.size, matmul_flops(_linear, push, params, v))
    rows = _rows(n, batch)
    stacked = jax.tree.map(lambda x: shaped_as(x, (*rows.shape, *x.shape[1:])), xs)
    flops = matmul_flops(partial(_by_batches, values, n), params, stacked, v)
    return Resources(batch, batch * each + in_all, 8 * v.size, flops)


def _fitting(f: Function, params: PyTree, xs: PyTree, memory_limit: int | None) -> tuple[int, int, int]:
    """Examples at a time, bytes for each of them, and bytes besides where these are not all."""
    in_all = 3 * sum(leaf.size * wide(leaf.dtype).itemsize for leaf in map(_array, jax.tree.leaves(params)))
    job = prepare(f, params, xs, None, "exact", memory_limit, besides=lambda _: (0, in_all))
    each, n = batch_bytes(job.plan.leaves)[0], job.sizes[0]
    return n if n * each <= job.limit else job.batch, each, in_all


def _array(leaf: Any) -> Any:
    return leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)


def _values_of(f: Function) -> Values:
    """The function of several examples, of which several arrays are one vector."""

    def one(params: PyTree, example: PyTree) -> Array:
        made = jax.tree.leaves(f(params, example))
        return made[0] if len(made) == 1 else jnp.concatenate([jnp.ravel(x) for x in made])

    return jax.vmap(one, in_axes=(None, 0))


def result_type(f: Function, params: PyTree, xs: PyTree) -> Any:
    """The type of the function's values."""
    return jax.eval_shape(_values_of(f), params, xs).dtype


def _linearized(values: Values, params: PyTree, xs: PyTree) -> Partial:
    """The function's derivative, with all that it keeps."""
    _, push = jax.linearize(lambda p: values(p, xs), params)
    closed = jax.make_jaxpr(push)(params)
    return Partial(Program(closed.jaxpr, jax.tree.structure(0)), closed.consts)


@jax.jit
def _linear(push: Partial, params: PyTree, v: Array) -> Array:
    product: Array = push(*jax.linear_transpose(push, params)(v))
    return product


def _rows(n: int, batch_size: int) -> Any:
    """Numbers of the examples of every batch; the last example fills up the last batch."""
    batches = -(-n // batch_size)
    return np.minimum(np.arange(batches * batch_size), n - 1).reshape(batches, batch_size)


def _by_batches(values: Values, n: int, params: PyTree, stacked: PyTree, v: Array) -> Array:
    """Θ v, with gradients summed over batches in float32 or wider."""
    batches, batch_size = jax.tree.leaves(stacked)[0].shape[:2]
    padded = jnp.zeros((batches * batch_size, *v.shape[1:]), v.dtype).at[:n].set(v)  # repeated examples get 0

    def add(total: PyTree, batch: tuple[PyTree, Array]) -> tuple[PyTree, None]:
        (gradient,) = jax.vjp(lambda p: values(p, batch[0]), params)[1](batch[1])
        return jax.tree.map(lambda x, y: x + y.astype(x.dtype), total, gradient), None

    zeros = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), wide(jnp.result_type(x))), params)
    pulled, _ = jax.lax.scan(add, zeros, (stacked, padded.reshape(batches, batch_size, *v.shape[1:])))
    pulled = jax.tree.map(lambda x, y: x.astype(jnp.result_type(y)), pulled, params)
    pushed = jax.lax.map(lambda some: jax.jvp(lambda p: values(p, some), (params,), (pulled,))[1], stacked)
    return pushed.reshape(-1, *v.shape[1:])[:n]
