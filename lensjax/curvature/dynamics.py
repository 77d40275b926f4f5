"""A kernel's forecast of training: residuals under gradient descent of the linearised model, rank, alignment, drift."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from lensjax.core.errors import InputError, NotFinite


def residual_loss(
    theta: Float[ArrayLike, "n n"],
    f0: Float[ArrayLike, " n"],
    y: Float[ArrayLike, " n"],
    t: Float[ArrayLike, "*times"],
    eta: Float[ArrayLike, ""] = 1.0,
) -> Float[Array, "*times"]:
    """F(Θ, t) = ‖exp(−η Θ t / N) (f₀ − y)‖² / N: the squared error that is left after a time t at rate η.

    The exponential is that of the matrix, by the eigenvalues of the symmetric Θ. It is the error of gradient descent at
    small rates on ‖f − y‖² / 2N of the linearised model, with t counted in steps (LensLLM, arXiv 2505.03793, section
    4; there without the division by N, which keeps F from growing with the number of probes). Differentiable in t, η,
    f₀ and y.

    Args:
      theta: The kernel; for functions with several outputs, n = examples × outputs.
      f0, y: Outputs before training, and their targets.
      t, eta: Times, from 0 up, and the learning rate.

    Returns:
      F at every time, in the squared unit of the outputs.

    Raises:
      InputError: the shapes do not match, or the kernel is not finite or not symmetric.
    """
    rates, weights = residual_modes(theta, f0, y)
    return jnp.exp(-2 * eta * jnp.asarray(t, weights.dtype)[..., None] * rates) @ weights


def residual_modes(
    theta: Float[ArrayLike, "n n"], f0: Float[ArrayLike, " n"], y: Float[ArrayLike, " n"]
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Eigenvalues of Θ / N, and the squares of f₀ − y along the eigenvectors over N, so that F = Σ w exp(−2 η λ t).

    `lensjax.fit.residuals.stack_residuals` takes them.

    Args:
      theta, f0, y: See `residual_loss`.

    Returns:
      λ and w.

    Raises:
      InputError: see `residual_loss`.
    """
    theta, f0, y = (jnp.asarray(x) for x in (theta, f0, y))
    n = f0.size
    if theta.shape != (n, n) or y.shape != f0.shape:
        raise InputError(
            f"theta, f0 and y have shapes {theta.shape}, {f0.shape} and {y.shape}; [n, n], [n] and [n] fit."
        )
    values, vectors = _eigh(theta)
    return jnp.maximum(values, 0) / n, jnp.square(vectors.T @ (f0 - y)) / n


def spectrum(theta: Float[np.ndarray, "n n"]) -> Float[np.ndarray, " n"]:
    """Eigenvalues of a kernel per example, Θ / N, largest first; those that rounding made negative are 0."""
    values, _ = _eigh(jnp.asarray(theta))
    positive: Float[np.ndarray, " n"] = np.maximum(np.asarray(values)[::-1], 0)
    return positive / len(theta)


def effective_rank(theta: Float[np.ndarray, "n n"]) -> float:
    """exp of the entropy of the eigenvalues over their sum (Roy & Vetterli 2007): between 1 and N."""
    values = spectrum(theta)
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def alignment(theta: Float[np.ndarray, "n n"], target: Float[np.ndarray, " n"]) -> float:
    """Cosine between the kernel and that of the target, yᵀΘy / (‖Θ‖_F ‖y‖²) (Cristianini et al. 2001)."""
    theta, target = np.asarray(theta, np.float64), np.asarray(target, np.float64)
    return float(target @ theta @ target / (np.linalg.norm(theta) * (target @ target)))


def kernel_drift(before: Float[np.ndarray, "n n"], after: Float[np.ndarray, "n n"]) -> float:
    """1 − cos between two kernels of the same examples (Fort et al. 2020): 0 if training changed the scale only.

    Raises:
      InputError: their shapes differ.
    """
    one, other = (np.asarray(x, np.float64) for x in (before, after))
    if one.shape != other.shape:
        raise InputError(f"The kernels have shapes {one.shape} and {other.shape}; give two of the same examples.")
    return float(1 - (one * other).sum() / (np.linalg.norm(one) * np.linalg.norm(other)))


def kernel_growth(before: Float[np.ndarray, "n n"], after: Float[np.ndarray, "n n"]) -> float:
    """The trace of a kernel over that of another of the same examples, before training."""
    return float(np.trace(after) / np.trace(before))


def _eigh(theta: Array) -> tuple[Array, Array]:
    """Eigenvalues and eigenvectors of a kernel, which is checked first."""
    if not isinstance(theta, jax.core.Tracer):
        dense = np.asarray(theta, np.float64)
        if not np.isfinite(dense).all():
            raise NotFinite("The kernel holds values that are not finite; see which examples give them.")
        if np.abs(dense - dense.T).max(initial=0) > 1e-3 * np.abs(dense).max(initial=0):
            raise InputError("The kernel is not symmetric; give that of a set of examples with itself.")
    values, vectors = jnp.linalg.eigh((theta + theta.T) / 2)
    return values, vectors
