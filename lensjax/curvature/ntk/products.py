"""Neural tangent kernels as operators, of which only products with vectors are computed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array

from lensjax.core.pytrees import PyTree, numeric
from lensjax.curvature.jaxpr.program import Function, Program
from lensjax.curvature.ntk.inputs import count_examples, on_host
from lensjax.curvature.ntk.plan import prepare
from lensjax.curvature.operator import LinearOperator


def ntk_vp(
    f: Function, params: PyTree, xs: PyTree, batch_size: int | None = None, *, memory_limit: int | None = None
) -> LinearOperator:
    """The kernel Θ as an operator v ↦ Θ v: one backward and one forward product with the Jacobian.

    Args:
      f, params, xs: See `lensjax.curvature.ntk.ntk.ntk`.
      batch_size: Examples at a time; each product then computes the function twice, and holds three arrays of the
        parameters' size besides a batch. By default all examples at once, with the function linearised once, which
        takes memory in proportion to N.
      memory_limit: Bytes that a product may take on a device besides parameters and examples; it chooses a batch size
        where none is given.

    Returns:
      An operator on vectors [N, *outputs].

    Raises:
      InputError: the arrays of xs do not have a leading axis of the same length, or the memory does not suffice.
    """
    xs = numeric(xs)
    n = count_examples(xs, "xs")
    if memory_limit is not None and batch_size is None:
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
        batch_size = prepare(f, params, xs, None, "exact", memory_limit, besides=lambda _: (0, 3 * size)).batch

    def values(params: PyTree, examples: PyTree) -> Array:
        return jax.vmap(f, in_axes=(None, 0))(params, examples)

    shape = jax.eval_shape(values, params, xs)
    like = jnp.zeros(shape.shape, shape.dtype)
    if batch_size is None or batch_size >= n:
        closed = jax.make_jaxpr(jax.linearize(lambda p: values(p, xs), params)[1])(params)
        push = Partial(Program(closed.jaxpr, jax.tree.structure(0)), closed.consts)

        @jax.jit
        def linear(push: Partial, params: PyTree, v: Array) -> Array:
            product: Array = push(*jax.linear_transpose(push, params)(v))
            return product

        return LinearOperator(partial(linear, push, params), like)
    batches = -(-n // batch_size)
    rows = np.minimum(np.arange(batches * batch_size), n - 1).reshape(batches, batch_size)
    stacked = jax.tree.map(lambda x: on_host(x)[rows], xs)

    @jax.jit
    def product(params: PyTree, stacked: PyTree, v: Array) -> Array:
        padded = jnp.zeros((batches * batch_size, *v.shape[1:]), v.dtype).at[:n].set(v)  # repeated examples get 0

        def add(total: PyTree, batch: tuple[PyTree, Array]) -> tuple[PyTree, None]:
            (gradient,) = jax.vjp(lambda p: values(p, batch[0]), params)[1](batch[1])
            return jax.tree.map(jnp.add, total, gradient), None

        zeros = jax.tree.map(jnp.zeros_like, params)
        pulled, _ = jax.lax.scan(add, zeros, (stacked, padded.reshape(batches, batch_size, *v.shape[1:])))
        pushed = jax.lax.map(lambda some: jax.jvp(lambda p: values(p, some), (params,), (pulled,))[1], stacked)
        return pushed.reshape(-1, *v.shape[1:])[:n]

    return LinearOperator(partial(product, params, stacked), like)
