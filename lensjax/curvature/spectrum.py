"""Eigenvalues, spectral densities and traces of symmetric linear operators, such as `hvp_fn` gives.

hvp = hvp_fn(model.loss, model.params, batch)
top_eigenpairs(hvp, 5).values
trace(hvp)  # StochasticEstimate(value, standard_error)

All take a `LinearOperator`. Vectors are never made one array, and stacked vectors are sharded as the operator's are, so
that every device holds its part. They are float32 or wider, and rounded to the operator's type for a product.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float
from numpy.typing import DTypeLike, NDArray

from lensjax.core.errors import InputError
from lensjax.core.pytrees import PyTree, path_name
from lensjax.curvature.lanczos import Basis, Lanczos, draw, finite, multiplied, norm, scaled
from lensjax.curvature.operator import LinearOperator
from lensjax.curvature.streaming import check_params, layer_dots

Which = Literal["largest", "smallest", "magnitude"]


@dataclass(frozen=True)
class StochasticEstimate:
    """A mean over random vectors, and the standard error of it."""

    value: Any
    standard_error: Any


@dataclass(frozen=True)
class Eigenpairs:
    """Some eigenvalues and eigenvectors.

    Attributes:
      values: [k], in the order of `which`.
      vectors: Pytree with leaves [k, ...], of norm 1, in float32 or wider.
      residuals: [k], ‖A u − λ u‖: there is an eigenvalue of A that near.
      products: Number of products taken.
    """

    values: Float[np.ndarray, " k"]
    vectors: PyTree
    residuals: Float[np.ndarray, " k"]
    products: int


@dataclass(frozen=True)
class Density:
    """A spectral density as one quadrature rule for each random vector (Ghorbani et al., arXiv 1901.10159).

    Attributes:
      nodes, weights: [samples, steps]; the weights of a rule sum to 1.
      size: Number of eigenvalues.
    """

    nodes: Float[np.ndarray, "samples steps"]
    weights: Float[np.ndarray, "samples steps"]
    size: int

    def trace(self, function: Callable[[NDArray[Any]], NDArray[Any]]) -> StochasticEstimate:
        """Σ function(λ) over all eigenvalues, tr f(A)."""
        return _estimate(self.size * (self.weights * function(self.nodes)).sum(axis=1))

    def curve(self, grid: Float[np.ndarray, " points"], width: float) -> StochasticEstimate:
        """The density per unit of λ at points of a grid, smoothed by a Gaussian of that standard deviation."""
        distance = (grid[:, None, None] - self.nodes) / width
        kernel = np.exp(-np.square(distance) / 2) / (width * np.sqrt(2 * np.pi))
        return _estimate((self.weights * kernel).sum(axis=-1).T)


def top_eigenpairs(
    operator: LinearOperator,
    k: int,
    *,
    which: Which = "largest",
    products: int = 100,
    basis: int | None = None,
    basis_dtype: DTypeLike | None = None,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> Eigenpairs:
    """k eigenpairs by Lanczos' method, fully reorthogonalised, with thick restarts (Wu & Simon 2000).

    Of equal eigenvalues one is returned, unless the tolerance is so small that vectors come to span an invariant space:
    the method then goes on with a random vector outside of it.

    All devices together hold `basis` vectors in `basis_dtype` and about six in float32, besides the product's own
    memory: for 124 million parameters 20 vectors in bfloat16 are 5 GB and six in float32 3 GB. Rounding the basis to
    bfloat16 makes vectors wrong by 0.2 %; eigenvalues hardly, as those are of vectors before rounding.

    Args:
      operator: A, which is symmetric.
      k: Number of eigenpairs.
      which: The largest, the smallest, or the largest in magnitude.
      products: Limit on the number of products; residuals show how far the method came.
      basis: Number of vectors held, k + 2 or more; fewer than `products` mean restarts, which may take more products.
        By default 2k + 20.
      basis_dtype: Type of the basis; that of the vectors, float32 or wider, by default.
      tolerance: Residuals to reach, relative to the largest eigenvalue in magnitude so far.
      seed: Of the random vector at the start.

    Returns:
      Eigenvalues in the unit of A, with eigenvectors and residuals.

    Raises:
      InputError: A is not symmetric, a number is too small, there are fewer eigenvalues than k, or a product is not
        finite.
    """
    operator.check_symmetric()
    size, like = operator.size, operator.like
    _at_least("k", k, 1)
    if k > size:
        raise InputError(f"k is {k} and there are {size} eigenvalues; ask for fewer.")
    room = min(2 * k + 20 if basis is None else basis, size)
    _at_least("basis", room, min(k + 2, size))
    _at_least("products", products, k)
    if which not in ("largest", "smallest", "magnitude"):
        raise InputError(f"which is '{which}'; give 'largest', 'smallest' or 'magnitude'.")
    key = jax.random.key(seed)
    run = Lanczos(operator, draw("normal", key, like), room, basis_dtype)
    spanned: NDArray[Any] = np.full(k, np.nan)
    while True:
        run.step()
        values, vectors = run.ritz()
        order = np.argsort({"largest": -values, "smallest": values, "magnitude": -np.abs(values)}[which], kind="stable")
        wanted = order[:k]
        residuals = run.norm * np.abs(vectors[-1])
        done = run.count >= k and residuals[wanted].max() <= tolerance * run.scale
        if run.count == size or run.products >= products or (done and run.norm > 0):
            break
        if run.norm == 0:
            if done and np.allclose(spanned, values[wanted], atol=tolerance * run.scale):
                break  # a random vector brought nothing new
            spanned = values[wanted] if done else spanned
            run.begin(draw("normal", jax.random.fold_in(key, run.products), like))
        if run.count == room:
            keep = order[: min(k + (room - k) // 2, room - 1)]
            run.restart(values[keep], vectors[:, keep])
    return Eigenpairs(values[wanted], run.basis.rotated(vectors[:, wanted]), residuals[wanted], run.products)


def spectral_density(
    operator: LinearOperator,
    *,
    steps: int = 64,
    samples: int = 8,
    reorthogonalize: bool = True,
    basis_dtype: DTypeLike | None = None,
    seed: int = 0,
) -> Density:
    """The spectral density by stochastic Lanczos quadrature (Ghorbani et al., arXiv 1901.10159, section 2).

    `steps` vectors are held as in `top_eigenpairs`, or four without reorthogonalising: eigenvalues then have copies,
    whose weights sum to that of one, so that the density stays right (Chen, Trogdon & Ubaru, arXiv 2105.06595).

    Args:
      operator: A, which is symmetric.
      steps, samples: Products for each random vector of signs, and the number of vectors: two or more.
      reorthogonalize: Whether each vector is made orthogonal to all before it.
      basis_dtype, seed: See `top_eigenpairs`.

    Returns:
      One quadrature rule for each random vector.

    Raises:
      InputError: a number is too small, or a product is not finite.
    """
    _at_least("steps", steps, 1)
    _at_least("samples", samples, 2)
    operator.check_symmetric()
    steps = min(steps, operator.size)
    nodes, weights = np.zeros((samples, steps)), np.zeros((samples, steps))
    for sample in range(samples):
        start = draw("signs", jax.random.fold_in(jax.random.key(seed), sample), operator.like)
        run = Lanczos(operator, start, steps, basis_dtype, orthogonal=reorthogonalize)
        while run.count < steps and (run.norm > 0 or not run.count):
            run.step()
        values, vectors = run.ritz()
        nodes[sample] = np.pad(values, (0, steps - run.count), mode="edge")
        weights[sample, : run.count] = np.square(vectors[0])
    return Density(nodes, weights, operator.size)


def trace(
    operator: LinearOperator, *, method: Literal["xtrace", "hutchinson"] = "xtrace", products: int = 20, seed: int = 0
) -> StochasticEstimate:
    """The trace, and its standard error.

    "hutchinson" is the mean of zᵀA z over vectors z of random signs (Hutchinson 1990) and holds no vectors. "xtrace"
    (Epperly, Tropp & Webber, arXiv 2301.07825, section 2.1, with the normalisation of 2.3) takes the trace on the range
    of A Ω exactly and estimates the rest, with each vector once and the others' range. It holds products / 2 vectors,
    and is far more exact if few eigenvalues are large; with as many vectors as eigenvalues it is exact. Its standard
    error is the jackknife's (Efron & Stein 1981), which is too large rather than too small: the paper's, from the
    spread over vectors whose estimates depend on each other, was up to 1.5 times too small on decaying spectra.

    Args:
      operator: A, which is symmetric.
      method: One of the two.
      products: Number of products: two or more; for "xtrace" four or more, and even.
      seed: Of the random vectors.

    Returns:
      In the unit of A.

    Raises:
      InputError: the number does not fit, or a product is not finite.
    """
    if method not in ("xtrace", "hutchinson"):
        raise InputError(f"method is '{method}'; give 'xtrace' or 'hutchinson'.")
    if method == "hutchinson":
        whole = (None,) * len(jax.tree.leaves(operator.like))
        return _estimate(np.sum(_hutchinson(operator, whole, products, seed), axis=0))
    _at_least("products", products, 4)
    if products % 2:
        raise InputError(f"products is {products}; 'xtrace' takes an even number.")
    operator.check_symmetric()
    return _xtrace(operator, min(products // 2, operator.size), seed)


def layer_traces(
    operator: LinearOperator, layers: Sequence[int | None] | None = None, *, products: int = 20, seed: int = 0
) -> dict[str, StochasticEstimate]:
    """Traces of the diagonal blocks of all layers by Hutchinson's method, from the same products as that of the whole.

    z_iᵀ(A z)_i has mean tr A_ii, since signs of different layers are independent.

    Args:
      operator, seed: See `trace`.
      layers: For every leaf the number of layers along its leading axis, or None, as `scanned_layers` gives them. By
        default every leaf is one layer.
      products: Number of products: two or more.

    Returns:
      By the leaf's path; [layers] for leaves with layers.

    Raises:
      InputError: see `trace`.
    """
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(operator.like)]
    parts = _hutchinson(operator, tuple(layers or [None] * len(names)), products, seed)
    return {name: _estimate(part) for name, part in zip(names, parts, strict=True)}


def _hutchinson(
    operator: LinearOperator, layers: tuple[int | None, ...], samples: int, seed: int
) -> list[NDArray[Any]]:
    """zᵀA z of every leaf, or layer of it, for every z: [samples] or [samples, layers]."""
    _at_least("products", samples, 2)
    check_params(operator.like)
    forms = []
    for sample in range(samples):
        z = draw("signs", jax.random.fold_in(jax.random.key(seed), sample), operator.like)
        forms.append([np.asarray(x, np.float64) for x in layer_dots(layers, z, multiplied(operator, z))])
    return [finite(np.stack(parts)) for parts in zip(*forms, strict=True)]


def _xtrace(operator: LinearOperator, k: int, seed: int) -> StochasticEstimate:
    """XTrace of a symmetric A with 2k products.

    With Ω of norm √P, A Ω = Q R, W = QᵀΩ, H = QᵀAQ and s_i the unit vector along R⁻ᵀ e_i, Q without what ω_i adds to
    its range has the projector Q (I − s_i s_iᵀ) Qᵀ.
    """
    size, like = operator.size, operator.like
    q, r = Basis(like, k), np.zeros((k, k))

    def omega(i: int) -> PyTree:
        z = draw("normal", jax.random.fold_in(jax.random.key(seed), i), like)
        return scaled(z, np.sqrt(size) / norm(z))

    for i in range(k):
        y, r[:i, i], r[i, i] = q.orthogonalized(multiplied(operator, omega(i)))
        if r[i, i] <= q.rounding * np.abs(r).max():  # the range of A is spanned
            k, exact = i, True
            break
        q.append(scaled(y, 1 / r[i, i]))
    else:
        exact = k == size
    h = np.stack([q.dots(multiplied(operator, q[i])) for i in range(k)], axis=1) if k else np.zeros((0, 0))
    h = (h + h.T) / 2
    if exact:
        return StochasticEstimate(np.trace(h), np.float64(0))
    w = np.stack([q.dots(omega(i)) for i in range(k)], axis=1)
    without = []
    for i in range(k):
        others = np.arange(k) != i
        turn, rest = np.linalg.qr(r[:, others])
        without.append(_left_out(rest, turn.T @ w[:, others], turn.T @ h @ turn, size).mean())
    error = np.sqrt((k - 1) * np.var(without))
    return StochasticEstimate(_left_out(r, w, h, size).mean(), error)


def _left_out(r: NDArray[Any], w: NDArray[Any], h: NDArray[Any], size: int) -> NDArray[Any]:
    """XTrace's estimates: each random vector estimates the part outside the range of the others."""
    k = len(r)
    s = np.linalg.solve(r.T, np.eye(k))
    s /= np.linalg.norm(s, axis=0)
    x = w - s * (s * w).sum(axis=0)
    left = (w * r).sum(axis=0) - 2 * (x * r).sum(axis=0) + (x * (h @ x)).sum(axis=0)
    left *= (size - k + 1) / (size - np.square(x).sum(axis=0))
    return np.trace(h) - (s * (h @ s)).sum(axis=0) + left


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"{name} is {value}; give {least} or more.")


def _estimate(samples: NDArray[Any]) -> StochasticEstimate:
    """The mean over the first axis."""
    return StochasticEstimate(samples.mean(axis=0), samples.std(axis=0, ddof=1) / np.sqrt(len(samples)))
