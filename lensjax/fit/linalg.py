"""Batches of small symmetric positive definite matrices, in double precision.

LAPACK's batched routines block a thread of the pool that they wait for: with as many of them in flight as the
host has cores, a program on the CPU stands still for ever (seen with two cores and 3,000 matrices). These
loops have no such calls, and for the sizes met here (n ≤ 60) are faster and compile faster.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float


@contextmanager
def float64_on_cpu() -> Iterator[None]:
    """Double precision on the host: the fits are small, and ill-conditioned in single precision."""
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        yield


@jax.custom_jvp
def inverse_and_log_det(a: Float[Array, "*b n n"]) -> tuple[Float[Array, "*b n n"], Float[Array, "*b"]]:
    """A⁻¹ and log det A by Gauss–Jordan elimination, which needs no pivoting for positive definite A.

    Differentiable in both modes: d A⁻¹ = -A⁻¹ dA A⁻¹ and d log det A = tr(A⁻¹ dA).
    """
    n = a.shape[-1]

    def eliminate(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        a, log_det = state
        at_k = jnp.arange(n) == k
        column = jax.lax.dynamic_index_in_dim(a, k, axis=-1, keepdims=False)
        pivot = jax.lax.dynamic_index_in_dim(column, k, axis=-1, keepdims=True)
        # Row and column k of A - c cᵀ / pivot become c / pivot, and its corner -1 / pivot.
        row = jnp.where(at_k, -1.0, column)
        scaled = row / pivot
        kept = jnp.where(at_k[:, None] | at_k, 0.0, a)
        return kept - scaled[..., :, None] * row[..., None, :], log_det + jnp.log(pivot[..., 0])

    negative, log_det = jax.lax.fori_loop(0, n, eliminate, (a, jnp.zeros(a.shape[:-2], a.dtype)))
    return -negative, log_det


@inverse_and_log_det.defjvp
def _inverse_and_log_det_jvp(
    primals: tuple[Array], tangents: tuple[Array]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    inverse, log_det = inverse_and_log_det(*primals)
    turned = inverse @ tangents[0]
    return (inverse, log_det), (-turned @ inverse, jnp.trace(turned, axis1=-2, axis2=-1))


def cholesky(a: Float[Array, "*b n n"]) -> Float[Array, "*b n n"]:
    """Lower Cholesky factor; rows of a zero diagonal give zeros."""
    n = a.shape[-1]

    def eliminate(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        left, root = state
        column = jax.lax.dynamic_index_in_dim(left, k, axis=-1, keepdims=False)
        pivot = jax.lax.dynamic_index_in_dim(column, k, axis=-1, keepdims=True)
        column = jnp.where(pivot > 0, column / jnp.sqrt(jnp.where(pivot > 0, pivot, 1.0)), 0.0)
        column = jnp.where(jnp.arange(n) >= k, column, 0.0)
        root = jnp.where(jnp.arange(n) == k, column[..., None], root)
        return left - column[..., :, None] * column[..., None, :], root

    return jax.lax.fori_loop(0, n, eliminate, (a, jnp.zeros_like(a)))[1]
