"""Kernels of many examples by random projections of their gradients, with standard errors.

sketch = ntk_sketch(loss, params, examples, 4096)
sketch.kernel()  # StochasticEstimate(value, standard_error), [N, N]

Feature j of an example is Σ αⱼᵀ G βⱼ over all matrices and layers, G being its gradient and αⱼ, βⱼ random signs. So
products of features have the kernel as their mean: the lemma of Johnson & Lindenstrauss, with projections that are
outer products. A gradient that is a sum over rows of a ⊗ δ is projected by its factors, Σ (αⱼ · a)(βⱼ · δ), and never
formed. Features take N × dimension numbers, and time in proportion to N.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from lensjax.core.errors import InputError
from lensjax.core.flops import matmul_flops
from lensjax.core.pytrees import PyTree
from lensjax.curvature.jaxpr.program import Function
from lensjax.curvature.ntk.factor import Factor, constrain, einsum
from lensjax.curvature.ntk.factors import Leaf, make_factors
from lensjax.curvature.ntk.inputs import automatic_axes, check_finite
from lensjax.curvature.ntk.plan import Job, Resources, filler, prepare
from lensjax.curvature.ntk.proof import Verification
from lensjax.curvature.ntk.proven import UNPROVEN, prove_factors
from lensjax.curvature.spectrum import StochasticEstimate
from lensjax.curvature.streaming import wide

_AT_ONCE = 256  # features that are made at a time
_BITS = 32
_BLOCK = 512  # examples whose products of outputs are made at a time


@dataclass(frozen=True)
class Sketch:
    """Random features of examples: their inner products are kernels on average.

    Sketches of one seed, dimension and function can be multiplied with each other.

    Attributes:
      features: [N, outputs, dimension], scaled so that products sum to kernels.
      seed: Of the projections.
      verified: What of the factors that features are made of was computed a second time.
    """

    features: Float[np.ndarray, "n outputs dimension"]
    seed: int
    verified: Verification | None = None

    def kernel(self, other: "Sketch | None" = None) -> StochasticEstimate:
        """The kernel summed over outputs between these examples and those of another sketch, or these again.

        Features are independent and alike, so the spread of their products gives the standard error of each entry.

        Returns:
          [N, M] and its standard error.

        Raises:
          InputError: the sketches are not of one seed and dimension.
        """
        a, b = self.features, (self if other is None else other).features
        if other is not None and (self.seed, a.shape[1:]) != (other.seed, b.shape[1:]):
            raise InputError("The sketches have other projections; make both with one seed and dimension.")
        value = np.einsum("nkj,mkj->nm", a, b, optimize=True)
        squares = np.concatenate([_squares(a[i : i + _BLOCK], b) for i in range(0, len(a), _BLOCK)])
        return StochasticEstimate(value, _error(squares, value, a.shape[2]))

    def trace(self) -> StochasticEstimate:
        """The sum of the kernel's diagonal."""
        each = np.square(self.features).sum(axis=(0, 1), dtype=np.float64)
        return StochasticEstimate(each.sum(), _error(np.square(each).sum(), each.sum(), len(each)))


def ntk_sketch(
    f: Function,
    params: PyTree,
    xs: PyTree,
    dimension: int = 4096,
    *,
    seed: int = 0,
    memory_limit: int | None = None,
    verify: bool = True,
    on_mismatch: Literal["raise", "dense"] = "raise",
    progress: Callable[[int, int], None] | None = None,
) -> Sketch:
    """Random features of the examples of xs, whose inner products estimate `ntk` without bias.

    An entry's standard error is about √((Θ_nn Θ_mm + Θ_nm²) / dimension) where many rows and layers share a gradient,
    and up to twice that for gradients that are one outer product.

    Args:
      f, params, xs, memory_limit, progress: See `lensjax.curvature.ntk.ntk.ntk`; the features come besides.
      dimension: Number of features.
      seed: Of the projections.
      verify, on_mismatch: Whether to compare the kernel of two examples with plain gradients, the first time that a
        function is sketched, and what to do where they differ; see `ntk`.

    Raises:
      InputError: see `ntk`; or the dimension is not 2 or more.
      WrongKernelError: see `ntk`.
    """
    with automatic_axes(params) as params:
        job, besides = _job(f, params, xs, dimension, memory_limit), partial(_besides, dimension)
        wrong, verified = prove_factors(f, params, job, besides, on_mismatch) if verify else UNPROVEN
        if wrong:
            job = _job(f, params, xs, dimension, memory_limit, wrong)
        made = []
        for i in range(job.batches):
            values, features = _features(job, params, i, dimension, seed)
            check_finite(values, job.numbers(i), job.sizes)
            made.append(np.asarray(features))
            if progress is not None:
                progress(i + 1, job.batches)
    whole = np.stack(made, axis=1).reshape(-1, *made[0].shape[1:])[: job.sizes[0]]
    whole *= whole.dtype.type(dimension**-0.5)  # in their own type, as the plan has it
    return Sketch(whole, seed, verified)


