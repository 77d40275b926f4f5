"""Kernels of one parameter from the factors of its gradients: Θ[n, m] = Σ_p ∂f(x_n)/∂p · ∂f(x_m)/∂p."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Output = Literal["full", "trace", "diagonal"]

_EXACT = jax.lax.Precision.HIGHEST


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
    def rows(self) -> int:
        """Rows of each example."""
        return int(self.left.shape[-1] if self.looks_up else self.left.shape[-2])

    def layer(self, number: Array) -> "Factor":
        """The factor of one layer, where left and right have an axis of layers before that of rows."""

        def take(x: Array, after: int) -> Array:
            taken: Array = jax.lax.dynamic_index_in_dim(x, number, x.ndim - 1 - after, keepdims=False)
            return taken

        return Factor(take(self.left, 1 if self.looks_up else 2), take(self.right, 2))

    @property
    def looks_up(self) -> bool:
        """Whether the left side is one-hot, given by its ids."""
        return bool(jnp.issubdtype(self.left.dtype, jnp.integer))


def outer(a: Array, b: Array, output: Output) -> Array:
    """Products of flat gradients [examples, outputs, size]: [N, M] summed over outputs, [N, M, K], or [N, M, K, K]."""
    spec = {"trace": "nkp,mkp->nm", "diagonal": "nkp,mkp->nmk", "full": "nkp,mlp->nmkl"}[output]
    return einsum(spec, a, b)


def contract(a: Sequence[Factor], b: Sequence[Factor], first: int, output: Output, chunk_bytes: int) -> Array:
    """The kernel of one matrix between two sets of examples, by whichever way takes fewer operations.

    Args:
      a, b: One factor for each use of the matrix.
      first: Length of its first axis.
      chunk_bytes: What the gradients formed at a time may take.
    """
    if len(a) == 1 and _gram_cost(a[0], b[0], output) < _form_cost(a, b, first, output):
        return _gram(a[0], b[0], output)
    return _form(a, b, first, output, chunk_bytes)


def _form(a: Sequence[Factor], b: Sequence[Factor], first: int, output: Output, chunk_bytes: int) -> Array:
    """Form gradients of some rows of the matrix at a time, and contract them."""
    n, outputs, second = _sizes(a[0])
    m = b[0].left.shape[0]
    dtype = _wide(a[0].right.dtype)
    chunk = min(first, max(1, chunk_bytes // (dtype.itemsize * outputs * second * (n if a is b else n + m))))
    shape = {"trace": (n, m), "diagonal": (n, m, outputs), "full": (n, m, outputs, outputs)}[output]

    def add(total: Array, i: Array) -> tuple[Array, None]:
        start = jnp.minimum(i * chunk, first - chunk)
        fresh = start + jnp.arange(chunk) >= i * chunk  # the last chunk begins within the one before
        formed = _gradient(a, start, chunk, fresh)
        other = formed if a is b else _gradient(b, start, chunk, fresh)
        return total + outer(formed, other, output), None

    total: Array = jax.lax.scan(add, jnp.zeros(shape, dtype), jnp.arange(-(-first // chunk)))[0]
    return total


def _gradient(factors: Sequence[Factor], start: Array, chunk: int, fresh: Array) -> Float[Array, "n outputs size"]:
    """Gradients of the rows of a matrix from `start` on."""
    n, outputs, second = _sizes(factors[0])
    total = jnp.zeros((n, outputs, chunk, second), _wide(factors[0].right.dtype))
    for factor in factors:
        if factor.looks_up:
            at = factor.left - start
            at = jnp.where((at >= 0) & (at < chunk), at, chunk)  # chunk is out of bounds, and dropped

            def scatter(zeros: Array, ids: Array, rows: Array) -> Array:
                return zeros.at[:, ids].add(rows.astype(zeros.dtype), mode="drop")

            total = jax.vmap(scatter)(total, at, factor.right)
        else:
            left = jax.lax.dynamic_slice_in_dim(factor.left, start, chunk, axis=-1)
            spec = "nkrf,nrs->nkfs" if left.ndim == 4 else "nrf,nkrs->nkfs"
            total = total + einsum(spec, left, factor.right)
    total = jnp.where(fresh[:, None], total, 0)
    return total.reshape(n, outputs, -1)


def _gram(a: Factor, b: Factor, output: Output) -> Array:
    """Σ over rows r of one example and s of the other of (left_r · left_s)(right_r · right_s), an example at a time."""

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
    kept = "m" if output == "trace" else "mk"
    return einsum(f"mrs,mkrs->{kept}", inner, einsum("krq,mksq->mkrs", one, others))


def _gram_cost(a: Factor, b: Factor, output: Output) -> float:
    n, outputs, _ = _sizes(a)
    one, other = (1 if a.looks_up else a.left.shape[-1]), a.right.shape[-1]
    without, within = (other, one) if a.left.ndim == 4 else (one, other)
    pairs = outputs**2 if output == "full" else outputs
    return float(n) * b.left.shape[0] * a.rows * b.rows * (without + pairs * within)


def _form_cost(a: Sequence[Factor], b: Sequence[Factor], first: int, output: Output) -> float:
    n, outputs, second = _sizes(a[0])
    m = b[0].left.shape[0]
    rows = sum(1 if factor.looks_up else factor.rows for factor in a)
    pairs = outputs**2 if output == "full" else outputs
    return float(first) * second * ((n + (0 if a is b else m)) * rows * outputs + n * m * pairs)


def _sizes(factor: Factor) -> tuple[int, int, int]:
    """Examples, outputs and length of the second axis."""
    outputs = factor.left.shape[1] if factor.left.ndim == 4 else factor.right.shape[1]
    return int(factor.right.shape[0]), int(outputs), int(factor.right.shape[-1])


def einsum(spec: str, *arrays: Array) -> Array:
    """`jnp.einsum`, exact to rounding, summed in float32 or wider."""
    wide = _wide(jnp.result_type(*arrays))
    found: Array = jnp.einsum(spec, *arrays, precision=_EXACT, preferred_element_type=wide)
    return found


def _wide(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)
