"""Kernels of many examples as V diag(λ) Vᵀ of low rank, with an estimate of what that leaves out.

`nystrom` computes columns of the kernel exactly (Williams & Seeger 2001), `lanczos` its products with vectors, so that
neither needs all N² entries.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matfree import decomp

from lensjax.core.errors import InputError
from lensjax.curvature.jaxpr.program import Function
from lensjax.curvature.ntk.ntk import ntk, ntk_vp

_ROUNDING = 1e-6  # of the largest eigenvalue: those below are no more than rounding


@dataclass(frozen=True)
class LowRank:
    """A kernel of n = N × outputs rows, those of an example side by side.

    Attributes:
      values: Largest first.
      vectors: Orthonormal columns.
      relative_error: Estimate of ‖Θ − V diag(λ) Vᵀ‖_F / ‖Θ‖_F.
      standard_error: Of that estimate.
    """

    values: Float[np.ndarray, " rank"]
    vectors: Float[np.ndarray, "n rank"]
    relative_error: float
    standard_error: float


def nystrom(
    f: Function,
    params: Any,
    xs: Any,
    landmarks: int,
    *,
    seed: int = 0,
    probes: int = 8,
    batch_size: int | None = None,
    memory_limit: int | None = None,
) -> LowRank:
    """C W⁺ Cᵀ from the columns C of so many random examples, whose own kernel is W.

    Args:
      f, params, xs, memory_limit: See `lensjax.curvature.ntk.ntk.ntk`.
      landmarks: How many examples.
      seed: Of the choice and of the probes.
      probes: Products with random vectors that the error is estimated from.
      batch_size: Of these products, see `ntk_vp`.

    Raises:
      InputError: see `ntk`; or there are fewer examples, or fewer than two probes.
    """
    n = _check(xs, landmarks, probes)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(n, landmarks, replace=False))
    some = jax.tree.map(lambda x: np.asarray(x)[chosen], xs)
    columns = ntk(f, params, xs, some, output="full", memory_limit=memory_limit)
    outputs = math.prod(columns.shape[2 : 2 + (columns.ndim - 2) // 2])
    blocks = columns.reshape(n, landmarks, outputs, outputs).transpose(0, 2, 1, 3).astype(np.float64)
    own, columns = (x.reshape(-1, landmarks * outputs) for x in (blocks[chosen], blocks))
    values, vectors = np.linalg.eigh((own + own.T) / 2)
    kept = values > _ROUNDING * values[-1]
    left, singular, _ = np.linalg.svd(columns @ (vectors[:, kept] / np.sqrt(values[kept])), full_matrices=False)
    product = ntk_vp(f, params, xs, batch_size)
    return _judged(left, singular**2, _flat(f, params, xs, product), rng, probes)


def lanczos(
    f: Function,
    params: Any,
    xs: Any,
    rank: int,
    *,
    steps: int | None = None,
    seed: int = 0,
    probes: int = 8,
    batch_size: int | None = None,
) -> LowRank:
    """The largest eigenvalues and their vectors, by Lanczos steps that are orthogonalised in full.

    Args:
      f, params, xs: See `lensjax.curvature.ntk.ntk.ntk`.
      rank: How many.
      steps: Products with vectors; by default 2 × rank + 10.
      seed, probes, batch_size: See `nystrom`.

    Raises:
      InputError: see `ntk_vp`; or the rank is above N × outputs, or there are fewer than two probes.
    """
    size = _check(xs, 1, probes) * math.prod(jax.eval_shape(f, params, jax.tree.map(lambda x: x[0], xs)).shape)
    if not 1 <= rank <= size:
        raise InputError(f"The rank is {rank}; the kernel has {size:,} rows, so give 1 to {size:,}.")
    rng = np.random.default_rng(seed)
    product = _flat(f, params, xs, ntk_vp(f, params, xs, batch_size))
    taken = min(size, steps or 2 * rank + 10)
    start = jnp.asarray(rng.normal(size=size), product(jnp.zeros(size)).dtype)
    found = decomp.tridiag_sym(taken, reortho="full", custom_vjp=False)(product, start)
    values, vectors = np.linalg.eigh(np.asarray(found.J_small, np.float64))
    basis = np.asarray(found.Q_tall, np.float64).T @ vectors[:, ::-1][:, :rank]
    return _judged(basis, np.maximum(values[::-1][:rank], 0), product, rng, probes)


def _judged(
    vectors: np.ndarray, values: np.ndarray, product: Callable[[Array], Array], rng: np.random.Generator, probes: int
) -> LowRank:
    """The approximation and its error: E‖A z‖² is ‖A‖_F² for z of independent random signs."""
    lost, whole = [], []
    for _ in range(probes):
        z = rng.choice([-1.0, 1.0], len(vectors))
        exact = np.asarray(product(jnp.asarray(z)), np.float64)
        lost.append(np.sum((exact - vectors @ (values * (vectors.T @ z))) ** 2))
        whole.append(np.sum(exact**2))
    ratio = np.mean(lost) / np.mean(whole)
    spread = np.std(np.array(lost) - ratio * np.array(whole), ddof=1) / np.mean(whole) / np.sqrt(probes)
    return LowRank(values, vectors, float(np.sqrt(ratio)), float(spread / (2 * np.sqrt(ratio)) if ratio else 0.0))


def _flat(f: Function, params: Any, xs: Any, product: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """A product with vectors of N × outputs numbers."""
    value = jax.eval_shape(f, params, jax.tree.map(lambda x: x[0], xs))

    def flat(v: Array) -> Array:
        return product(v.reshape(-1, *value.shape).astype(value.dtype)).reshape(-1)

    return flat


def _check(xs: Any, landmarks: int, probes: int) -> int:
    n = len(jax.tree.leaves(xs)[0])
    if not 1 <= landmarks <= n:
        raise InputError(f"{landmarks} landmarks are asked for, of {n:,} examples; give 1 to {n:,}.")
    if probes < 2:
        raise InputError(f"The error is estimated from {probes} probes; give 2 at least.")
    return n
