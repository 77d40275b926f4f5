"""Kernels of many examples as V diag(λ) Vᵀ of low rank, with an estimate of the error.

`nystrom` computes columns of the kernel exactly (Williams & Seeger 2001), `lanczos` takes products of any symmetric
operator with vectors, so that neither needs all N² entries.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import numpy as np
from jaxtyping import Float, Int

from lensjax.core.errors import InputError
from lensjax.core.pytrees import PyTree, numeric
from lensjax.curvature.jaxpr.program import Function
from lensjax.curvature.ntk import Resources, ntk, ntk_flops, ntk_vp, products_plan
from lensjax.curvature.ntk.inputs import automatic_axes, count_examples, free_memory, on_host
from lensjax.curvature.ntk.plan import prepare
from lensjax.curvature.ntk.products import result_type
from lensjax.curvature.operator import LinearOperator
from lensjax.curvature.spectrum import top_eigenpairs
from lensjax.curvature.streaming import wide

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
    xs = numeric(xs)
    n = count_examples(xs, "xs")
    if not 1 <= landmarks <= n:
        raise InputError(f"{landmarks} landmarks are asked for, of {n:,} examples; give 1 to {n:,}.")
    _check_probes(probes)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(n, landmarks, replace=False))
    counted = _Counted(ntk_vp(f, params, xs, batch_size, memory_limit=memory_limit))
    blocks = _columns(f, params, xs, chosen, counted.operator, memory_limit)
    own, columns = (x.reshape(-1, blocks.shape[1] * landmarks) for x in (blocks[chosen], blocks))
    values, vectors = np.linalg.eigh((own + own.T) / 2)
    kept = values > _ROUNDING * values[-1]
    left, singular, _ = np.linalg.svd(columns @ (vectors[:, kept] / np.sqrt(values[kept])), full_matrices=False)
    return _judged(left, singular**2, counted, rng, probes)


def _columns(
    f: Function,
    params: PyTree,
    xs: PyTree,
    chosen: Int[np.ndarray, " landmarks"],
    operator: LinearOperator,
    memory_limit: int | None,
) -> Float[np.ndarray, "n outputs landmarks outputs"]:
    """Columns of a kernel: as a kernel of its own, or as products where that passes through the examples less often."""
    some = jax.tree.map(lambda x: on_host(x)[chosen], xs)
    shape, landmarks = operator.like.shape, len(chosen)
    outputs = math.prod(shape[1:])
    if _passes(f, params, xs, some, memory_limit) <= landmarks * outputs:
        made = np.asarray(ntk(f, params, xs, some, output="full", memory_limit=memory_limit))
        return made.reshape(len(made), landmarks, outputs, outputs).transpose(0, 2, 1, 3).astype(np.float64)
    products = []
    for example, output in itertools.product(chosen, range(outputs)):
        unit = np.zeros((shape[0], outputs), operator.like.dtype)
        unit[example, output] = 1
        products.append(np.asarray(operator(unit.reshape(shape)), np.float64).reshape(shape[0], outputs))
    return np.stack(products, axis=-1).reshape(shape[0], outputs, landmarks, outputs)


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
    steps = _steps(size, rank, steps)
    counted = _Counted(operator, steps + probes, progress)
    pairs = top_eigenpairs(counted.operator, rank, products=steps, basis=max(steps, rank + 2), tolerance=0.0, seed=seed)
    vectors = np.asarray(pairs.vectors, np.float64).reshape(rank, size).T
    return _judged(vectors, np.maximum(pairs.values, 0), counted, np.random.default_rng(seed), probes)


def lanczos_plan(
    f: Function,
    params: PyTree,
    xs: PyTree,
    rank: int,
    *,
    steps: int | None = None,
    probes: int = 8,
    memory_limit: int | None = None,
) -> Resources:
    """What `lanczos` with the operator of `ntk_vp(f, params, xs, memory_limit=…)` takes; parameters may be shapes.

    Raises:
      InputError: see `ntk_vp`.
    """
    one = products_plan(f, params, xs, memory_limit=memory_limit)
    size = one.host_bytes // 8
    steps = _steps(size, rank, steps)
    basis = wide(result_type(f, params, numeric(xs))).itemsize * size * max(steps, rank + 2)
    products = steps + probes
    return Resources(one.batch, one.device_bytes + 2 * basis, 8 * size * rank, products * one.flops)


def nystrom_plan(
    f: Function,
    params: PyTree,
    xs: PyTree,
    landmarks: int,
    *,
    probes: int = 8,
    batch_size: int | None = None,
    memory_limit: int | None = None,
) -> Resources:
    """What `nystrom` with the same arguments takes; parameters may be shapes.

    Raises:
      InputError: see `nystrom`.
    """
    xs = numeric(xs)
    n = count_examples(xs, "xs")
    one = products_plan(f, params, xs, batch_size, memory_limit=memory_limit)
    outputs = one.host_bytes // (8 * n)
    some = jax.tree.map(lambda x: on_host(x)[:landmarks], xs)
    whole = _passes(f, params, xs, some, memory_limit) <= landmarks * outputs
    columns = ntk_flops(f, params, xs, some, output="full", memory_limit=memory_limit) if whole else 0
    products = probes + (0 if whole else landmarks * outputs)
    device = max(one.device_bytes, (memory_limit or free_memory()) if whole else 0)
    return Resources(one.batch, device, 3 * 8 * n * landmarks * outputs**2, columns + products * one.flops)


def _passes(f: Function, params: PyTree, xs: PyTree, ys: PyTree, memory_limit: int | None) -> float:
    """How often a kernel goes through its examples; without end where the memory does not suffice for it."""
    with automatic_axes(params) as params:
        try:
            return sum(part.pieces for part in prepare(f, params, xs, ys, "exact", memory_limit).parts)
        except InputError:
            return math.inf


def _steps(size: int, rank: int, steps: int | None) -> int:
    return min(size, steps or 2 * rank + 10)


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
    size = np.mean(whole) or 1.0  # a kernel of 0 has no error
    ratio = np.mean(lost) / size
    spread = np.std(np.array(lost) - ratio * np.array(whole), ddof=1) / size / np.sqrt(probes)
    error = float(np.sqrt(ratio))
    return LowRank(values, vectors, error, float(spread / (2 * error)) if ratio else 0.0, counted.products)


def _check_probes(probes: int) -> None:
    if probes < 2:
        raise InputError(f"The error is estimated from {probes} probes; give 2 at least.")
