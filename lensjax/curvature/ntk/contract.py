"""Kernels of one parameter from the factors of its gradients: Θ[n, m] = Σ_p ∂f(x_n)/∂p · ∂f(x_m)/∂p."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from lensjax.curvature.ntk.costs import PANEL, PANELS, Output, Way, ways
from lensjax.curvature.ntk.factor import Factor, are_ids, constrain, einsum, tiled
from lensjax.curvature.ntk.gram import gram
from lensjax.curvature.ntk.panels import from_upper, panels
from lensjax.curvature.streaming import wide


def contract(
    a: Sequence[Factor],
    b: Sequence[Factor],
    first: int,
    output: Output,
    chunk_bytes: int,
    mesh: Mesh | None = None,
    way: Way | None = None,
) -> Array:
    """The kernel of one matrix between two sets of examples, by the way that should take less time.

    Args:
      a, b: One factor for each use of the matrix; the same sequence for a kernel of examples with themselves.
      first: Length of its first axis.
      chunk_bytes: Bytes on a device for what is formed at a time.
      mesh: Devices that share the work.
      way: The way, whatever it takes.
    """
    one = a[0]
    dtype = wide(one.right.dtype)
    if not all(factor.rows for factor in a):  # a product of no rows, as in a loop of no steps, has no gradient
        used = [number for number, factor in enumerate(a) if factor.rows]
        if not used:
            return jnp.zeros(_shape(one, b[0], output), dtype)
        same, a = a is b, [a[number] for number in used]
        b = a if same else [b[number] for number in used]
        one = a[0]
    sizes = one.examples, (0 if a is b else b[0].examples)
    uses = [factor.sides for factor in a]
    found = ways(uses, sizes, (first, one.second), one.outputs, output, itemsize=dtype.itemsize)
    if (way or found.chosen) == "gram":
        return gram(a, b, output, chunk_bytes, mesh)
    if all(factor.looks_up for factor in a):
        a, b, first = _compact(a, b, first)
    return _form(a, b, first, output, chunk_bytes, mesh)


def _shape(one: Factor, other: Factor, output: Output) -> tuple[int, ...]:
    """Of a kernel between the examples of two factors."""
    outputs = {"trace": 0, "diagonal": 1, "full": 2}[output]
    return (one.examples, other.examples, *[one.outputs] * outputs)


def _form(
    a: Sequence[Factor], b: Sequence[Factor], first: int, output: Output, chunk_bytes: int, mesh: Mesh | None
) -> Array:
    """Form gradients of a tile of the matrix at a time, its rows shared out over the devices, and contract them.

    Examples of a symmetric kernel are formed in panels, so that no product has to copy some of them.
    """
    n, m, outputs, second = a[0].examples, b[0].examples, a[0].outputs, a[0].second
    dtype, same, axes = wide(a[0].right.dtype), a is b, _order(a)
    if not first * second:
        return jnp.zeros(_shape(a[0], b[0], output), dtype)
    devices = 1 if mesh is None else mesh.size
    each = dtype.itemsize * outputs * (n if same else n + m)
    at_once = sum(factor.right.size * factor.right.dtype.itemsize for factor in (a if same else [*a, *b]))
    widest = second if mesh is None else max(1, chunk_bytes * second // at_once)
    tile = _tile(first, second, max(1, chunk_bytes // each) * devices, devices, widest)
    parts = panels(n, same and mesh is None, PANEL, PANELS)
    sides = [[factor.some(part) for factor in a] for part in parts] if same else [a, b]
    upper = [range(i, len(sides)) for i in range(len(sides))] if same else [range(1, 2)]
    lefts = [[_left_tiles(factor, tile[0], first, mesh) for factor in side] for side in sides]
    rights = [[constrain(tiled(factor.right, tile[1]), mesh, 0) for factor in side] for side in sides]

    def gradient(left: list[Array], right: list[Array]) -> Array:
        formed = _formed(left, right, axes, {"k": outputs, "f": tile[0], "s": tile[1]})
        return constrain(formed, mesh, axes.index("f"))

    def strip(total: list[list[Array]], number: Array) -> tuple[list[list[Array]], None]:
        right = jax.tree.map(lambda x: _rows_first(jax.lax.dynamic_index_in_dim(x, number, -2, False)), rights)
        right = jax.tree.map(lambda x: constrain(x, mesh), right)  # of all examples, in this tile alone

        def add(total: list[list[Array]], left: list[list[Array]]) -> tuple[list[list[Array]], None]:
            formed = [gradient(*pair) for pair in zip(left, right, strict=True)]
            products = [
                [_products(formed[i], formed[j], axes, output, mesh) for j in row] for i, row in enumerate(upper)
            ]
            return jax.tree.map(jnp.add, total, products), None

        return jax.lax.scan(add, total, lefts)[0], None

    zeros = [[jnp.zeros(_shape(sides[i][0], sides[j][0], output), dtype) for j in row] for i, row in enumerate(upper)]
    total, _ = jax.lax.scan(strip, zeros, jnp.arange(-(-second // tile[1])))
    return from_upper(total) if same else total[0][0]


def _left_tiles(factor: Factor, size: int, first: int, mesh: Mesh | None) -> Array:
    """The left side of so many of the `first` rows of the matrix at a time, [tiles, …]: ids count from its first.

    Of a mesh, whose size divides that of a tile, every device has rows that are neighbours in the matrix, and as many
    of them in every tile; ids go to all devices.
    """
    count, devices = -(-first // size), 1 if mesh is None else mesh.size
    each = size // devices  # rows of a tile on a device, which has `count` times as many
    if factor.looks_up:
        ids = constrain(factor.left, mesh)
        device, within = ids // (count * each), ids % (count * each)
        numbers = jnp.arange(count).reshape(-1, *[1] * ids.ndim)
        return jnp.where((ids >= 0) & (within // each == numbers), device * each + within % each, -1)
    left = _rows_first(factor.left)
    padded = jnp.pad(left, [*[(0, 0)] * (left.ndim - 1), (0, count * size - first)])
    padded = constrain(padded, mesh, 0)  # as examples are: only then do rows change places, and none is copied
    split = constrain(padded, mesh, padded.ndim - 1).reshape(*left.shape[:-1], devices, count, each)
    return jnp.moveaxis(split, -2, 0).reshape(count, *left.shape[:-1], size)


def _rows_first(x: Array) -> Array:
    """A side of a factor with its rows before its outputs, as products that sum over rows have them."""
    return x.swapaxes(1, 2) if x.ndim == 4 else x


def _tile(first: int, second: int, numbers: int, devices: int, widest: int) -> tuple[int, int]:
    """Rows and columns of at most so many numbers of a matrix, about as many rows as columns, or half as many.

    Gradients are sums of outer products: a square tile reads least of both sides for its numbers. Devices have as many
    rows each, so that there may be more than those of the matrix, and get `widest` columns at most of all examples.
    """
    columns = min(second, widest, max(_power_of_two(math.isqrt(2 * numbers)), numbers // first))
    rows = min(first, max(numbers // columns, 1))
    if rows == first:
        return -(-rows // devices) * devices, columns
    return max(_power_of_two(rows) // devices, 1) * devices, columns


def _power_of_two(number: int) -> int:
    """The largest one that is not greater."""
    return 1 << (number.bit_length() - 1)


def _products(a: Array, b: Array, axes: str, output: Output, mesh: Mesh | None) -> Array:
    """Products of gradients with such axes: [n, m], [n, m, outputs] or [n, m, outputs, outputs]."""
    if output == "trace" and mesh is None:  # of several axes, XLA would turn b about first
        return einsum("np,mp->nm", a.reshape(len(a), -1), b.reshape(len(b), -1))
    other = axes.replace("n", "m")
    kept = {"trace": "", "diagonal": "k", "full": "kl"}[output]
    return einsum(f"{axes},{other.replace('k', 'l') if output == 'full' else other}->nm{kept}", a, b)


def _order(factors: Sequence[Factor]) -> str:
    """Axes of gradients, n examples, k outputs, f rows, s columns, in the order in which products give most of them."""
    return "nkfs" if any(factor.outputs_left for factor in factors) else "nfks"


def _formed(left: Sequence[Array], right: Sequence[Array], axes: str, sizes: dict[str, int]) -> Array:
    """Gradients of a tile, with such axes, from the sides of all uses of its matrix, see `_rows_first`."""
    dtype = wide(right[0].dtype)
    shape = [sizes[axis] for axis in axes[1:]]
    total = jnp.zeros((len(right[0]), *shape), dtype)
    for one, other in zip(left, right, strict=True):
        if are_ids(one):
            at = jnp.where((one >= 0) & (one < sizes["f"]), one, sizes["f"])  # out of bounds, and dropped

            def scatter(zeros: Array, ids: Array, rows: Array) -> Array:
                if axes == "nkfs":
                    return zeros.at[:, ids].add(rows.swapaxes(0, 1).astype(dtype), mode="drop")
                return zeros.at[ids].add(rows.astype(dtype), mode="drop")

            total = jax.vmap(scatter)(total, at, other)
        else:
            if jax.default_backend() == "cpu":  # whose products have no factors of two bytes in all layouts
                one, other = one.astype(dtype), other.astype(dtype)
            spec = "nrkf,nrs" if one.ndim == 4 else "nrf,nrks"
            total = total + einsum(f"{spec}->{axes}", one, other)
    return total


def gradients(factors: Sequence[Factor], first: int, second: int) -> Float[Array, "n outputs f s"]:
    """Gradients of a matrix of so many rows and columns, from the factors of all its uses."""
    lefts, rights = (
        [_rows_first(x) for x in side] for side in zip(*[(one.left, one.right) for one in factors], strict=True)
    )
    return _formed(lefts, rights, "nkfs", {"k": factors[0].outputs, "f": first, "s": second})


def _compact(a: Sequence[Factor], b: Sequence[Factor], first: int) -> tuple[list[Factor], list[Factor], int]:
    """Factors of the rows that are looked up at all, numbered anew, and an upper limit on their number."""
    every = a if b is a else [*a, *b]
    ids = jnp.concatenate([factor.left.ravel() for factor in every])
    count = min(first + 1, ids.size)  # ids of rows that are void are one more
    present = jnp.unique(ids, size=count, fill_value=first)
    numbered = [jnp.where(factor.left < 0, -1, jnp.searchsorted(present, factor.left)) for factor in every]
    made = [Factor(left, factor.right) for left, factor in zip(numbered, every, strict=True)]
    return made[: len(a)], made[: len(a)] if b is a else made[len(a) :], count
