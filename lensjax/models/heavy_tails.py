"""NLPmetrics: how heavy the tails of a model's weight spectra are, which ranks models without any data.

Yang et al. ("Test accuracy vs. generalization gap", KDD 2023) fit two densities to the eigenvalues λ of WᵀW of every
weight matrix W, in the names of WeightWatcher (arXiv 2106.00734):

    PL       p(λ) ∝ λ^(−α)              from λ_min up; PL_alpha is α
    E_TPL    p(λ) ∝ λ^(−α) e^(−Λλ)      from λ_min up; E_TPL_lambda is Λ

A model's score is PL_alpha + E_TPL_lambda, both averaged over its matrices; lower is better.

Conventions are those of WeightWatcher 0.7.7: all eigenvalues above 1e-5, unscaled; λ_min is the eigenvalue with the
smallest Kolmogorov–Smirnov distance between the likeliest density and the eigenvalues above it; for E_TPL, α ≥ 1 and
λ_min is at most 1.5 times the peak of the histogram of log λ. We fit ourselves because no release of WeightWatcher can:

    WeightWatcher().fit_powerlaw(
        evals, plot=False, fit_type="truncated_power_law", pl_package="powerlaw", fix_fingers="xmin_peak"
    )

returns −1 for any eigenvalues with powerlaw 2.0, and takes 17 s for a matrix of 200 columns with powerlaw 1.5. Tests
compare its numbers with ours. They agree to 0.1 % in three of four matrices; in the other, powerlaw's search ends a
little before the likeliest density and therefore prefers another λ_min, where its Λ is 1.6 % larger.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.linalg import eigvalsh

from lensjax.core.errors import InputError
from lensjax.models.model import Model
from lensjax.models.weights import Tensor, checkpoint_tensors

Vector = Float[np.ndarray, " n"]

MIN_EVALS = 20  # WeightWatcher estimates α as the literature does from so many on; a tail of fewer says little
MAX_EVALS = 15_000  # larger matrices are left out, as by WeightWatcher
MAX_SIDE = 50_000
THRESHOLD = 1e-5  # eigenvalues up to here count as 0

_BINS = 100  # of the histogram whose peak limits λ_min
_BEYOND_PEAK = 1.5
_NODES = 512  # of integrals, for distances exact to 1e-5
_NEGLIGIBLE = 45.0  # integrals end where a density has fallen to e^(−45)
_WIDTH = 1.001  # ratio of largest to smallest value in the narrowest tail
_LOWER = np.array([[1.0], [1e-8]])  # bounds of α and Λ xmin
_STEPS = 100
_TOLERANCE = 1e-7


@dataclass(frozen=True)
class TailFit:
    """A density ∝ x^(−alpha) e^(−decay x) from xmin up.

    Attributes:
      alpha: α, without unit.
      decay: Λ, in 1 / unit of x; 0 for a power law.
      xmin: Smallest value that was fitted.
      distance: Kolmogorov–Smirnov distance between the density and the values from xmin up.
    """

    alpha: float
    decay: float
    xmin: float
    distance: float


@dataclass(frozen=True)
class LayerMetrics:
    """The spectrum of one weight matrix.

    Attributes:
      name: Of its module in a Hugging Face checkpoint.
      shape: Of the matrix as stored there.
      pl, e_tpl: The fits of both densities to its eigenvalues.
    """

    name: str
    shape: tuple[int, int]
    pl: TailFit
    e_tpl: TailFit


@dataclass(frozen=True)
class WeightMetrics:
    """The spectra of a model's weight matrices.

    Attributes:
      layers: The spectrum of every matrix that could be fitted.
      left_out: Names of the other matrices, which are too large or have too short a tail.
    """

    layers: tuple[LayerMetrics, ...]
    left_out: tuple[str, ...]

    @property
    def pl_alpha(self) -> float:
        """Mean of PL_alpha over matrices."""
        return math.fsum(layer.pl.alpha for layer in self.layers) / len(self.layers)

    @property
    def e_tpl_lambda(self) -> float:
        """Mean of E_TPL_lambda over matrices."""
        return math.fsum(layer.e_tpl.decay for layer in self.layers) / len(self.layers)

    @property
    def score(self) -> float:
        """PL_alpha + E_TPL_lambda; lower is better."""
        return self.pl_alpha + self.e_tpl_lambda


def weight_metrics(model: Model, *, progress: Callable[[int, int], None] | None = None) -> WeightMetrics:
    """Fit the tails of the spectra of all linear maps and embeddings.

    A matrix is what a Hugging Face checkpoint stores as one: layers of a stack and experts are matrices of their own,
    the queries, keys and values that GPT-2 fuses are one, and a tied head is not counted again. LoRA adapters are
    merged into the kernels.

    Args:
      model: A model whose parameters this process holds.
      progress: Called after every matrix with the number of those done and of all.

    Returns:
      The fits of every matrix, from which `WeightMetrics.score` ranks models.

    Raises:
      InputError: no matrix is large enough, or one is not finite.
    """
    model = model.merged()
    pairs = zip(model.family.tensors(model.config, model.params), jax.tree.leaves(model.params), strict=True)
    matrices = [(tensor, leaf) for tensor, leaf in pairs if _is_matrix(tensor)]
    stored = {name: tensor.stored_shape for tensor, _ in matrices for name in tensor.names.flat}
    total = sum(math.prod(shape[:-2]) for shape in stored.values())
    layers: list[LayerMetrics] = []
    left_out: list[str] = []
    held = ((tensor, np.asarray(leaf)) for tensor, leaf in matrices)
    for done, (name, matrix) in enumerate(_matrices(checkpoint_tensors(held))):
        metrics = _measure(name, matrix)
        if metrics is None:
            left_out.append(name)
        else:
            layers.append(metrics)
        if progress is not None:
            progress(done + 1, total)
    if not layers:
        raise InputError(
            f"No weight matrix has {MIN_EVALS} eigenvalues above {THRESHOLD:g}, so there is no tail to fit; "
            "leave weight metrics out for a model this small."
        )
    return WeightMetrics(tuple(layers), tuple(left_out))


def _is_matrix(tensor: Tensor) -> bool:
    """Whether a checkpoint's tensor is a matrix or, of experts, several; kernels of convolutions are not."""
    linear = tensor.path.endswith(("/kernel", "/embedding"))
    return linear and len(tensor.stored_shape) >= 2 and min(tensor.stored_shape[1:]) > 1


