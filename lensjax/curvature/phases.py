"""How the terms of the PAC-Bayes bound fall with the number of training examples, and the two phases that follow.

Where Σ_i H_i ≈ C₂ n^(−β₂) (see `lensjax.curvature.bound`), the Hessian's term of the bound is at most C₃ n^(−β₃) with
C₃ = √(C l C₂) for l layers and β₃ = (β₂ + 1) / 2, by Cauchy and Schwarz (LensLLM, arXiv 2505.03793). LensLLM calls the
sizes where the O(n^(−3/4)) term is the larger one the pre-power phase, and those where C₃ n^(−β₃) is, the power phase.
Our reading: going from the first to the second as n grows takes β₃ < 3/4, that is β₂ < 1/2.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from lensjax.core.errors import InputError
from lensjax.curvature.bound import RATE

LEVEL = 0.9  # of intervals
LEAST_RUNGS = 3  # that a line with an interval takes


@dataclass(frozen=True)
class Decay:
    """The fit Σ_i H_i ≈ C₂ n^(−β₂) with intervals of Student's t, and the rate and constant that follow from it.

    Attributes:
      beta2, c2: Of the fit.
      beta2_interval, c2_interval: Both ends.
      level: Of the intervals.
      spread: Standard deviation of log ΣH_i about the line.
    """

    beta2: float
    beta2_interval: tuple[float, float]
    c2: float
    c2_interval: tuple[float, float]
    level: float
    spread: float

    @property
    def beta3(self) -> float:
        """β₃ = (β₂ + 1) / 2, the rate of the Hessian's term."""
        return (self.beta2 + 1) / 2

    @property
    def beta3_interval(self) -> tuple[float, float]:
        """Both ends, from those of β₂."""
        return (self.beta2_interval[0] + 1) / 2, (self.beta2_interval[1] + 1) / 2

    def c3(self, loss_bound: float, layers: int) -> float:
        """C₃ = √(C l C₂)."""
        return float(np.sqrt(loss_bound * layers * self.c2))


def fit_decay(n: Float[np.ndarray, " rungs"], total: Float[np.ndarray, " rungs"], level: float = LEVEL) -> Decay:
    """β₂ and C₂ by least squares of log ΣH_i on log n.

    The intervals assume independent, normal departures from the line; rungs of one nested ladder are not quite that.

    Args:
      n: Training examples of each rung.
      total: ΣH_i of each, in nats.
      level: Of the intervals.

    Raises:
      InputError: there are fewer than three rungs of different sizes, or a number is not finite or not above 0.
    """
    sizes, sums = check_rungs(n, total)
    if not 0 < level < 1:
        raise InputError(f"level is {level}; give a number between 0 and 1.")
    if sums.min() <= 0:
        raise InputError(
            f"ΣH_i at n = {sizes[sums.argmin()]:g} is {sums.min():g} and has no logarithm; the loss must curve upwards "
            "along v at some example, so measure more of them, or give a model that training has moved."
        )
    x, y = np.log(sizes), np.log(sums)
    away = x - x.mean()
    squares, free = float(away @ away), len(x) - 2
    slope = float(away @ y) / squares
    level_at_one = float(y.mean() - slope * x.mean())
    spread = float(np.sqrt(np.square(y - level_at_one - slope * x).sum() / free))
    reach = float(stdtrit(free, (1 + level) / 2)) * spread
    of_slope, of_level = reach / squares**0.5, reach * float(np.sqrt(1 / len(x) + x.mean() ** 2 / squares))
    return Decay(
        -slope,
        (-slope - of_slope, -slope + of_slope),
        float(np.exp(level_at_one)),
        (float(np.exp(level_at_one - of_level)), float(np.exp(level_at_one + of_level))),
        level,
        spread,
    )


@dataclass(frozen=True)
class Phases:
    """Which of the bound's two terms rules on each rung.

    Attributes:
      scale: a, the factor of the Hessian's term.
      constant: c, the factor of the remainder.
      hessian: [rungs], a C₃ n^(−β₃).
      remainder: [rungs], c n^(−3/4).
      names: "pre-power" where the remainder is the larger, else "power".
      transition: The n at which the two are equal, and below which the pre-power phase is; or None.
      reason: Why there is no transition.
    """

    scale: float
    constant: float
    hessian: Float[np.ndarray, " rungs"]
    remainder: Float[np.ndarray, " rungs"]
    names: tuple[str, ...]
    transition: float | None
    reason: str


