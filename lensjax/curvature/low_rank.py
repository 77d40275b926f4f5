"""Kernels of many examples as V diag(λ) Vᵀ of low rank, with an estimate of the error.

`nystrom` computes columns of the kernel exactly (Williams & Seeger 2001), `lanczos` takes products of any symmetric
operator with vectors, so that neither needs all N² entries.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import numpy as np
from jaxtyping import Float

from lensjax.core.errors import InputError
from lensjax.core.pytrees import PyTree
from lensjax.curvature.jaxpr.program import Function
from lensjax.curvature.ntk import ntk, ntk_vp
from lensjax.curvature.operator import LinearOperator
from lensjax.curvature.spectrum import top_eigenpairs

_ROUNDING = 1e-6  # of the largest eigenvalue: smaller ones are rounding


@dataclass(frozen=True)
class LowRank:
    """A kernel of n = N × outputs rows, those of an example side by side.

    Attributes:
      values: Largest first.
      vectors: Orthonormal columns.
      relative_error: Estimate of ‖Θ − V diag(λ) Vᵀ‖_F / ‖Θ‖_F.
      standard_error: Of that estimate.
      products: Number of products with vectors that were taken.
    """

    values: Float[np.ndarray, " rank"]
    vectors: Float[np.ndarray, "n rank"]
    relative_error: float
    standard_error: float
    products: int


def nystrom(
    f: Function,
    params: PyTree,
    xs: PyTree,
    landmarks: int,
    *,
    seed: int = 0,
    probes: int = 8,
    batch_size: int | None = None,
    memory_limit: int | None = None,
) -> LowRank:
    """C W⁺ Cᵀ from the kernel's columns C of some random examples, whose own kernel is W.

    Args:
      f, params, xs, memory_limit: See `lensjax.curvature.ntk.ntk.ntk`.
      landmarks: Number of these examples.
      seed: Of the choice and of the probes.
      probes: Products with random vectors that the error is estimated from.
      batch_size: Of these products, see `ntk_vp`.

    Raises:
      InputError: see `ntk`; or there are fewer examples, or fewer than two probes.
    """
    n = len(jax.tree.leaves(xs)[0])
    if not 1 <= landmarks <= n:
        raise InputError(f"{landmarks} landmarks are asked for, of {n:,} examples; give 1 to {n:,}.")
    _check_probes(probes)
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
    return _judged(left, singular**2, _Counted(ntk_vp(f, params, xs, batch_size)), rng, probes)


def lanczos(
    operator: LinearOperator,
    rank: int,
    *,
    steps: int | None = None,
    seed: int = 0,
    probes: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> LowRank:
    """The largest eigenvalues of a positive semidefinite operator and their vectors, by Lanczos' method.

    Args:
      operator: Such as `ntk_vp` gives, whose vectors are one array.
      rank: Number of eigenvalues.
      steps: Products with vectors; by default 2 × rank + 10.
      seed, probes: See `nystrom`.
      progress: Called with the number of finished products, and of all.

    Raises:
      InputError: see `top_eigenpairs`; or the rank exceeds the rows of the kernel, or there are fewer than two probes.
    """
    size = operator.size
    if not 1 <= rank <= size:
        raise InputError(f"The rank is {rank}; the kernel has {size:,} rows, so give 1 to {size:,}.")
    _check_probes(probes)
    steps = min(size, steps or 2 * rank + 10)
    counted = _Counted(operator, steps + probes, progress)
    pairs = top_eigenpairs(counted.operator, rank, products=steps, basis=max(steps, rank + 2), tolerance=0.0, seed=seed)
    vectors = np.asarray(pairs.vectors, np.float64).reshape(rank, size).T
    return _judged(vectors, np.maximum(pairs.values, 0), counted, np.random.default_rng(seed), probes)


class _Counted:
    """An operator whose products are counted."""

    def __init__(
        self, operator: LinearOperator, expected: int = 0, progress: Callable[[int, int], None] | None = None
    ) -> None:
        self.products = 0

        def product(v: PyTree) -> PyTree:
            found = operator(v)
            self.products += 1
            if progress is not None:
                progress(min(self.products, expected), expected)
            return found

        self.operator = replace(operator, product=product)


def _judged(
    vectors: Float[np.ndarray, "n rank"],
    values: Float[np.ndarray, " rank"],
    counted: _Counted,
    rng: np.random.Generator,
    probes: int,
) -> LowRank:
    """The approximation and its error: E‖A z‖² is ‖A‖_F² for z of independent random signs."""
    lost, whole, operator = [], [], counted.operator
    for _ in range(probes):
        z = rng.choice([-1.0, 1.0], len(vectors))
        product = operator(z.reshape(operator.like.shape).astype(operator.like.dtype))
        exact = np.asarray(product, np.float64).reshape(-1)
        lost.append(np.sum((exact - vectors @ (values * (vectors.T @ z))) ** 2))
        whole.append(np.sum(exact**2))
    ratio = np.mean(lost) / np.mean(whole)
    spread = np.std(np.array(lost) - ratio * np.array(whole), ddof=1) / np.mean(whole) / np.sqrt(probes)
    error = float(np.sqrt(ratio))
    return LowRank(values, vectors, error, float(spread / (2 * error)) if ratio else 0.0, counted.products)


def _check_probes(probes: int) -> None:
    if probes < 2:
        raise InputError(f"The error is estimated from {probes} probes; give 2 at least.")
