"""K-FAC and EK-FAC: blocks of the Fisher matrix, one for each parameter, as Kronecker products.

fisher = kfac(f, params, xs)
fisher.inverse(damping=1e-3)(gradient)

The Fisher matrix here is the mean over examples of Σ_k g_k g_kᵀ, with g_k the gradient of output k: the empirical
Fisher of a loss, the Gauss–Newton matrix of outputs under squared error, and, of projections as `fisher_sketch` gives
them, divided by the root of their number, an estimate of the Fisher matrix proper. Gradients of a matrix are sums over
rows r of a_r ⊗ δ_r; its block is taken to be A ⊗ B, A the second moment of a, and B that of δ (Martens & Grosse 2015),
rows of one example counting as independent (the "expand" setting of Eschenhagen et al. 2023). EK-FAC keeps the
eigenvectors of A ⊗ B and takes the exact second moment of gradients along each (George et al. 2018).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lensjax.core.errors import InputError
from lensjax.core.flops import matmul_flops
from lensjax.core.pytrees import PyTree, path_name
from lensjax.curvature.jaxpr.program import Function
from lensjax.curvature.jaxpr.walker import aval
from lensjax.curvature.ntk.contract import gradients
from lensjax.curvature.ntk.factor import Factor, einsum
from lensjax.curvature.ntk.factors import ContractionPlan, Leaf, make_factors
from lensjax.curvature.ntk.inputs import automatic_axes, check_finite
from lensjax.curvature.ntk.plan import Job, Resources, filler, prepare
from lensjax.curvature.ntk.proof import Verification
from lensjax.curvature.ntk.proven import UNPROVEN, prove_factors
from lensjax.curvature.operator import LinearOperator
from lensjax.curvature.streaming import wide

Moments = list[tuple[Array, Array]]  # of both sides, for each use of a matrix


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KroneckerBlock:
    """The block of one parameter, whose matrix is [first, second]: (U ⊗ V) diag(λ) (U ⊗ V)ᵀ.

    A side that is too long, or of a parameter that no product has as its factor, has a diagonal factor, and no U or V.

    Attributes:
      left, right: The factors A, [*layers, first, first] or [*layers, first], and B.
      left_vectors, right_vectors: U and V, as columns.
      eigenvalues: [*layers, first, second].
      axes: The parameter's axes in the order of the matrix's, after that of layers.
      layered: Whether the parameter is stacked over layers.
    """

    left: Array
    right: Array
    left_vectors: Array | None
    right_vectors: Array | None
    eigenvalues: Array
    axes: tuple[int, ...] = field(metadata={"static": True})
    layered: bool = field(metadata={"static": True})

    def scaled(self, v: Array, weights: Array) -> Array:
        """(U ⊗ V) diag(weights) (U ⊗ V)ᵀ v, for v of the parameter's shape."""
        start = 1 if self.layered else 0
        order = (*range(start), *(start + axis for axis in self.axes))
        turned = jnp.transpose(v, order)
        matrix = turned.reshape(self.eigenvalues.shape).astype(self.eigenvalues.dtype)
        along = weights * _rotated(matrix, self.left_vectors, self.right_vectors)
        back = _rotated(along, *(None if u is None else u.mT for u in (self.left_vectors, self.right_vectors)))
        return jnp.transpose(back.reshape(turned.shape), tuple(order.index(axis) for axis in range(v.ndim)))


@dataclass(frozen=True)
class KroneckerFisher:
    """The Fisher matrix without what couples different parameters, or different layers of stacked ones.

    Attributes:
      blocks: By the parameter's path.
      like: The parameters.
      verified: What of the factors that blocks are made of was computed a second time.
    """

    blocks: Mapping[str, KroneckerBlock]
    like: PyTree
    verified: Verification | None = None

    def operator(self) -> LinearOperator:
        """v ↦ F v."""
        return LinearOperator(partial(_products, list(self.blocks.values()), None), self.like)

    def inverse(self, damping: float) -> LinearOperator:
        """v ↦ (F + damping · I)⁻¹ v.

        Raises:
          InputError: the damping is not above 0.
        """
        if not damping > 0:
            raise InputError(f"damping is {damping}; give a number above 0.")
        return LinearOperator(partial(_products, list(self.blocks.values()), damping), self.like)