def _matrices(tensors: Iterable[tuple[str, NDArray[Any]]]) -> Iterator[tuple[str, NDArray[Any]]]:
    """The matrices of a checkpoint by name; experts that share a tensor have a number behind it."""
    for tensor_name, values in tensors:
        name = tensor_name.removesuffix(".weight")
        if values.ndim == 2:
            yield name, values
        else:
            yield from ((f"{name}.{number}", matrix) for number, matrix in enumerate(values))


def fit_power_law(values: Vector) -> TailFit:
    """Fit a power law to the tail of some values.

    α = 1 + n / Σ log(x / xmin), with the xmin of the smallest Kolmogorov–Smirnov distance (Clauset, Shalizi & Newman,
    arXiv 0706.1062).

    Args:
      values: Positive numbers in any order, [n].

    Raises:
      InputError: the values are not finite, not above 0, or almost equal.
    """
    x = _in_order(values)
    starts = _starts(x, x[-1])
    mean_log, _ = _means(x, starts)
    alphas = 1 + 1 / mean_log
    distances = [
        _distance(-np.expm1((1 - alpha) * np.log(x[start:] / x[start])))
        for start, alpha in zip(starts, alphas, strict=True)
    ]
    best = int(np.argmin(distances))
    return TailFit(float(alphas[best]), 0.0, float(x[starts[best]]), distances[best])


def fit_truncated_power_law(values: Vector) -> TailFit:
    """Fit a truncated power law, by maximum likelihood, to the tail of some values.

    xmin has the smallest Kolmogorov–Smirnov distance. α is at least 1, and xmin at most 1.5 times the peak of the
    histogram of log x in 100 bins.

    Args:
      values: Positive numbers in any order, [n].

    Raises:
      InputError: the values are not finite, not above 0, or almost equal.
    """
    x = _in_order(values)
    heights, edges = np.histogram(np.log10(x), bins=_BINS)
    starts = _starts(x, _BEYOND_PEAK * 10 ** edges[np.argmax(heights)])
    alphas, decays = _likeliest(*_means(x, starts))
    nodes, weights = _density(alphas, decays)
    below = np.cumsum(weights, axis=1) - weights / 2  # of the trapezoidal rule
    distances = [
        _distance(np.interp(np.log(x[start:] / x[start]), nodes[i], below[i])) for i, start in enumerate(starts)
    ]
    best = int(np.argmin(distances))
    xmin = float(x[starts[best]])
    return TailFit(float(alphas[best]), float(decays[best]) / xmin, xmin, distances[best])


