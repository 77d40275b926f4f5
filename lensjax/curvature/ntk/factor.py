"""Gradients of a matrix as sums of outer products, and arithmetic with them that is exact to rounding."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from lensjax.curvature.ntk.costs import Sides
from lensjax.curvature.streaming import wide

_EXACT = jax.lax.Precision.HIGHEST


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Factor:
    """Gradients of a matrix [first, second] as sums over rows r of left[r] ⊗ right[r].

    Attributes:
      left: [examples, rows, first], or with outputs [examples, outputs, rows, first], or ids [examples, rows]; a row
        whose id is negative is 0.
      right: [examples, rows, second] or [examples, outputs, rows, second]; one of the two has outputs.
    """

    left: Array
    right: Array

    @property
    def looks_up(self) -> bool:
        """Whether the left side is one-hot, given by its ids."""
        return are_ids(self.left)

    @property
    def outputs_left(self) -> bool:
        """Whether the left side has outputs, of a factor without an axis of layers."""
        return not self.looks_up and self.left.ndim == 4

    @property
    def rows(self) -> int:
        """Rows of each example."""
        return int(self.left.shape[-1] if self.looks_up else self.left.shape[-2])

    @property
    def examples(self) -> int:
        """Number of examples."""
        return int(self.right.shape[0])

    @property
    def outputs(self) -> int:
        """Number of outputs, of a factor without an axis of layers."""
        return int((self.left if self.outputs_left else self.right).shape[1])

    @property
    def second(self) -> int:
        """Length of the second axis."""
        return int(self.right.shape[-1])

    @property
    def sides(self) -> Sides:
        """What its cost depends on."""
        return Sides(self.rows, self.looks_up, self.outputs_left)

    def some(self, examples: slice) -> "Factor":
        """The factor of some examples."""
        return Factor(self.left[examples], self.right[examples])

    def layers(self, start: Int[Array, ""], size: int) -> "Factor":
        """The factor of some layers, where left and right have an axis of layers before that of rows."""

        def take(x: Array, after: int) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, start, size, x.ndim - 1 - after)

        return Factor(take(self.left, 1 if self.looks_up else 2), take(self.right, 2))

    def layer(self, number: Int[Array, ""]) -> "Factor":
        """The factor of one layer, without the axis of layers."""
        one = self.layers(number, 1)
        left = one.left.squeeze(-2 if self.looks_up else -3)
        return Factor(left, one.right.squeeze(-3))

    def piece(self, number: Int[Array, ""], size: int, first: int) -> "Factor":
        """The factor of `size` of the `first` rows of the matrix; rows of other pieces are 0."""
        start = jnp.minimum(number * size, first - size)
        if self.looks_up:
            inside = (self.left >= number * size) & (self.left < (number + 1) * size)
            return Factor(jnp.where(inside, self.left - start, -1), self.right)
        left = jax.lax.dynamic_slice_in_dim(self.left, start, size, axis=-1)
        return Factor(jnp.where(start + jnp.arange(size) >= number * size, left, 0), self.right)

    def rounded(self, dtype: Any) -> "Factor":
        """The factor in another floating-point type."""
        return Factor(self.left if self.looks_up else self.left.astype(dtype), self.right.astype(dtype))


def tiled(x: Array, size: int) -> Array:
    """An array with its last axis in pieces of one size, [..., tiles, size], the last of them filled up with zeros."""
    count = -(-x.shape[-1] // size)
    padded = jnp.pad(x, [*[(0, 0)] * (x.ndim - 1), (0, count * size - x.shape[-1])])
    return padded.reshape(*x.shape[:-1], count, size)


def are_ids(left: Array) -> bool:
    """Whether the left side of a factor is given by ids."""
    return bool(jnp.issubdtype(left.dtype, jnp.integer))


def constrain(x: Array, mesh: Mesh | None, axis: int | None = None) -> Array:
    """An array shared over all devices along one axis, or copied to each; unchanged without a mesh."""
    if mesh is None:
        return x
    spec = PartitionSpec() if axis is None else PartitionSpec(*(None,) * axis, mesh.axis_names)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def einsum(spec: str, *arrays: Array) -> Array:
    """`jnp.einsum`, exact to rounding, summed in float32 or wider."""
    return jnp.einsum(spec, *arrays, precision=_EXACT, preferred_element_type=wide(jnp.result_type(*arrays)))