def kfac(
    f: Function,
    params: PyTree,
    xs: PyTree,
    *,
    corrected: bool = True,
    longest: int = 4096,
    memory_limit: int | None = None,
    verify: bool = True,
    on_mismatch: Literal["raise", "dense"] = "raise",
    progress: Callable[[int, int], None] | None = None,
) -> KroneckerFisher:
    """The Fisher matrix of f on the examples of xs, each parameter's block as a Kronecker product.

    Args:
      f, params, xs, memory_limit: See `lensjax.curvature.ntk.ntk.ntk`; factors and eigenvectors come besides.
      corrected: Whether eigenvalues are second moments of gradients along eigenvectors (EK-FAC), which takes a second
        pass over the examples, or products of eigenvalues of A and B (K-FAC).
      longest: Sides of a matrix that are longer, such as a vocabulary, have diagonal factors.
      verify, on_mismatch: Whether to compare the kernel of two examples with plain gradients, the first time that a
        function is taken, and what to do where they differ; see `ntk`.
      progress: Called with the number of finished batches of examples, and of all.

    Raises:
      InputError: see `ntk`.
      WrongKernelError: see `ntk`.
    """
    with automatic_axes(params) as params:
        besides = partial(_besides, longest)
        job = prepare(f, params, xs, None, "exact", memory_limit, besides=besides)
        wrong, verified = prove_factors(f, params, job, besides, on_mismatch) if verify else UNPROVEN
        if wrong:
            job = prepare(f, params, xs, None, "exact", memory_limit, wrong, besides)
        leaves, passes = job.plan.leaves, job.batches * (2 if corrected else 1)
        moments: list[Moments] = []
        for i in range(job.batches):
            factors, weights = _factors(job, params, i)
            new = [_moments(leaf, _full(job.plan, leaf, longest), factors[leaf.number], weights) for leaf in leaves]
            moments = new if not moments else jax.tree.map(jnp.add, moments, new)
            if progress is not None:
                progress(i + 1, passes)
        blocks = [_block(job, leaf, some) for leaf, some in zip(leaves, moments, strict=True)]
        if corrected:
            totals = [jnp.zeros_like(block.eigenvalues) for block in blocks]
            for i in range(job.batches):
                factors, weights = _factors(job, params, i)
                for leaf, block in zip(leaves, blocks, strict=True):
                    vectors = block.left_vectors, block.right_vectors
                    totals[leaf.number] += _along(leaf, factors[leaf.number], vectors, weights)
                if progress is not None:
                    progress(job.batches + i + 1, passes)
            each = zip(blocks, totals, strict=True)
            blocks = [replace(block, eigenvalues=total / job.sizes[0]) for block, total in each]
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return KroneckerFisher(dict(zip(names, blocks, strict=True)), params, verified)


def kfac_plan(
    f: Function,
    params: PyTree,
    xs: PyTree,
    *,
    corrected: bool = True,
    longest: int = 4096,
    memory_limit: int | None = None,
) -> Resources:
    """What `kfac` with the same arguments takes; parameters may be shapes. FLOPs are those of products alone.

    Raises:
      InputError: see `kfac`.
    """
    with automatic_axes(params) as params:
        job = prepare(f, params, xs, None, "exact", memory_limit, besides=partial(_besides, longest))
        (part,), zero = job.parts, jnp.asarray(0)
        some = job.captured, params, job.examples_of(0), zero
        made = matmul_flops(filler(), job.plan, part, job.dtype, job.mesh, None, *some, zero)
        factors = jax.eval_shape(partial(make_factors, job.plan, part), *some)[1]
        weights = jax.ShapeDtypeStruct((job.batch,), jnp.float32)
        first = second = held = 0
        for leaf, own in zip(part.leaves, factors, strict=True):
            full = _full(job.plan, leaf, longest)
            first += matmul_flops(_moments, leaf, full, own, weights)
            sides = [
                jax.ShapeDtypeStruct((*(() if leaf.layers is None else (leaf.layers,)), side, side), own[0].right.dtype)
                for side in (leaf.first, leaf.second)
            ]
            vectors = tuple(side if kept else None for side, kept in zip(sides, full, strict=True))
            second += matmul_flops(_along, leaf, own, vectors, weights)
            held += _held(leaf, longest)
        flops = job.batches * (made + first + (made + second if corrected else 0))
        return Resources(job.batch, job.batch_bytes(partial(_besides, longest)), held, flops)


