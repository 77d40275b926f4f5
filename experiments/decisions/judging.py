"""How good distributions and choices are, and what numbers of a stack would have been best on some tasks."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from evidence import BASELINES, Evidence
from jaxtyping import Float
from scipy.optimize import minimize

from lensjax.fit.posterior import expected_regret, probability_best
from lensjax.fit.stacked.learned import SEVERAL, Learned, shares
from lensjax.fit.stacked.posterior import grown, pool

WIDTHS = (0.5, 0.8, 0.9, 0.95)  # of central intervals
STEPS = 60  # evaluations of the objective when learning
TAUGHT_BY = 20  # cases of each task at most
PER_CHOICE = 4.0  # weight of relative accuracy in what is learned
DOF = 4.0
# Pulls to the start: of log-odds, few_points, log trust and log disagreement. Tasks differ in how wide they should be
# by more than a few of them can tell, so that the last hardly moves.
PULL = np.array([0.2] * 5 + [0.2, 2.0])

Draws = Float[np.ndarray, "S M"]


@dataclass(frozen=True)
class Verdict:
    """How one method did in one case; None where it has no such thing.

    Attributes:
      method, task, part, name: of what.
      relative_accuracy, regret, best: of its choice; whether that was the best model.
      log_rmse, pearson: of predicted losses.
      log_score: log P(best) of the model that was best.
      crps: of losses, mean over models, by the spread of true losses.
      claimed: P(best) of every model.
      true: position of the best one.
      inside: by width, the share of models whose loss lies in the central interval.
    """

    method: str
    task: str
    part: str
    name: str
    relative_accuracy: float
    regret: float
    best: float
    log_rmse: float | None = None
    pearson: float | None = None
    log_score: float | None = None
    crps: float | None = None
    claimed: tuple[float, ...] = ()
    true: int = 0
    inside: tuple[float, ...] = ()


def stacked_draws(one: Evidence, learned: Learned, draws: Draws | None = None, several: float = SEVERAL) -> Draws:
    """Draws of log losses by the stack; see `lensjax.fit.stacked.posterior.StackedPosterior`."""
    draws = one.draws if draws is None else draws
    weights = learned.weights(one.record)
    counting = weights, shares(weights, one.ahead.fall, several)
    fall, scale = pool(one.ahead.fall, one.ahead.log_sd, *counting, learned.width(one.record), learned.disagreement)
    middle = one.ahead.level - one.ahead.fall[0]
    fall = grown(fall, one.ahead.octaves, learned.growth)
    stacked: Draws = one.ahead.level - fall + scale * (draws - middle)
    return stacked


def log_score(claimed: Float[np.ndarray, " M"], true: int, draws: int) -> float:
    """log P(best) of the true best; half a draw is added to every model, so that none is impossible."""
    return float(np.log((claimed[true] * draws + 0.5) / (draws + 0.5 * len(claimed))))


def by_draws(method: str, one: Evidence, draws: Draws) -> Verdict:
    """The verdict on draws of log losses."""
    losses, truth = np.exp(draws.astype(np.float64)), one.truth
    claimed, choice, true = probability_best(losses), int(np.argmin(expected_regret(losses))), int(np.argmin(truth))
    median = np.median(losses, axis=0)
    ends = [np.quantile(losses, ((1 - width) / 2, (1 + width) / 2), axis=0) for width in WIDTHS]
    in_order, count = np.sort(losses, axis=0), len(losses)
    ranks = (2 * np.arange(1, count + 1) - count - 1)[:, None]
    crps = np.abs(losses - truth).mean(axis=0) - (ranks * in_order).sum(axis=0) / count**2
    return Verdict(
        method,
        one.task,
        one.part,
        one.name,
        *_choice(choice, truth),
        log_rmse=float(np.sqrt(np.mean(np.log(median / truth) ** 2))),
        pearson=_pearson(median, truth),
        log_score=log_score(claimed, true, count),
        crps=float(np.mean(crps) / max(np.ptp(truth), 1e-12)),
        claimed=tuple(claimed.tolist()),
        true=true,
        inside=tuple(float(np.mean((low <= truth) & (truth <= high))) for low, high in ends),
    )


def by_scores(one: Evidence) -> list[Verdict]:
    """The verdicts on baselines, which choose the model of the least score."""
    found = []
    for method, score in zip(BASELINES, one.scores, strict=True):
        if not np.isfinite(score).any():
            continue
        log_rmse = (
            float(np.sqrt(np.mean(np.log(score / one.truth) ** 2)))
            if np.isfinite(score).all() and (score > 0).all()
            else None
        )
        found.append(
            Verdict(
                method, one.task, one.part, one.name, *_choice(int(np.nanargmin(score)), one.truth),
                log_rmse=log_rmse, pearson=_pearson(score, one.truth),
            )
        )  # fmt: skip
    return found


def _choice(choice: int, truth: Float[np.ndarray, " M"]) -> tuple[float, float, float]:
    regret, span = float(truth[choice] - truth.min()), float(np.ptp(truth))
    return 1 - regret / span if span > 0 else 1.0, regret, float(regret == 0)


def _pearson(predicted: Float[np.ndarray, " M"], truth: Float[np.ndarray, " M"]) -> float | None:
    if not np.isfinite(predicted).all() or np.ptp(predicted) == 0 or np.ptp(truth) == 0:
        return None
    return float(np.corrcoef(predicted, truth)[0, 1])


# Set by hand, on some of the same tasks with an earlier version of the joint fit.
START = Learned((-0.7, -1.4, -0.3, -4.0), 2.0, 1.0, 1.1, 0.0, 0.0)


def learn(cases: Iterable[Evidence], start: Learned = START, steps: int = STEPS) -> Learned:
    """The numbers of a stack, but for λ and γ, that would have served some tasks best, each counted alike.

    What is minimised is the mean over tasks of - log P(best) of the true best, - log density of the true losses (of a
    Student's t with the draws' quartiles) and 4 × (1 - relative accuracy), with a weak pull to the start.

    Args:
      cases: of all tasks.
      start: where Nelder and Mead's method begins.
      steps: evaluations.
    """
    tasks: dict[str, list[tuple[Evidence, Draws]]] = {}
    for one in cases:
        tasks.setdefault(one.task, []).append((one, one.draws[:: max(1, len(one.draws) // 250)].astype(np.float64)))
    for task, members in tasks.items():  # evenly spaced, so that all parts teach
        tasks[task] = [members[i] for i in np.unique(np.linspace(0, len(members) - 1, TAUGHT_BY).round().astype(int))]
    centre = _vector(start)

    def objective(vector: Float[np.ndarray, " p"]) -> float:
        learned = _learned(vector)
        of_tasks = [
            np.mean([_cost(one, stacked_draws(one, learned, draws)) for one, draws in members])
            for members in tasks.values()
        ]
        return float(np.mean(of_tasks)) + float(np.sum(PULL * (vector - centre) ** 2))

    simplex = np.vstack([centre, centre + 0.5 * np.eye(len(centre))])
    best = minimize(objective, centre, method="Nelder-Mead", options={"maxfev": steps, "initial_simplex": simplex}).x
    return _learned(best)


def _cost(one: Evidence, draws: Draws) -> float:
    truth = np.log(one.truth)
    claimed, true = probability_best(draws), int(np.argmin(truth))
    low, median, high, end = np.quantile(draws, (0.25, 0.5, 0.75, 0.95), axis=0)
    sd = np.maximum((high - low) / 1.35, 1e-3)
    log_density = -np.log(sd) - (DOF + 1) / 2 * np.log1p(np.minimum(((truth - median) / sd) ** 2, 400) / DOF)
    accuracy = _choice(int(np.argmin(np.exp(np.minimum(draws, end + 1)).mean(axis=0))), one.truth)[0]
    return -log_score(claimed, true, len(draws)) - float(log_density.mean()) + PER_CHOICE * (1 - accuracy)


def _vector(learned: Learned) -> Float[np.ndarray, " p"]:
    return np.array([*learned.log_odds, learned.few_points, *np.log([learned.trust, learned.disagreement])])


def _learned(vector: Float[np.ndarray, " p"]) -> Learned:
    numbers = [round(float(x), 3) for x in (*vector[:-2], *np.exp(vector[-2:]))]
    return Learned(tuple(numbers[:4]), *numbers[4:], START.growth, START.sparse)