def sketch_plan(
    f: Function, params: PyTree, xs: PyTree, dimension: int = 4096, *, memory_limit: int | None = None
) -> Resources:
    """What `ntk_sketch` with the same arguments takes; parameters may be shapes.

    Raises:
      InputError: see `ntk_sketch`.
    """
    with automatic_axes(params) as params:
        job = _job(f, params, xs, dimension, memory_limit)
        (part,), zero, n = job.parts, jnp.asarray(0), job.sizes[0]
        some = job.captured, params, job.examples_of(0), zero
        flops = matmul_flops(filler(), job.plan, part, job.dtype, job.mesh, None, *some, zero)
        _, made = jax.eval_shape(partial(make_factors, job.plan, part), *some)
        held = jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0], 1, *x.shape[1:]), x.dtype), made)
        for leaf, factors in zip(part.leaves, held, strict=True):
            flops += matmul_flops(_projected, leaf, dimension, job.mesh, factors, jax.random.key(0))
        features = _feature_bytes(part.leaves, dimension)
        return Resources(job.batch, job.batch_bytes(partial(_besides, dimension)), n * features, flops * job.batches)


def _job(
    f: Function,
    params: PyTree,
    xs: PyTree,
    dimension: int,
    memory_limit: int | None,
    plain: frozenset[int] = frozenset(),
) -> Job:
    """The plan: batches of examples whose factors and features fit."""
    if dimension < 2:
        raise InputError(f"The dimension is {dimension}; give 2 or more.")
    return prepare(f, params, xs, None, "exact", memory_limit, plain, partial(_besides, dimension))


def _besides(dimension: int, leaves: Sequence[Leaf]) -> tuple[int, int]:
    """Bytes for each example of a batch: projections of its rows, and its features; and for the signs."""
    rows = max(leaf.itemsize * leaf.outputs * max(use.rows for use in leaf.uses) for leaf in leaves)
    signs = max(leaf.itemsize * (leaf.first + leaf.second) for leaf in leaves)
    return 2 * _AT_ONCE * rows + 3 * _feature_bytes(leaves, dimension), 3 * _AT_ONCE * signs


def _feature_bytes(leaves: Sequence[Leaf], dimension: int) -> int:
    """Of one example."""
    return max(max(leaf.itemsize, 4) for leaf in leaves) * leaves[0].outputs * dimension


def _features(job: Job, params: PyTree, batch: int, dimension: int, seed: int) -> tuple[Array, Array]:
    """Values of a batch's examples, and their features [batch, outputs, dimension], not scaled."""
    (part,), number = job.parts, jnp.asarray(batch)
    some = job.captured, params, job.examples_of(batch), jnp.asarray(0), number
    values, held = filler()(job.plan, part, job.dtype, job.mesh, None, *some)
    total: Any = 0
    for leaf, factors in zip(part.leaves, held, strict=True):
        key = jax.random.fold_in(jax.random.key(seed), leaf.number)
        total = total + _projected(leaf, dimension, job.mesh, factors, key)
    return values, total


@partial(jax.jit, static_argnums=(0, 1, 2))
def _projected(leaf: Leaf, dimension: int, mesh: Mesh | None, factors: list[Factor], key: Array) -> Array:
    """The features of a parameter's gradients, [n, outputs, dimension]; factors are [n, 1, …]."""
    factors = jax.tree.map(lambda x: x[:, 0], factors)
    chunks = -(-dimension // _AT_ONCE)
    dtype = wide(factors[0].right.dtype)

    def one(place: Array) -> Array:
        """So many features of all layers."""

        def layer(total: Array, number: Array) -> tuple[Array, None]:
            own = factors if leaf.layers is None else [factor.layer(number) for factor in factors]
            keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, place), number))
            left, right = (
                _signs(each, rows, dtype) for each, rows in zip(keys, (leaf.first, leaf.second), strict=True)
            )
            return total + sum(_rows_projected(factor, left, right) for factor in own), None

        n = factors[0].examples
        zeros = jnp.zeros((n, leaf.outputs, _AT_ONCE), dtype)
        return jax.lax.scan(layer, zeros, jnp.arange(leaf.layers or 1))[0]

    features = jnp.moveaxis(jax.lax.map(one, jnp.arange(chunks)), 0, 2)  # [n, outputs, chunks, at once]
    return constrain(features.reshape(*features.shape[:2], -1)[..., :dimension], mesh)


def _rows_projected(factor: Factor, left: Array, right: Array) -> Float[Array, "n outputs features"]:
    if factor.looks_up:
        rows = jnp.where((factor.left >= 0)[..., None], left[jnp.maximum(factor.left, 0)], 0)
    else:
        rows = einsum("...f,fj->...j", factor.left, left)
    others = einsum("...s,sj->...j", factor.right, right)
    rows, others = (x if x.ndim == 4 else x[:, None] for x in (rows, others))
    return (rows * others).sum(axis=2)


def _signs(key: Array, rows: int, dtype: Any) -> Float[Array, "rows features"]:
    """Random signs, of 32 to a random number."""
    bits = jax.random.bits(key, (rows, _AT_ONCE // _BITS, 1), jnp.uint32)
    ones = (bits >> jnp.arange(_BITS, dtype=jnp.uint32)) & 1
    return 1 - 2 * ones.reshape(rows, _AT_ONCE).astype(dtype)


def _squares(a: Float[np.ndarray, "n k j"], b: Float[np.ndarray, "m k j"]) -> Float[np.ndarray, "n m"]:
    """Σ over j of (Σ over k of a b)²."""
    pairs = [(x[:, :, None] * x[:, None]).reshape(len(x), -1) for x in (a, b)]
    product: Float[np.ndarray, "n m"] = pairs[0] @ pairs[1].T
    return product


def _error(squares: Any, value: Any, dimension: int) -> Any:
    """The standard error of a sum of independent numbers, from that of their squares."""
    return np.sqrt(np.maximum(dimension * squares - np.square(value), 0) / (dimension - 1))