@jax.jit
def _products(blocks: Sequence[KroneckerBlock], damping: float | None, v: PyTree) -> PyTree:
    """The product of every parameter's block, or of its damped inverse."""
    leaves, structure = jax.tree.flatten(v)
    made = []
    for block, x in zip(blocks, leaves, strict=True):
        weights = block.eigenvalues if damping is None else 1 / (block.eigenvalues + damping)
        made.append(block.scaled(x, weights).astype(x.dtype))
    return jax.tree.unflatten(structure, made)


def _factors(job: Job, params: PyTree, batch: int) -> tuple[list[list[Factor]], Float[Array, " batch"]]:
    """The factors of a batch's gradients, and 0 for examples that only fill it up."""
    (part,), zero = job.parts, jnp.asarray(0)
    some = job.captured, params, job.examples_of(batch), zero, zero
    values, held = filler()(job.plan, part, job.dtype, job.mesh, None, *some)
    numbers = job.numbers(batch)
    check_finite(values, numbers, job.sizes)
    return jax.tree.map(lambda x: x[:, 0], held), jnp.where(numbers < job.sizes[0], 1.0, 0.0)


def _full(plan: ContractionPlan, leaf: Leaf, longest: int) -> tuple[bool, bool]:
    """Whether each side has a factor that is no diagonal."""
    if leaf.number in plan.direct:
        return False, False
    looked_up = all(use.looks_up for use in leaf.uses)  # rows of a table are orthogonal
    return leaf.first <= longest and not looked_up, leaf.second <= longest


@partial(jax.jit, static_argnums=(0, 1))
def _moments(leaf: Leaf, full: tuple[bool, bool], factors: list[Factor], weights: Array) -> Moments:
    """Sums over examples of a aᵀ over the number of rows, and of δ δᵀ, for every use."""
    rows = sum(use.rows for use in leaf.uses)

    def moment(x: Array, full: bool, outputs: bool) -> Array:
        layered = x[None] if leaf.layers is None else jnp.moveaxis(x, -3, 0)
        layered = layered.astype(wide(x.dtype))
        weighted = layered * weights.astype(layered.dtype).reshape(1, -1, *[1] * (layered.ndim - 2))
        flat, other = (y.reshape(len(y), math.prod(y.shape[1:-1]), y.shape[-1]) for y in (layered, weighted))
        found = einsum("lrd,lre->lde", flat, other) if full else (flat * other).sum(axis=1)
        return (found if leaf.layers else found[0]) / (1 if outputs else rows)

    def counted(ids: Array, full: bool, dtype: Any) -> Array:
        layered = ids[None] if leaf.layers is None else jnp.moveaxis(ids, -2, 0)

        def count(ids: Array) -> Array:
            each = jnp.broadcast_to(weights[:, None], ids.shape).astype(dtype)
            numbers = jnp.zeros(leaf.first, dtype).at[ids.ravel()].add(each.ravel())
            return jnp.diag(numbers) if full else numbers

        found = jax.vmap(count)(layered)
        return (found if leaf.layers else found[0]) / rows

    made = []
    for factor, use in zip(factors, leaf.uses, strict=True):
        if use.looks_up:
            left = counted(factor.left, full[0], wide(factor.right.dtype))
        else:
            left = moment(factor.left, full[0], use.outputs_left)
        made.append((left, moment(factor.right, full[1], not use.outputs_left)))
    return made


def _block(job: Job, leaf: Leaf, moments: Moments) -> KroneckerBlock:
    """The block of a parameter, from sums over all examples."""
    own = [use.axes for use in job.plan.uses.values() if use.leaf == leaf.number]
    shape = aval(job.plan.program.jaxpr.invars[leaf.number]).shape[0 if leaf.layers is None else 1 :]
    first = own[0] if own else tuple(range(len(shape)))
    axes = (*first, *(axis for axis in range(len(shape)) if axis not in first))
    left, right = _combined([(a / job.sizes[0], b / job.sizes[0]) for a, b in moments], 0 if leaf.layers is None else 1)
    if leaf.number in job.plan.direct:  # the right side is 1 for every example, and not a moment
        right = jnp.ones_like(right)
    (values, u), (others, v) = (_eigen(side, leaf.layers is not None) for side in (left, right))
    eigenvalues = jnp.maximum(values, 0)[..., :, None] * jnp.maximum(others, 0)[..., None, :]
    return KroneckerBlock(left, right, u, v, eigenvalues, axes, leaf.layers is not None)