def _measure(name: str, matrix: np.ndarray[Any, Any]) -> LayerMetrics | None:
    """The metrics of one matrix, or None where it has no tail to fit."""
    rows, columns = matrix.shape
    if not MIN_EVALS <= min(rows, columns) <= MAX_EVALS or max(rows, columns) > MAX_SIDE:
        return None
    wide = matrix.astype(np.float64)
    if not np.isfinite(wide).all():
        raise InputError(f"{name} holds values that are not finite; take the weights from an undamaged checkpoint.")
    # In float64, eigenvalues of WᵀW above the threshold are as exact as squared singular values of W.
    evals = eigvalsh(wide @ wide.T if rows < columns else wide.T @ wide, check_finite=False)
    evals = evals[evals > THRESHOLD]
    if len(evals) < MIN_EVALS or evals[-1] <= _WIDTH * evals[0]:
        return None
    return LayerMetrics(name, (rows, columns), fit_power_law(evals), fit_truncated_power_law(evals))


def _in_order(values: Vector) -> Vector:
    x = np.sort(np.asarray(values, np.float64))
    if not len(x) or not (x[0] > 0 and np.isfinite(x[-1]) and x[-1] > _WIDTH * x[0]):
        raise InputError("A tail is fitted to finite values above 0 that differ; give such values.")
    return x


def _starts(x: Vector, limit: float) -> Int[np.ndarray, " starts"]:
    """Where a tail may begin: at every distinct value up to `limit` but the last, as in powerlaw."""
    _, starts = np.unique(x[x <= limit], return_index=True)
    starts = starts[:-1] if len(starts) > 1 else starts
    return np.asarray(starts[x[-1] > _WIDTH * x[starts]])


def _means(
    x: Vector, starts: Int[np.ndarray, " starts"]
) -> tuple[Float[np.ndarray, " starts"], Float[np.ndarray, " starts"]]:
    """The means of log u and of u = x / xmin over each tail."""
    counts = len(x) - starts
    sums, logs = (np.cumsum(values[::-1])[::-1][starts] / counts for values in (x, np.log(x)))
    return logs - np.log(x[starts]), sums / x[starts]


def _distance(below: Vector) -> float:
    """The Kolmogorov–Smirnov distance, from the probability below each of n sorted values."""
    return float(np.abs(below - np.arange(len(below)) / len(below)).max())


def _likeliest(
    mean_log: Float[np.ndarray, " starts"], mean: Float[np.ndarray, " starts"]
) -> Float[np.ndarray, "2 starts"]:
    """α and s = Λ xmin of each tail, from its means of log u and of u.

    The density is of an exponential family, so that α mean_log + s mean + log ∫ u^(−α) e^(−s u) du is convex; Newton's
    steps, damped by their decrement and kept within bounds, reach its minimum.
    """
    point, target = np.stack([np.ones_like(mean), 1 / (mean - 1)]), np.stack([mean_log, mean])
    for _ in range(_STEPS):
        nodes, weights = _density(*point)
        statistics = np.stack([nodes, np.exp(nodes)])
        expected = (weights * statistics).sum(-1)
        off = statistics - expected[..., None]
        covariance = np.einsum("isk,jsk->sij", weights * off, off)
        slope = target - expected
        step = -np.linalg.solve(covariance, slope.T[..., None])[..., 0].T
        at_bound = (point <= _LOWER) & (step < 0)
        alone = -slope / np.einsum("sii->is", covariance)  # where the other parameter stays at its bound
        step = np.where(at_bound.any(0), alone, step)
        step[at_bound | ((point <= _LOWER) & (step < 0))] = 0
        decrement = np.sqrt(np.maximum(0, -(step * slope).sum(0)))
        if decrement.max() < _TOLERANCE:
            break
        reach = np.divide(_LOWER - point, step, out=np.full_like(step, np.inf), where=step < 0)
        scale = np.minimum(1 / (1 + decrement), reach.min(0))
        point = np.where(reach <= scale, _LOWER, point + scale * step)
    return point


def _density(
    alphas: Float[np.ndarray, " starts"], decays: Float[np.ndarray, " starts"]
) -> tuple[Float[np.ndarray, "starts nodes"], Float[np.ndarray, "starts nodes"]]:
    """Nodes log u and their probabilities under u^(−α) e^(−s u) from u = 1 up, for each α and s.

    Nodes are cubes of evenly spaced numbers, dense at 0, where tails of a large α have all their mass.
    """
    v = np.linspace(0, 1, _NODES)
    ends = np.log1p(_NEGLIGIBLE / decays)[:, None]
    nodes = ends * v**3
    exponent = (1 - alphas)[:, None] * nodes - decays[:, None] * np.expm1(nodes)
    weights = np.exp(exponent) * v**2
    return nodes, weights / weights.sum(1, keepdims=True)
