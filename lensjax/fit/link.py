"""From losses to a task metric: a sigmoid of the loss that models share, with an offset for each.

Of model m at a loss L, the metric is expected to be

    y = c + (1 − c) σ(a + u_m − b x),   x = ((L / L₀)^λ − 1) / λ,   u_m ~ N(0, ω²)

with L₀ the geometric mean of the measured losses. The second step of the OLMo ladder (arXiv 2412.04403) is this with
λ = 1 and no offsets; λ = 0 is a sigmoid of log L, which comes to 1 where the loss comes to 0. λ is learned between the
two, c only where a model can be right by chance. A measured y scatters about that with variance y (1 − y) (1/n + ρ): n
examples of the test set, and ρ for what the loss does not tell. All of λ, a, b, c, ρ and ω have weak priors.

The posterior of those six is sampled by adaptive importance sampling and Metropolis' algorithm. The offsets, which are
independent given them, are integrated out by Laplace's approximation, and drawn from it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import expit, logit, xlogy

from lensjax.core.errors import InputError

DRAWS = 4000
_ROUNDS, _EACH = 6, 800  # of importance sampling, and proposals of each
_CHAINS, _BURN = 400, 15  # of Metropolis' algorithm, and steps before draws are kept
_NEWTON = 12  # steps to an offset
_SURE = 2.0  # standard errors by which the metric must rise as the loss falls
_UNKNOWN_N = 500  # examples of a test set that nothing tells the size of
_FEWEST = 4  # points
# Of a, log b, logit λ, log ρ, log ω, logit c: means and standard deviations.
_MEAN = np.array([0.0, np.log(3.0), 0.0, np.log(1e-3), np.log(0.2), logit(0.1)])
_SD = np.array([4.0, 1.0, 1.5, 2.0, 0.7, 1.5])
_DEGREES = 5.0  # of freedom of the proposals


class NotLinked(InputError):
    """The measured losses do not tell a metric."""


@dataclass(frozen=True)
class Link:
    """Draws from the posterior of the link of M models.

    Attributes:
      scale: L₀.
      a, b, shape, rho, omega, chance: One of each for every draw; `shape` is λ, and `chance` c.
      offsets: u_m of every draw and model.
      examples: n of each model's test set.
    """

    scale: float
    a: Float[np.ndarray, " S"]
    b: Float[np.ndarray, " S"]
    shape: Float[np.ndarray, " S"]
    rho: Float[np.ndarray, " S"]
    omega: Float[np.ndarray, " S"]
    chance: Float[np.ndarray, " S"]
    offsets: Float[np.ndarray, "S M"]
    examples: float

    def expected(self, losses: Float[np.ndarray, "S M"], rows: Int[np.ndarray, " S"]) -> Float[np.ndarray, "S M"]:
        """The metric that is expected at draws of losses, each with the draw of the link of a number in `rows`."""
        a, b, shape, chance = (part[rows, None] for part in (self.a, self.b, self.shape, self.chance))
        rate = expit(a + self.offsets[rows] - b * _transformed(losses / self.scale, shape))
        return np.asarray(chance + (1 - chance) * rate)

    def measured(
        self, losses: Float[np.ndarray, "S M"], rows: Int[np.ndarray, " S"], seed: int = 0
    ) -> Float[np.ndarray, "S M"]:
        """The metric of runs with these losses: with the scatter ρ about what is expected.

        What n examples scatter by is left out: all runs are tested on the same ones, so that it is in the offsets.
        """
        mean = np.clip(self.expected(losses, rows), 1e-9, 1 - 1e-9)
        size = np.maximum(1 / self.rho[rows, None] - 1, 1e-3)
        return np.random.default_rng(seed).beta(mean * size, (1 - mean) * size)


def fit_link(
    loss: Float[np.ndarray, "M S"],
    value: Float[np.ndarray, "M S"],
    error: Float[np.ndarray, "M S"],
    *,
    by_chance: bool,
    draws: int = DRAWS,
    seed: int = 0,
) -> Link:
    """Fit the link to measured losses and metrics.

    Args:
      loss: losses, NaN where not measured; of any unit.
      value: the metric, NaN likewise.
      error: its standard errors over draws of the test examples; NaN where unknown.
      by_chance: whether a model that knows nothing may be right.
      draws: number of draws.
      seed: of the draws.

    Raises:
      NotLinked: there are too few points, the metric does not vary, or it does not rise as the loss falls.
    """
    known = np.isfinite(loss) & np.isfinite(value)
    n = _examples(value[known], error[known])
    _check(loss, value, known, n)
    scale = float(np.exp(np.log(loss[known]).mean()))
    ratios = np.where(known, loss / scale, 1.0)
    values = np.where(known, value, 0.5)
    rng = np.random.default_rng(seed)
    width = len(_MEAN) if by_chance else len(_MEAN) - 1

    theta = _sample(lambda theta: _marginal(theta, ratios, values, known, n)[0], width, draws, rng)
    _, centre, spread = _marginal(theta, ratios, values, known, n)
    u = centre + spread * rng.standard_normal(centre.shape)
    a, b, shape, rho, omega, chance = _natural(theta)
    return Link(scale, a, b, shape, rho, omega, chance, u, n)


def _examples(value: Float[np.ndarray, " points"], error: Float[np.ndarray, " points"]) -> float:
    """Number of test examples that standard errors of shares tell of."""
    told = (error > 0) & (value > 0) & (value < 1)
    return float(np.median(value[told] * (1 - value[told]) / error[told] ** 2)) if told.any() else float(_UNKNOWN_N)


def _check(
    loss: Float[np.ndarray, "M S"], value: Float[np.ndarray, "M S"], known: Bool[np.ndarray, "M S"], n: float
) -> None:
    """Raise NotLinked where the points do not tell a slope."""
    points = int(known.sum())
    if points < _FEWEST or (known.sum(axis=1) >= 2).sum() < 1:
        raise NotLinked(f"it is known at {points} points, and a link needs {_FEWEST}")
    y = value[known]
    if np.ptp(y) < 3 * np.sqrt(max(y.mean() * (1 - y.mean()), 1 / n) / n):
        level = "near 0" if y.max() < 0.05 else "near 1" if y.min() > 0.95 else f"near {y.mean():.2f}"
        raise NotLinked(f"it is {level} everywhere, from {y.min():.3f} to {y.max():.3f}, within its errors")
    # Within models, which an offset leaves: the weighted line through empirical logits.
    smooth = (n * value + 0.5) / (n + 1)
    weight = np.where(known, n * smooth * (1 - smooth), 0.0)
    z, x = np.where(known, logit(smooth), 0.0), np.where(known, np.log(np.where(known, loss, 1.0)), 0.0)
    total = np.maximum(weight.sum(axis=1, keepdims=True), 1e-300)
    z, x = z - (weight * z).sum(axis=1, keepdims=True) / total, x - (weight * x).sum(axis=1, keepdims=True) / total
    information = (weight * x * x).sum()
    free = points - int(known.any(axis=1).sum()) - 1
    slope = (weight * x * z).sum() / max(information, 1e-300)
    dispersion = max(1.0, (weight * (z - slope * x) ** 2).sum() / max(free, 1))
    if free < 1 or not -slope * np.sqrt(information / dispersion) > _SURE:
        raise NotLinked("it does not clearly rise as the loss of a model falls")


def _natural(theta: Float[np.ndarray, "N P"]) -> tuple[np.ndarray, ...]:
    """a, b, λ, ρ, ω and c."""
    chance = expit(theta[:, 5]) if theta.shape[1] > 5 else np.zeros(len(theta))
    return theta[:, 0], np.exp(theta[:, 1]), expit(theta[:, 2]), np.exp(theta[:, 3]), np.exp(theta[:, 4]), chance


def _transformed(ratio: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """(ratio^λ − 1) / λ, which is log ratio for λ = 0."""
    safe = np.maximum(shape, 1e-6)
    return np.asarray(np.expm1(safe * np.log(ratio)) / safe)


def _marginal(
    theta: Float[np.ndarray, "N P"],
    ratios: Float[np.ndarray, "M S"],
    values: Float[np.ndarray, "M S"],
    known: Bool[np.ndarray, "M S"],
    n: float,
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, "N M"], Float[np.ndarray, "N M"]]:
    """Log density of the shared parameters, and mean and standard deviation of every offset given them.

    The likelihood is that of an extended quasi-binomial (Nelder and Pregibon, 1987).
    """
    a, b, shape, rho, omega, chance = (part[:, None, None] for part in _natural(theta))
    without = a - b * _transformed(ratios, shape)
    size = 1 / (1 / n + rho)
    floor = np.minimum(chance, 1 - 1e-6)

    def rates(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        s = expit(without + u[:, :, None])
        return np.clip(floor + (1 - floor) * s, 1e-12, 1 - 1e-12), (1 - floor) * s * (1 - s)

    u = np.zeros((len(theta), len(values)))
    variance = omega[:, :, 0] ** 2
    for _ in range(_NEWTON):  # Fisher scoring, which goes uphill for a step that is not too long
        p, slope = rates(u)
        pull = np.where(known, size * (values - p) * slope / (p * (1 - p)), 0.0).sum(-1) - u / variance
        information = np.where(known, size * slope**2 / (p * (1 - p)), 0.0).sum(-1) + 1 / variance
        u = u + np.clip(pull / information, -2.0, 2.0)
    p, _ = rates(u)
    smooth = (n * values + 0.5) / (n + 1)
    deviance = 2 * (xlogy(values, values) - xlogy(values, p) + xlogy(1 - values, 1 - values) - xlogy(1 - values, 1 - p))
    each = -0.5 * np.log(smooth * (1 - smooth) / size) - 0.5 * size * deviance
    fitted = np.where(known, each, 0.0).sum(-1) - 0.5 * u**2 / variance - np.log(omega[:, :, 0])
    prior = -0.5 * (((theta - _MEAN[: theta.shape[1]]) / _SD[: theta.shape[1]]) ** 2).sum(-1)
    return (fitted - 0.5 * np.log(information)).sum(-1) + prior, u, information**-0.5


def _sample(
    density: Callable[[Float[np.ndarray, "N P"]], Float[np.ndarray, " N"]],
    width: int,
    draws: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, "draws P"]:
    """Draws of a density: importance sampling finds where it is, and Metropolis' steps spread chains over it."""
    mean, root = _MEAN[:width], np.diag(_SD[:width])
    for _ in range(_ROUNDS):
        steps = rng.standard_normal((_EACH, width))
        steps /= np.sqrt(rng.chisquare(_DEGREES, (_EACH, 1)) / _DEGREES)
        theta = mean + steps @ root.T
        heights = density(theta)
        log_weight = heights + 0.5 * (_DEGREES + width) * np.log1p((steps**2).sum(-1) / _DEGREES)
        weight = np.exp(log_weight - log_weight.max())
        effective = weight.sum() ** 2 / (weight**2).sum()
        # Few proposals in the right place would make the next ones too narrow, so their weights are tempered.
        weight = weight ** min(1.0, max(effective / (20 * width), 0.05))
        weight /= weight.sum()
        mean = weight @ theta
        away = theta - mean
        root = np.linalg.cholesky(1.2 * (weight[:, None] * away).T @ away + 1e-8 * np.eye(width))
    chosen = rng.choice(_EACH, _CHAINS, p=weight)
    chains, heights, kept = theta[chosen], heights[chosen], []
    stride = root * (2.4 / np.sqrt(1.2 * width))
    for _ in range(_BURN + -(-draws // _CHAINS)):
        offered = chains + rng.standard_normal(chains.shape) * rng.choice([0.3, 1.0], (_CHAINS, 1)) @ stride.T
        offered_heights = density(offered)
        taken = np.log(rng.random(_CHAINS)) < offered_heights - heights
        chains, heights = np.where(taken[:, None], offered, chains), np.where(taken, offered_heights, heights)
        kept.append(chains)
    return np.concatenate(kept[_BURN:])[-draws:]