def _combined(moments: Moments, layered: int) -> tuple[Array, Array]:
    """One pair of factors for all uses: Σ A ⊗ B with each A weighted by the trace of its B, and the same trace."""
    if len(moments) == 1:
        return moments[0]

    def trace(x: Array) -> Array:
        return x.sum(axis=-1) if x.ndim == 1 + layered else jnp.trace(x, axis1=-2, axis2=-1)

    pairs = [(trace(a), trace(b)) for a, b in moments]
    shapes = moments[0][0].ndim, moments[0][1].ndim

    def spread(x: Array, axes: int) -> Array:
        return x.reshape(*x.shape[:layered], *[1] * (axes - layered))

    zero = jnp.zeros(())
    left = sum((spread(tb, shapes[0]) * a for (a, _), (_, tb) in zip(moments, pairs, strict=True)), zero)
    right = sum((spread(ta, shapes[1]) * b for (_, b), (ta, _) in zip(moments, pairs, strict=True)), zero)
    whole = sum((spread(ta, shapes[1]) * spread(tb, shapes[1]) for ta, tb in pairs), zero)
    return left, right / jnp.where(whole > 0, whole, 1)


def _eigen(factor: Array, layered: bool) -> tuple[Array, Array | None]:
    """Eigenvalues and eigenvectors; a diagonal has no vectors."""
    if factor.ndim == 1 + layered:
        return factor, None
    values, vectors = jnp.linalg.eigh(factor)
    return values, vectors


@partial(jax.jit, static_argnums=0)
def _along(
    leaf: Leaf, factors: list[Factor], vectors: tuple[Array | None, Array | None], weights: Array
) -> Float[Array, "*layers first second"]:
    """Sums over examples and outputs of the squares of gradients along eigenvectors."""

    def turned(factor: Factor, u: Array | None, v: Array | None) -> Factor:
        left, right = factor.left, factor.right
        if u is not None:
            left = u[left] if factor.looks_up else einsum("...f,fi->...i", left, u)
        return Factor(left, right if v is None else einsum("...s,sj->...j", right, v))

    def of_layer(number: Array) -> Array:
        layered = leaf.layers is not None
        own = [factor.layer(number) if layered else factor for factor in factors]
        u, v = (None if x is None else x[number] if layered else x for x in vectors)
        rotated = [turned(factor, u, v) for factor in own]

        def add(total: Array, example: tuple[list[Factor], Array]) -> tuple[Array, None]:
            one = jax.tree.map(lambda x: x[None], example[0])
            return total + example[1] * jnp.square(gradients(one, leaf.first, leaf.second)[0]).sum(axis=0), None

        dtype = wide(own[0].right.dtype)
        zeros = jnp.zeros((leaf.first, leaf.second), dtype)
        return jax.lax.scan(add, zeros, (rotated, weights.astype(dtype)))[0]

    found = jax.lax.map(of_layer, jnp.arange(leaf.layers or 1))
    return found if leaf.layers is not None else found[0]


def _rotated(matrix: Array, u: Array | None, v: Array | None) -> Array:
    """Uᵀ M V."""
    left = matrix if u is None else einsum("...fi,...fs->...is", u, matrix)
    return left if v is None else einsum("...is,...sj->...ij", left, v)


def _besides(longest: int, leaves: Sequence[Leaf]) -> tuple[int, int]:
    """Bytes for each example of a batch, and for moments, eigenvectors and eigenvalues."""
    each = max(2 * leaf.example_bytes for leaf in leaves)
    gradients = max(leaf.outputs * leaf.itemsize * leaf.first * leaf.second for leaf in leaves)
    return each, 3 * (sum(_held(leaf, longest) for leaf in leaves) + gradients)


def _held(leaf: Leaf, longest: int) -> int:
    """Bytes of a block: factors and their eigenvectors, and eigenvalues."""
    sides = sum(2 * side * (side if side <= longest else 1) for side in (leaf.first, leaf.second))
    return max(leaf.itemsize, 4) * (leaf.layers or 1) * (sides + leaf.first * leaf.second)