def find_phases(
    n: Float[np.ndarray, " rungs"],
    gap: Float[np.ndarray, " rungs"],
    decay: Decay,
    c3: float,
    *,
    scale: float | None = 1.0,
) -> Phases:
    """The phase of each rung, and where one passes into the other.

    The theory leaves open what c is, and a bound need not be tight. Here c is the number from 0 up that makes

        Σ_rungs (gap − a C₃ n^(−β₃) − c n^(−3/4))²

    smallest: c n^(−3/4) is the part of the measured gap that the Hessian's term leaves. With a = 1 that term is the
    bound's, and c = 0 if it exceeds the gap already. If a ≥ 0 is fitted too, the two share the gap; near β₃ = 3/4 they
    hardly differ, and the shares mean little.

    Args:
      n: Training examples of each rung.
      gap: L − (1 + ε) L̂ of each, in nats, which the two terms bound, with the test loss for L.
      decay: See `fit_decay`.
      c3: C₃, see `Decay.c3`.
      scale: a; None to fit it.

    Raises:
      InputError: there are fewer than three rungs of different sizes, or a number is not finite or a scale negative.
    """
    sizes, gaps = check_rungs(n, gap)
    if not (np.isfinite(c3) and c3 > 0) or (scale is not None and not (np.isfinite(scale) and scale >= 0)):
        raise InputError(f"C₃ is {c3} and the scale {scale}; they are finite, C₃ above 0 and the scale not below.")
    hessian, rate = c3 * sizes**-decay.beta3, sizes**-RATE
    if scale is None:
        from scipy.optimize import nnls  # which is slow to import

        units = np.array([hessian.max(), rate.max()])
        scale, constant = nnls(np.stack([hessian, rate], axis=1) / units, gaps)[0] / units
    else:
        constant = max(0.0, float(rate @ (gaps - scale * hessian)) / float(rate @ rate))
    scale, constant = float(scale), float(constant)
    hessian, remainder = scale * hessian, constant * rate
    names = tuple("pre-power" if rest > term else "power" for rest, term in zip(remainder, hessian, strict=True))
    transition, reason = None, ""
    if constant == scale == 0:
        reason = "the gap is mostly below 0, so there is nothing to share out between the terms"
    elif constant == 0:
        reason = "the Hessian's term leaves nothing of the gap to a remainder, so every rung is in the power phase"
    elif scale == 0:
        reason = "the fit gives the whole gap to the remainder, so every rung is in the pre-power phase"
    elif decay.beta3 >= RATE:
        reason = "β₂ is 1/2 or more, so the Hessian's term falls as fast as the remainder or faster"
    else:
        transition = float((constant / (scale * c3)) ** (1 / (RATE - decay.beta3)))
    return Phases(scale, constant, hessian, remainder, names, transition, reason)


def check_rungs(
    n: Float[np.ndarray, " rungs"], values: Float[np.ndarray, " rungs"]
) -> tuple[Float[np.ndarray, " rungs"], Float[np.ndarray, " rungs"]]:
    """Sizes and values of a ladder's rungs in float64.

    Raises:
      InputError: there are fewer than three rungs of different sizes, or a number is not finite, or a size not above 0.
    """
    sizes, checked = np.asarray(n, np.float64), np.asarray(values, np.float64)
    if sizes.ndim != 1 or sizes.shape != checked.shape:
        raise InputError(f"Sizes and values have shapes {sizes.shape} and {checked.shape}; give one value a rung.")
    if not (np.isfinite(sizes).all() and np.isfinite(checked).all() and (sizes > 0).all()):
        raise InputError("A rung's size or value is not finite, or its size not above 0; leave that rung out.")
    count = len(np.unique(sizes))
    if count < LEAST_RUNGS:
        raise InputError(f"Sizes above 0: {count}; fine-tune on {LEAST_RUNGS} or more to fit how terms fall.")
    return sizes, checked
