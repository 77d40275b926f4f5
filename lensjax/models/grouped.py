"""Products of rows with matrices, of which each row's group names one, as experts of a model compute them.

`jax.lax.ragged_dot` computes them, yet has no rule for vmap and none for reverse mode over reverse mode. The derivative
of either product here is the other one, or itself with matrices transposed, and examples under vmap become rows of more
groups, so that both compose with every transformation. TPUs compute them by `ragged_dot`, other devices group by group
in blocks of rows, as `ragged_dot` would multiply every row with every matrix there.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float, Int

_BLOCK = 128  # rows of one product


def grouped_dot(
    rows: Float[Array, "rows inner"],
    matrices: Float[Array, "groups inner outer"],
    groups: Int[Array, " rows"],
    *,
    in_order: bool = False,
) -> Float[Array, "rows outer"]:
    """rows[r] @ matrices[groups[r]] for every row r.

    Args:
      rows, matrices: The factors, of one type.
      groups: The matrix of each row; rows whose group is the number of matrices give 0.
      in_order: Whether groups do not decrease; else rows are sorted first.
    """
    return _DOT.bind(rows, matrices, groups, in_order=in_order)


def grouped_outer(
    left: Float[Array, "rows inner"],
    right: Float[Array, "rows outer"],
    groups: Int[Array, " rows"],
    *,
    count: int,
    in_order: bool = False,
) -> Float[Array, "groups inner outer"]:
    """The sum of left[r] ⊗ right[r] over the rows r of every group; see `grouped_dot`."""
    return _OUTER.bind(left, right, groups, count=count, in_order=in_order)


def _dot_by(product: Callable[[Array, Array, Array], Array]) -> Callable[..., Array]:
    """`grouped_dot` by a product that takes sorted rows and the sizes of groups."""

    def dot(rows: Array, matrices: Array, groups: Array, *, in_order: bool) -> Array:
        sizes = _sizes(groups, len(matrices))
        if in_order:
            return product(rows, matrices, sizes)
        order = jnp.argsort(groups, stable=True)
        y = product(rows[order], matrices, sizes)
        return jnp.zeros_like(y).at[order].set(y, unique_indices=True)

    return dot


def _outer_by(product: Callable[[Array, Array, Array], Array]) -> Callable[..., Array]:
    """The same of `grouped_outer`."""

    def outer(left: Array, right: Array, groups: Array, *, count: int, in_order: bool) -> Array:
        if not in_order:
            order = jnp.argsort(groups, stable=True)
            left, right = left[order], right[order]
        return product(left, right, _sizes(groups, count))

    return outer


def _sizes(groups: Int[Array, " rows"], count: int) -> Int[Array, " groups"]:
    return jnp.zeros(count, jnp.int32).at[groups].add(1, mode="drop")


def _ragged_dot(rows: Array, matrices: Array, sizes: Array) -> Array:
    return jax.lax.ragged_dot(rows, matrices, sizes)


def _ragged_outer(left: Array, right: Array, sizes: Array) -> Array:
    numbers = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
    )
    return jax.lax.ragged_dot_general(left, right, sizes, numbers)


def _block(rows: int, groups: int) -> int:
    """Rows of one product: about those of a group."""
    return min(rows, _BLOCK, max(8, -(-rows // groups)))


def _blocked_dot(rows: Array, matrices: Array, sizes: Array) -> Array:
    """Each group writes whole blocks, whose end the next group writes over; so nothing follows the last but zeros."""
    block = _block(len(rows), len(matrices))
    padded = jnp.pad(rows, ((0, block), (0, 0)))
    ends = jnp.cumsum(sizes)

    def one(group: Array, y: Array) -> Array:
        matrix, start = matrices[group], ends[group] - sizes[group]

        def step(i: Array, y: Array) -> Array:
            at = start + i * block
            here = jax.lax.dynamic_slice_in_dim(padded, at, block) @ matrix
            return jax.lax.dynamic_update_slice_in_dim(y, here.astype(y.dtype), at, 0)

        return jax.lax.fori_loop(0, -(-sizes[group] // block), step, y)

    y = jnp.zeros((len(padded), matrices.shape[2]), rows.dtype)
    y = jax.lax.fori_loop(0, len(matrices), one, y)[: len(rows)]
    return jnp.where(jnp.arange(len(rows))[:, None] < ends[-1], y, 0)


def _blocked_outer(left: Array, right: Array, sizes: Array) -> Array:
    block = _block(len(left), len(sizes))
    left, right = (jnp.pad(x, ((0, block), (0, 0))) for x in (left, right))
    ends = jnp.cumsum(sizes)

    def one(group: Array) -> Array:
        start = ends[group] - sizes[group]

        def step(i: Array, total: Array) -> Array:
            at = start + i * block
            mine = (at + jnp.arange(block) < ends[group])[:, None]
            x, y = (jax.lax.dynamic_slice_in_dim(z, at, block) for z in (left, right))
            return total + jnp.where(mine, x, 0).T @ y

        zeros = jnp.zeros((left.shape[1], right.shape[1]), left.dtype)
        return jax.lax.fori_loop(0, -(-sizes[group] // block), step, zeros)

    return jax.lax.map(one, jnp.arange(len(sizes)))


def _dot_aval(rows: Any, matrices: Any, groups: Any, *, in_order: bool) -> Any:
    return ShapedArray((rows.shape[0], matrices.shape[2]), rows.dtype)


def _outer_aval(left: Any, right: Any, groups: Any, *, count: int, in_order: bool) -> Any:
    return ShapedArray((count, left.shape[1], right.shape[1]), left.dtype)


def _jvp(primitive: Primitive, primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> tuple[Any, Any]:
    """That of a product."""
    (a, b, groups), (da, db, _) = primals, tangents
    y = primitive.bind(a, b, groups, **params)
    terms = [] if type(da) is ad.Zero else [primitive.bind(da, b, groups, **params)]
    terms += [] if type(db) is ad.Zero else [primitive.bind(a, db, groups, **params)]
    return y, sum(terms[1:], terms[0]) if terms else ad.Zero.from_primal_value(y)  # type: ignore[attr-defined]


def _transpose_dot(ct: Any, rows: Any, matrices: Any, groups: Any, *, in_order: bool) -> list[Any]:
    if type(ct) is ad.Zero:
        return [None, None, None]
    if ad.is_undefined_primal(rows):
        return [_DOT.bind(ct, jnp.swapaxes(matrices, 1, 2), groups, in_order=in_order), None, None]
    count = matrices.aval.shape[0]
    return [None, _OUTER.bind(rows, ct, groups, count=count, in_order=in_order), None]


def _transpose_outer(ct: Any, left: Any, right: Any, groups: Any, *, count: int, in_order: bool) -> list[Any]:
    if type(ct) is ad.Zero:
        return [None, None, None]
    if ad.is_undefined_primal(left):
        return [_DOT.bind(right, jnp.swapaxes(ct, 1, 2), groups, in_order=in_order), None, None]
    return [None, _DOT.bind(left, ct, groups, in_order=in_order), None]


def _batch_dot(args: Sequence[Any], dims: Sequence[Any], *, in_order: bool) -> tuple[Any, int]:
    """Examples are rows of the same groups, or of groups of their own where each has its own matrices.

    Those without a group then lie between others, so that rows are sorted again.
    """
    size = next(arg.shape[dim] for arg, dim in zip(args, dims, strict=True) if dim is not None)
    own = dims[1] is not None
    rows, groups = (_leading(args[i], dims[i], size) for i in (0, 2))
    matrices = jnp.moveaxis(args[1], dims[1], 0) if own else args[1]
    if own:
        groups = _numbered(groups, matrices.shape[1], size)
        matrices = matrices.reshape(-1, *matrices.shape[2:])
    merged = rows.reshape(-1, rows.shape[-1]), matrices, groups.reshape(-1)
    y = _DOT.bind(*merged, in_order=False)
    return y.reshape(size, -1, y.shape[-1]), 0


def _batch_outer(args: Sequence[Any], dims: Sequence[Any], *, count: int, in_order: bool) -> tuple[Any, int]:
    size = next(arg.shape[dim] for arg, dim in zip(args, dims, strict=True) if dim is not None)
    left, right, groups = (_leading(arg, dim, size) for arg, dim in zip(args, dims, strict=True))
    groups = _numbered(groups, count, size)
    merged = left.reshape(-1, left.shape[-1]), right.reshape(-1, right.shape[-1]), groups.reshape(-1)
    y = _OUTER.bind(*merged, count=size * count, in_order=False)
    return y.reshape(size, count, *y.shape[1:]), 0


def _leading(x: Any, dim: int | None, size: int) -> Any:
    return jnp.broadcast_to(x, (size, *x.shape)) if dim is None else jnp.moveaxis(x, dim, 0)


def _numbered(groups: Int[Array, "size rows"], count: int, size: int) -> Int[Array, "size rows"]:
    """Groups of all examples, those without one keeping none."""
    offsets = count * jnp.arange(size, dtype=groups.dtype)[:, None]
    return jnp.where(groups < count, groups + offsets, size * count)


def _primitive(
    name: str, aval: Any, plain: Callable[..., Array], tpu: Callable[..., Array], transpose: Any, batch: Any
) -> Primitive:
    primitive = Primitive(name)
    primitive.def_abstract_eval(aval)
    primitive.def_impl(lambda *args, **params: jax.jit(partial(primitive.bind, **params))(*args))
    mlir.register_lowering(primitive, mlir.lower_fun(plain, multiple_results=False))
    mlir.register_lowering(primitive, mlir.lower_fun(tpu, multiple_results=False), platform="tpu")
    ad.primitive_jvps[primitive] = partial(_jvp, primitive)
    ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = batch
    return primitive


_DOT = _primitive("grouped_dot", _dot_aval, _dot_by(_blocked_dot), _dot_by(_ragged_dot), _transpose_dot, _batch_dot)
_OUTER = _primitive(
    "grouped_outer", _outer_aval, _outer_by(_blocked_outer), _outer_by(_ragged_outer), _transpose_outer, _batch_outer
)
