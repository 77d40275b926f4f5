"""Kernels of one parameter from the factors of its gradients: Θ[n, m] = Σ_p ∂f(x_n)/∂p · ∂f(x_m)/∂p."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

Output = Literal["full", "trace", "diagonal"]
TAIL = {"trace": "", "diagonal": "k", "full": "kl"}  # axes of a kernel after those of the examples

_EXACT = jax.lax.Precision.HIGHEST
_PANEL = 64  # examples at least, of a panel of a symmetric kernel
_PANELS = 8
_FEW = 128  # examples
_SHORT = 4096  # columns


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
        return bool(jnp.issubdtype(self.left.dtype, jnp.integer))

    @property
    def rows(self) -> int:
        """Rows of each example."""
        return int(self.left.shape[-1] if self.looks_up else self.left.shape[-2])

    def layers(self, start: Int[Array, ""], size: int) -> "Factor":
        """The factor of some layers, where left and right have an axis of layers before that of rows."""

        def take(x: Array, after: int) -> Array:
            taken: Array = jax.lax.dynamic_slice_in_dim(x, start, size, x.ndim - 1 - after)
            return taken

        return Factor(take(self.left, 1 if self.looks_up else 2), take(self.right, 2))

    def layer(self, number: Int[Array, ""]) -> "Factor":
        """The factor of one layer, without the axis of layers."""
        one = self.layers(number, 1)
        left = one.left.squeeze(-2 if self.looks_up else -3)
        return Factor(left, one.right.squeeze(-3))

    def piece(self, number: Int[Array, ""], size: int, first: int) -> "Factor":
        """The factor of `size` of the `first` rows of the matrix; in the last piece, what others have is 0."""
        start = jnp.minimum(number * size, first - size)
        if self.looks_up:
            return Factor(jnp.where(self.left >= number * size, self.left - start, -1), self.right)
        left = jax.lax.dynamic_slice_in_dim(self.left, start, size, axis=-1)
        return Factor(jnp.where(start + jnp.arange(size) >= number * size, left, 0), self.right)

    def rounded(self, dtype: Any) -> "Factor":
        """The factor in another floating-point type."""
        return Factor(self.left if self.looks_up else self.left.astype(dtype), self.right.astype(dtype))


def contract_gradients(a: Array, b: Array, output: Output, mesh: Mesh | None = None) -> Array:
    """Products of gradients [examples, outputs, first, second]: [n, m], [n, m, outputs] or [n, m, outputs, outputs].

    Where `a` is `b`, about half of them are computed.
    """
    if output == "trace" and mesh is None:
        return _inner_products(a, b)
    kept = "" if output == "trace" else "k"
    spec = "nkp,mlp->nmkl" if output == "full" else f"n{kept}p,m{kept}p->nm{kept}"
    if mesh is not None:  # in one axis, pieces of several devices could not lie side by side
        return einsum(spec.replace("p", "fs" if kept else "kfs"), a, b)
    return einsum(spec, *(x.reshape(*x.shape[:2], -1) for x in (a, b)))


def _inner_products(a: Array, b: Array) -> Float[Array, "n m"]:
    n, m, rows, second = a.shape[0], b.shape[0], math.prod(a.shape[1:-1]), a.shape[-1]
    if max(n, m) <= _FEW and jax.default_backend() == "cpu":
        # A product of few rows and very many columns takes twice as long as the sum of many short ones.
        each = math.gcd(rows, max(1, _SHORT // second))
        parts = [x.reshape(len(x), rows // each, each * second).swapaxes(0, 1) for x in ((a,) if a is b else (a, b))]
        return einsum("pnk,pmk->pnm", parts[0], parts[-1]).sum(axis=0)
    flat = a.reshape(n, -1)
    panels = min(n // _PANEL, _PANELS) if a is b else 1
    if panels < 2:
        return einsum("np,mp->nm", flat, b.reshape(m, -1))
    edges = [n * i // panels for i in range(panels + 1)]
    kernel = jnp.zeros((n, n), _wide(a.dtype))
    for start, end in itertools.pairwise(edges):
        panel = einsum("np,mp->nm", flat[start:end], flat[start:])
        kernel = kernel.at[start:end, start:].set(panel)
        kernel = kernel.at[end:, start:end].set(panel[:, end - start :].T)
    return kernel


def contract(
    a: Sequence[Factor], b: Sequence[Factor], first: int, output: Output, chunk_bytes: int, mesh: Mesh | None = None
) -> Array:
    """The kernel of one matrix between two sets of examples, by whichever way takes fewer operations.

    Args:
      a, b: One factor for each use of the matrix.
      first: Length of its first axis.
      chunk_bytes: What the gradients formed at a time may take on a device.
      mesh: Devices that share the work.
    """
    if len(a) == 1 and a[0].rows > 1 and _gram_cost(a[0], b[0], output) < _form_cost(a, b, first, output):
        return _gram(a[0], b[0], output, mesh)
    return _form(a, b, first, output, chunk_bytes, mesh)


def _form(
    a: Sequence[Factor], b: Sequence[Factor], first: int, output: Output, chunk_bytes: int, mesh: Mesh | None
) -> Array:
    """Form gradients of some rows of the matrix at a time, shared out over the devices, and contract them."""
    n, outputs, second = _sizes(a[0])
    m = b[0].right.shape[0]
    dtype = _wide(a[0].right.dtype)
    devices = 1 if mesh is None else mesh.size
    row_bytes = dtype.itemsize * outputs * second * (n if a is b else n + m)
    chunk = min(first, max(1, chunk_bytes // row_bytes) * devices)
    shape = {"trace": (n, m), "diagonal": (n, m, outputs), "full": (n, m, outputs, outputs)}[output]
    if mesh is not None:
        spread = chunk % devices == 0
        same, a = a is b, [_spread(factor, mesh, spread) for factor in a]
        b = a if same else [_spread(factor, mesh, spread) for factor in b]

    def gradient(factors: Sequence[Factor], i: Array) -> Array:
        formed = _gradient(factors, i, chunk, first)
        return formed if mesh is None or not spread else constrain(formed, mesh, 2)

    def add(total: Array, i: Array) -> tuple[Array, None]:
        formed = gradient(a, i)
        return total + contract_gradients(formed, formed if a is b else gradient(b, i), output, mesh), None

    total: Array = jax.lax.scan(add, jnp.zeros(shape, dtype), jnp.arange(-(-first // chunk)))[0]
    return total


def _gradient(factors: Sequence[Factor], number: Array, chunk: int, first: int) -> Float[Array, "n outputs f s"]:
    """Gradients of a chunk of the rows of a matrix."""
    n, outputs, second = _sizes(factors[0])
    total = jnp.zeros((n, outputs, chunk, second), _wide(factors[0].right.dtype))
    for factor in (each.piece(number, chunk, first) for each in factors):
        if factor.looks_up:
            at = jnp.where((factor.left >= 0) & (factor.left < chunk), factor.left, chunk)  # out of bounds, and dropped

            def scatter(zeros: Array, ids: Array, rows: Array) -> Array:
                return zeros.at[:, ids].add(rows.astype(zeros.dtype), mode="drop")

            total = jax.vmap(scatter)(total, at, factor.right)
        else:
            spec = "nkrf,nrs->nkfs" if factor.left.ndim == 4 else "nrf,nkrs->nkfs"
            total = total + einsum(spec, factor.left, factor.right)
    return total


def _gram(a: Factor, b: Factor, output: Output, mesh: Mesh | None) -> Array:
    """Σ over rows r of one example and s of the other of (left_r · left_s)(right_r · right_s), an example at a time."""
    if mesh is not None:
        a = jax.tree.map(lambda x: constrain(x, mesh), a)
        b = jax.tree.map(lambda x: constrain(x, mesh, 0), b)

    def one(left: Array, right: Array) -> Array:
        if a.looks_up:
            inner = (left[None, :, None] == b.left[:, None, :]).astype(_wide(right.dtype))
            return _weigh(inner, right, b.right, output)
        if left.ndim == 2:
            return _weigh(einsum("rf,msf->mrs", left, b.left), right, b.right, output)
        return _weigh(einsum("rf,msf->mrs", right, b.right), left, b.left, output)

    kernel: Array = jax.lax.map(lambda x: one(*x), (a.left, a.right))
    return kernel


def _weigh(inner: Array, one: Array, others: Array, output: Output) -> Array:
    """Products of the sides with outputs, [outputs, r, q] and [m, outputs, s, q], weighted by inner [m, r, s]."""
    if output == "full":
        return einsum("mrs,mkrls->mkl", inner, einsum("krq,mlsq->mkrls", one, others))
    return einsum(f"mrs,mkrs->m{TAIL[output]}", inner, einsum("krq,mksq->mkrs", one, others))


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


def _spread(factor: Factor, mesh: Mesh, spread: bool) -> Factor:
    """A factor whose left side is shared out along the first axis, and whose right side every device has."""
    split = spread and not factor.looks_up and factor.left.shape[-1] % mesh.size == 0
    left = constrain(factor.left, mesh, factor.left.ndim - 1) if split else constrain(factor.left, mesh)
    return Factor(left, constrain(factor.right, mesh))


def constrain(x: Array, mesh: Mesh | None, axis: int | None = None) -> Array:
    """An array that is shared out along one axis over all devices, or that every device has; as it is without any."""
    if mesh is None:
        return x
    spec = PartitionSpec() if axis is None else PartitionSpec(*(None,) * axis, mesh.axis_names)
    constrained: Array = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
    return constrained


def einsum(spec: str, *arrays: Array) -> Array:
    """`jnp.einsum`, exact to rounding, summed in float32 or wider."""
    wide = _wide(jnp.result_type(*arrays))
    found: Array = jnp.einsum(spec, *arrays, precision=_EXACT, preferred_element_type=wide)
    return found


def _wide(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)
