"""Kernels of one parameter from the factors of its gradients: Θ[n, m] = Σ_p ∂f(x_n)/∂p · ∂f(x_m)/∂p."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from lensjax.curvature.ntk.costs import Output, Way, ways
from lensjax.curvature.ntk.factor import Factor, are_ids, constrain, einsum, tiles
from lensjax.curvature.ntk.gram import gram
from lensjax.curvature.ntk.panels import by_panels
from lensjax.curvature.streaming import wide

_PANEL = 64  # examples at least, of a panel of a symmetric product


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
    """Form gradients of a tile of the matrix at a time, its rows shared out over the devices, and contract them."""
    n, m, outputs, second = a[0].examples, b[0].examples, a[0].outputs, a[0].second
    dtype, shape = wide(a[0].right.dtype), _shape(a[0], b[0], output)
    if not first * second:
        return jnp.zeros(shape, dtype)
    devices = 1 if mesh is None else mesh.size
    each = dtype.itemsize * outputs * (n if a is b else n + m)
    tile = _tile(first, second, max(1, chunk_bytes // each) * devices, devices)
    spread = mesh is not None and tile[0] % devices == 0
    sides = [a] if a is b else [a, b]
    lefts = [[factor.left_tiles(tile[0], first) for factor in side] for side in sides]
    lefts = jax.tree.map(lambda x: constrain(x, mesh, x.ndim - 1 if spread and not are_ids(x) else None), lefts)
    rights = [[constrain(tiles(factor.right, tile[1]), mesh) for factor in side] for side in sides]

    def gradient(left: list[Array], right: list[Array]) -> Array:
        formed = gradients([Factor(*pair) for pair in zip(left, right, strict=True)], *tile)
        return constrain(formed, mesh, 2) if spread else formed

    def strip(total: Array, left: list[list[Array]]) -> tuple[Array, None]:
        def add(total: Array, right: list[list[Array]]) -> tuple[Array, None]:
            formed = [gradient(*pair) for pair in zip(left, right, strict=True)]
            return total + _products(formed[0], formed[-1], output, mesh), None

        return jax.lax.scan(add, total, rights)[0], None

    return jax.lax.scan(strip, jnp.zeros(shape, dtype), lefts)[0]


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
    one = a.reshape(*a.shape[: 1 + len(kept)], -1)
    other = one if a is b else b.reshape(*b.shape[: 1 + len(kept)], -1)
    return by_panels(len(a), a is b, _PANEL, lambda rows, columns: einsum(spec, one[rows], other[columns]))


def gradients(factors: Sequence[Factor], first: int, second: int) -> Float[Array, "n outputs f s"]:
    """Gradients of a matrix of so many rows and columns, from the factors of all its uses."""
    one = factors[0]
    total = jnp.zeros((one.examples, one.outputs, first, second), wide(one.right.dtype))
    for factor in factors:
        if factor.looks_up:
            at = jnp.where((factor.left >= 0) & (factor.left < first), factor.left, first)  # out of bounds, and dropped

            def scatter(zeros: Array, ids: Array, rows: Array) -> Array:
                return zeros.at[:, ids].add(rows.astype(zeros.dtype), mode="drop")

            total = jax.vmap(scatter)(total, at, factor.right)
        else:
            spec = "nkrf,nrs->nkfs" if factor.outputs_left else "nrf,nkrs->nkfs"
            total = total + einsum(spec, factor.left, factor.right)
    return total


def _compact(a: Sequence[Factor], b: Sequence[Factor], first: int) -> tuple[list[Factor], list[Factor], int]:
    """Factors of the rows that are looked up at all, numbered anew, and an upper limit on their number."""
    every = a if b is a else [*a, *b]
    ids = jnp.concatenate([factor.left.ravel() for factor in every])
    count = min(first + 1, ids.size)  # ids of rows that are void are one more
    present = jnp.unique(ids, size=count, fill_value=first)
    numbered = [jnp.where(factor.left < 0, -1, jnp.searchsorted(present, factor.left)) for factor in every]
    made = [Factor(left, factor.right) for left, factor in zip(numbered, every, strict=True)]
    return made[: len(a)], made[: len(a)] if b is a else made[len(a) :], count
