"""Kernels of one parameter from the factors of its gradients: Θ[n, m] = Σ_p ∂f(x_n)/∂p · ∂f(x_m)/∂p."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

Output = Literal["full", "trace", "diagonal"]
TAIL = {"trace": "", "diagonal": "k", "full": "kl"}  # axes of a kernel after those of the examples

_EXACT = jax.lax.Precision.HIGHEST
_PANEL = 128  # rows at least, of a panel of a symmetric product
_PANELS = 4
_FEW = 64  # examples
_SHORT = 2048  # columns
_GRAM_SPEED = 2  # times as many operations a second as forming gradients, whose products are smaller


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Factor:
    """Gradients of a matrix [first, second] as sums over rows r of left[r] ⊗ right[r].

    Attributes:
      left: [examples, rows, first], or with outputs [examples, outputs, rows, first], or ids [examples, rows].
      right: [examples, rows, second] or [examples, outputs, rows, second]; one of the two has outputs.
    """

    left: Array
    right: Array

    @property
    def looks_up(self) -> bool:
        """Whether the left side is one-hot, given by its ids."""
        return _are_ids(self.left)

    @property
    def rows(self) -> int:
        """Rows of each example."""
        return int(self.left.shape[-1] if self.looks_up else self.left.shape[-2])

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

    def left_tiles(self, size: int, first: int) -> Array:
        """The left side of so many of the `first` rows of the matrix at a time, [tiles, …]."""
        if self.looks_up:
            return self.left - size * jnp.arange(-(-first // size)).reshape(-1, *[1] * self.left.ndim)
        return _tiles(self.left, size)

    def rounded(self, dtype: Any) -> "Factor":
        """The factor in another floating-point type."""
        return Factor(self.left if self.looks_up else self.left.astype(dtype), self.right.astype(dtype))


def contract(
    a: Sequence[Factor], b: Sequence[Factor], first: int, output: Output, chunk_bytes: int, mesh: Mesh | None = None
) -> Array:
    """The kernel of one matrix between two sets of examples, by the way that should take less time.

    Args:
      a, b: One factor for each use of the matrix.
      first: Length of its first axis.
      chunk_bytes: Bytes on a device for the gradients that are formed at a time.
      mesh: Devices that share the work.
    """
    if len(a) == 1 and a[0].rows > 1 and _gram_cost(a[0], b[0], output) < _GRAM_SPEED * _form_cost(a, b, first, output):
        return _gram(a[0], a[0] if a is b else b[0], output, chunk_bytes, mesh)
    return _form(a, b, first, output, chunk_bytes, mesh)


def _form(
    a: Sequence[Factor], b: Sequence[Factor], first: int, output: Output, chunk_bytes: int, mesh: Mesh | None
) -> Array:
    """Form gradients of a tile of the matrix at a time, its rows shared out over the devices, and contract them."""
    n, outputs, second = _sizes(a[0])
    m = b[0].right.shape[0]
    dtype = _wide(a[0].right.dtype)
    shape = {"trace": (n, m), "diagonal": (n, m, outputs), "full": (n, m, outputs, outputs)}[output]
    if not first * second:
        return jnp.zeros(shape, dtype)
    devices = 1 if mesh is None else mesh.size
    each = dtype.itemsize * outputs * (n if a is b else n + m)
    tile = _tile(first, second, max(1, chunk_bytes // each) * devices, devices)
    spread = mesh is not None and tile[0] % devices == 0
    sides = [a] if a is b else [a, b]
    lefts = [[factor.left_tiles(tile[0], first) for factor in side] for side in sides]
    lefts = jax.tree.map(lambda x: constrain(x, mesh, x.ndim - 1 if spread and not _are_ids(x) else None), lefts)
    rights = [[constrain(_tiles(factor.right, tile[1]), mesh) for factor in side] for side in sides]

    def gradient(left: list[Array], right: list[Array]) -> Array:
        formed = _gradient([Factor(*pair) for pair in zip(left, right, strict=True)], *tile)
        return constrain(formed, mesh, 2) if spread else formed

    def strip(total: Array, left: list[list[Array]]) -> tuple[Array, None]:
        def add(total: Array, right: list[list[Array]]) -> tuple[Array, None]:
            formed = [gradient(*pair) for pair in zip(left, right, strict=True)]
            return total + _products(formed[0], formed[-1], output, mesh), None

        return jax.lax.scan(add, total, rights)[0], None

    return jax.lax.scan(strip, jnp.zeros(shape, dtype), lefts)[0]


def _tiles(x: Float[Array, "*axes length"], size: int) -> Float[Array, "tiles *axes {size}"]:
    """The last axis in pieces of one size, the last of them filled up with zeros."""
    count = -(-x.shape[-1] // size)
    padded = jnp.pad(x, [*[(0, 0)] * (x.ndim - 1), (0, count * size - x.shape[-1])])
    return jnp.moveaxis(padded.reshape(*x.shape[:-1], count, size), -2, 0)


def _tile(first: int, second: int, numbers: int, devices: int) -> tuple[int, int]:
    """Rows and columns of at most so many numbers of a matrix, about as many rows as columns, or half as many.

    Gradients are sums of outer products: a square tile reads least of both sides for its numbers.
    """
    columns = min(second, max(_power_of_two(math.isqrt(2 * numbers)), numbers // first))
    rows = min(first, max(numbers // columns, 1))
    return rows if rows == first else max(_power_of_two(rows) // devices, 1) * devices, columns


def _power_of_two(number: int) -> int:
    """The largest one that is not greater."""
    return 1 << (number.bit_length() - 1)


def _products(a: Array, b: Array, output: Output, mesh: Mesh | None) -> Array:
    """Products of gradients [examples, outputs, first, second]: [n, m], [n, m, outputs] or [n, m, outputs, outputs]."""
    kept = "" if output == "trace" else "k"
    spec = "nkp,mlp->nmkl" if output == "full" else f"n{kept}p,m{kept}p->nm{kept}"
    if mesh is not None:  # in one axis, pieces of several devices could not lie side by side
        return einsum(spec.replace("p", "fs" if kept else "kfs"), a, b)
    if output == "trace" and max(len(a), len(b)) <= _FEW and jax.default_backend() == "cpu":
        return _short_products(a, b)
    one = a.reshape(*a.shape[: 1 + len(kept)], -1)
    other = one if a is b else b.reshape(*b.shape[: 1 + len(kept)], -1)
    return _by_panels(len(a), a is b, _PANEL, lambda rows, columns: einsum(spec, one[rows], other[columns]))


def _short_products(a: Array, b: Array) -> Float[Array, "n m"]:
    """Products of few, very long gradients: one product takes twice as long as the sum of many short ones."""
    rows, second = math.prod(a.shape[1:-1]), a.shape[-1]
    each = math.gcd(rows, max(1, _SHORT // second))
    parts = [x.reshape(len(x), rows // each, each * second).swapaxes(0, 1) for x in ((a,) if a is b else (a, b))]
    return einsum("pnk,pmk->pnm", parts[0], parts[-1]).sum(axis=0)


def _by_panels(n: int, symmetric: bool, least: int, product: Callable[[slice, slice], Array]) -> Array:
    """The kernel of rows and columns of examples, of which about half is computed if it is symmetric.

    Args:
      n: Examples of the rows.
      least: Fewest examples of a panel.
      product: The kernel of some rows and columns.
    """
    panels = min(n // least, _PANELS) if symmetric else 1
    if panels < 2:
        return product(slice(None), slice(None))
    edges = [n * i // panels for i in range(panels + 1)]
    kernel: Array | None = None
    for start, end in itertools.pairwise(edges):
        panel = product(slice(start, end), slice(start, None))
        kernel = jnp.zeros((n, *panel.shape[1:]), panel.dtype) if kernel is None else kernel
        turned = panel[:, end - start :].swapaxes(0, 1)
        kernel = kernel.at[start:end, start:].set(panel)
        kernel = kernel.at[end:, start:end].set(turned.swapaxes(2, 3) if turned.ndim == 4 else turned)
    assert kernel is not None
    return kernel


def _gradient(factors: Sequence[Factor], first: int, second: int) -> Float[Array, "n outputs f s"]:
    """Gradients of a matrix of so many rows and columns."""
    n, outputs, _ = _sizes(factors[0])
    total = jnp.zeros((n, outputs, first, second), _wide(factors[0].right.dtype))
    for factor in factors:
        if factor.looks_up:
            at = jnp.where((factor.left >= 0) & (factor.left < first), factor.left, first)  # out of bounds, and dropped

            def scatter(zeros: Array, ids: Array, rows: Array) -> Array:
                return zeros.at[:, ids].add(rows.astype(zeros.dtype), mode="drop")

            total = jax.vmap(scatter)(total, at, factor.right)
        else:
            spec = "nkrf,nrs->nkfs" if factor.left.ndim == 4 else "nrf,nkrs->nkfs"
            total = total + einsum(spec, factor.left, factor.right)
    return total


def _gram(a: Factor, b: Factor, output: Output, chunk_bytes: int, mesh: Mesh | None) -> Array:
    """Σ over rows r of one example and s of the other of (left_r · left_s)(right_r · right_s), of some at a time."""
    symmetric = a is b and mesh is None
    if mesh is not None:
        a = jax.tree.map(lambda x: constrain(x, mesh), a)
        b = jax.tree.map(lambda x: constrain(x, mesh, 0), b)

    def products(rows: slice, columns: slice) -> Array:
        left, right = b.left[columns], b.right[columns]
        outputs = 1 if output == "trace" else _sizes(b)[1] ** (2 if output == "full" else 1)
        each = a.rows * len(right) * b.rows * _wide(right.dtype).itemsize * (1 + outputs)

        def one(example: tuple[Array, Array]) -> Array:
            if a.looks_up:
                inner = example[0][:, None, None] == left
                return _weigh(inner.astype(_wide(right.dtype)), example[1], right, output)
            if left.ndim == 3:
                return _weigh(einsum("rf,msf->rms", example[0], left), example[1], right, output)
            return _weigh(einsum("rf,msf->rms", example[1], right), example[0], left, output)

        some = a.left[rows], a.right[rows]
        at_once = max(1, chunk_bytes * (1 if mesh is None else mesh.size) // each)
        return jax.lax.map(one, some, batch_size=min(at_once, len(some[0])))

    return _by_panels(len(a.right), symmetric, max(1, _PANEL // a.rows), products)


def _weigh(inner: Array, one: Array, others: Array, output: Output) -> Array:
    """Products of the sides with outputs, [outputs, r, q] and [m, outputs, s, q], weighted by inner [r, m, s]."""
    if output == "trace":
        return (inner * einsum("krq,mksq->rms", one, others)).sum(axis=(0, 2))
    if output == "diagonal":
        return (inner * einsum("krq,mksq->krms", one, others)).sum(axis=(1, 3)).T
    return jnp.moveaxis((inner[:, None] * einsum("krq,mlsq->krlms", one, others)).sum(axis=(1, 4)), 2, 0)


def _gram_cost(a: Factor, b: Factor, output: Output) -> float:
    n, outputs, _ = _sizes(a)
    one, other = (1 if a.looks_up else a.left.shape[-1]), a.right.shape[-1]
    without, within = (other, one) if a.left.ndim == 4 else (one, other)
    pairs = outputs**2 if output == "full" else outputs
    return float(n) * b.right.shape[0] * a.rows * b.rows * (without + pairs * within)


def _form_cost(a: Sequence[Factor], b: Sequence[Factor], first: int, output: Output) -> float:
    n, outputs, second = _sizes(a[0])
    m = b[0].right.shape[0]
    rows = sum(1 if factor.looks_up else factor.rows for factor in a)
    pairs = outputs**2 if output == "full" else outputs
    return float(first) * second * ((n + (0 if a is b else m)) * rows * outputs + n * m * pairs)


def _sizes(factor: Factor) -> tuple[int, int, int]:
    """Examples, outputs and length of the second axis."""
    outputs = factor.left.shape[1] if factor.left.ndim == 4 else factor.right.shape[1]
    return int(factor.right.shape[0]), int(outputs), int(factor.right.shape[-1])


def _are_ids(left: Array) -> bool:
    return bool(jnp.issubdtype(left.dtype, jnp.integer))


def constrain(x: Array, mesh: Mesh | None, axis: int | None = None) -> Array:
    """An array shared over all devices along one axis, or copied to each; unchanged without a mesh."""
    if mesh is None:
        return x
    spec = PartitionSpec() if axis is None else PartitionSpec(*(None,) * axis, mesh.axis_names)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def einsum(spec: str, *arrays: Array) -> Array:
    """`jnp.einsum`, exact to rounding, summed in float32 or wider."""
    wide = _wide(jnp.result_type(*arrays))
    return jnp.einsum(spec, *arrays, precision=_EXACT, preferred_element_type=wide)


def _wide(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)
