"""How many more examples would probably decide between models that are too close to call, and at what cost.

A plan fine-tunes a few of the likeliest models on one number of examples each. Under each prior of the joint fit, the
log losses z of its runs and those of all models at the target are jointly Gaussian (`Together`). So z is drawn as it
may come out; the weights of the priors and the losses at the target follow given z; and of those follow the choice, by
least expected regret, and the P(best) that it would then have. Over many z that is a preposterior distribution (Raiffa
& Schlaifer, Applied Statistical Decision Theory, 1961): how probably P(best) will be high enough, and what it will be
on average.

So P(best) would come out too high: losses that are measured differ less clearly between models than those that are
drawn, also where nothing is fitted again. `EAGER` is taken off its log-odds. Claims stay too high, by how much
`experiments/decisions/deciding.py` says.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit, logit, ndtri
from scipy.stats.qmc import Sobol

from lensjax.curves.table import CurveTable
from lensjax.fit.joint.moments import Together
from lensjax.fit.joint.posterior import JointPosterior
from lensjax.fit.stacked.posterior import StackedPosterior
from lensjax.selection.advice import Advice, Point, relative_costs
from lensjax.selection.cheaper import Costs, Preference, costs_of
from lensjax.selection.decisive import DECIDED, PROBABLY, Decisive, Plan
from lensjax.selection.prediction import CLOSE, Prediction
from lensjax.selection.ranking import Ranking
from lensjax.selection.worth import Worth, choose, expected_of, worth_of

CONTENDERS = 16  # models that may be the best, of which the likeliest are looked at
_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16)  # of models in a plan
_FEWEST = 0.005  # P(best) of a contender
_OUTCOMES = 200  # of a plan, to see whether it may do
_MORE = 4  # times as many say how probably it does
_DRAWS = 9  # log2 of the number of draws of losses at the target, given an outcome
EAGER = 0.6  # log-odds by which P(best) comes out lower than simulated: set on simulated tables
_TINY = 1e-12

Cost = Callable[[Point], float | None]  # of a run, in any unit; None where it is not known


def decisive(ranking: Ranking, cost: Cost | None = None) -> Decisive | None:
    """What would decide a ranking that is too close to call; None where it is clear.

    Args:
      ranking: by any method.
      cost: of a run; by default 6 × parameters × examples, which is told as a share of `FullTuning`.
    """
    if not ranking.is_close:
        return None
    seen, cheaper = ranking.table.up_to(ranking.budget), ranking.cheaper
    prefer = None if cheaper is None else Preference(cheaper.margin, cheaper.by)
    by_metric = ranking.metric is not None
    return what_decides(seen, ranking.target, ranking.prediction, cost, prefer, ranking.costs, by_metric=by_metric)


def what_would_decide(table: CurveTable, target: int, advice: Advice, prefer: Preference | None) -> Decisive | None:
    """What would decide the choice of an advice, if that is too close to call; None where it is clear, or none yet.

    Args:
      table, target, prefer: that the advice was asked for.
      advice: see `lensjax.selection.advice.advise`.
    """
    prediction, chance = advice.prediction, advice.chance
    if prediction is None or prediction.posterior is None or chance is None or chance >= CLOSE:
        return None
    seen = table.up_to(target).select([table.models.index(model) for model in prediction.posterior.models])
    return what_decides(seen, target, prediction, prefer=prefer, by_metric=advice.by_metric)


def what_decides(
    table: CurveTable,
    target: int,
    prediction: Prediction,
    cost: Cost | None = None,
    prefer: Preference | None = None,
    costs: Costs | None = None,
    *,
    by_metric: bool = False,
    seed: int = 0,
) -> Decisive:
    """The cheapest runs that probably decide which model is the best.

    Plans are the 1, 2, … likeliest of the models that may be the best, on twice, four times, … as many examples as the
    largest measured size, up to the target.

    Args:
      table: measured curves of the M models of the prediction; sizes above `target` are not looked at.
      target: number of training examples for which a model is to be chosen.
      prediction: of the losses there.
      cost: of a run; by default 6 × parameters × examples, which is told as a share of `FullTuning`.
      prefer: the wish for a cheaper model; decided is then which model is within the margin of the best.
      costs: of models at inference, which it goes by.
      by_metric: whether the choice is by a metric, not by the loss.
      seed: of the draws.
    """
    posterior, chances = prediction.posterior, prediction.probability_best
    if by_metric:
        return Decisive(None, "How many more examples would decide it is known only where the loss decides.")
    if chances is None or not isinstance(posterior, JointPosterior | StackedPosterior):
        return Decisive(
            None,
            "How many more examples would decide it is not known, as this method does not say what further runs would "
            "tell of the losses at the target; the method stacked does.",
        )
    table = table.up_to(target)
    likely = np.argsort(-np.nan_to_num(chances, nan=-1.0), kind="stable")
    models = np.array([i for i in likely if chances[i] >= _FEWEST][:CONTENDERS])
    names = [table.models[i] for i in models]
    last = np.where(table.measured, table.sizes, 0).max(axis=1)
    rungs = _rungs(int(last.max()), int(last[models].min()), target)
    if not rungs:
        return Decisive(None, "Nothing is left to measure that would decide it.")
    full = 0.0
    if cost is None:
        cost = relative_costs(table, [Point(name, size) for name in names for size in rungs]).__getitem__
        full = sum(relative_costs(table, [Point(name, target) for name in table.models]).values())
    if not (plans := _plans(names, rungs, last[models], cost)):
        return Decisive(None, "What further runs cost is not known, nor how many of them would decide it.")
    worth = _worth_of(
        worth_of(table, target, prediction, None, prefer, costs_of(table) if costs is None else costs), models
    )
    places = np.array([posterior.models.index(name) for name in names])
    joint = posterior.together(np.tile(places, len(rungs)), np.repeat(rungs, len(models)))
    joint = _known(joint, np.log(table.column(target)[models]) - posterior.centre)
    simulation = _Simulation(joint, posterior.centre, worth, float(np.sum(chances[models])), seed, EAGER)

    best, likeliest = None, 0.0
    for plan in plans:
        probability = simulation.after(plan.places, _OUTCOMES)[0]
        if best is None or probability >= min(likeliest, PROBABLY):
            found = Plan(plan.points, plan.cost, *simulation.after(plan.places, _MORE * _OUTCOMES, again=1))
            if best is None or found.probability > best.probability:
                best, likeliest = found, max(probability, found.probability)
            if found.probability >= PROBABLY:
                break
    said = f"{100 * best.cost / full:.2g} % of FullTuning" if best is not None and full else ""
    return Decisive(best, cost=said)


class _Runs(NamedTuple):
    """A plan before it is simulated: its runs, their cost, and their places among all runs."""

    points: tuple[Point, ...]
    cost: float
    places: list[int]


def _rungs(largest: int, least: int, target: int) -> list[int]:
    """The target, and below it sizes that may be measured next: the largest one halved and doubled, above the least."""
    if least >= target:
        return []
    halves = [largest >> k for k in range(1, largest.bit_length()) if largest >> k > least]
    doubles = [largest << k for k in range(target.bit_length()) if largest << k < target]
    return [target, *sorted(size for size in (*halves, *doubles) if size > least)]


def _plans(names: Sequence[str], rungs: Sequence[int], last: Int[np.ndarray, " K"], cost: Cost) -> list[_Runs]:
    """Runs of the first few of K models on as many examples each, and their places, the cheapest first.

    Places are those of the runs of all models on the first of the rungs, then on the second, …

    Args:
      names: of the models.
      rungs: numbers of examples.
      last: what each was measured on already.
      cost: of a run.
    """
    plans = []
    for number, size in enumerate(rungs):
        left = [i for i in range(len(names)) if last[i] < size]
        prices = [cost(Point(names[i], size)) for i in left]
        for count in sorted({min(count, len(left)) for count in _COUNTS} - {0}):
            known = [price for price in prices[:count] if price is not None]
            if len(known) == count:
                points = tuple(Point(names[i], size) for i in left[:count])
                plans.append(_Runs(points, sum(known), [number * len(names) + i for i in left[:count]]))
    return sorted(plans, key=lambda plan: plan.cost)


def _worth_of(worth: Worth, models: Int[np.ndarray, " K"]) -> Worth:
    """What the losses of some models are worth."""
    unknown = worth.ranks == len(worth.ranks)
    ranks = np.unique(worth.ranks[models], return_inverse=True)[1] if worth.margin else worth.ranks[models]
    return worth._replace(ranks=np.where(unknown[models], len(models), ranks), ceiling=worth.ceiling[models])


def _known(joint: Together, measured: Float[np.ndarray, " K"]) -> Together:
    """Runs of which the first K are what was measured; NaN where not measured."""
    mean, covariance = joint.mean.copy(), joint.covariance.copy()
    known = np.flatnonzero(np.isfinite(measured))
    mean[:, known] = measured[known]
    covariance[:, known, :] = covariance[:, :, known] = 0.0
    return joint._replace(mean=mean, covariance=covariance)


class _Simulation(NamedTuple):
    """Choices after runs whose losses are not known yet.

    Attributes:
      joint: log losses of K models' runs at the target, and of runs that may be measured.
      centre: what was taken off them.
      worth: of the K models.
      held: P(one of them is the best model of all).
      seed: of the draws.
      eager: log-odds that are taken off P(best).
    """

    joint: Together
    centre: float
    worth: Worth
    held: float
    seed: int
    eager: float = 0.0

    def after(self, places: Sequence[int], outcomes: int, again: int = 0) -> tuple[float, float, float]:
        """P(it is decided), its standard error, and the mean P(best) of the choice, once some runs are measured.

        Args:
          places: of these runs.
          outcomes: number of draws of their losses.
          again: number of the sample of outcomes, each of which is another one.
        """
        mean, covariance, shares = self.joint
        models, priors = len(self.worth.ranks), len(mean)
        shares = np.full(priors, 1 / priors) if shares is None else shares
        rng = np.random.default_rng([self.seed, again])
        even = Sobol(models, rng=np.random.default_rng(self.seed)).random_base2(_DRAWS)  # as all outcomes share them
        normal = ndtri(np.clip(even, _TINY, 1 - _TINY))
        prior = rng.choice(priors, outcomes, p=shares)
        at = np.asarray(places)
        own = covariance[:, at[:, None], at]
        scale, turn = np.linalg.eigh(own)
        scale = np.sqrt(np.maximum(scale, _TINY))
        root = turn * scale[:, None, :]
        z = mean[prior][:, at] + (root[prior] @ rng.standard_normal((outcomes, len(at), 1)))[..., 0]
        away = (turn.mT[:, None] @ (z - mean[:, None, at])[..., None])[..., 0] / scale[:, None]
        weights = np.log(shares)[:, None] - (away**2).sum(axis=-1) / 2 - np.log(scale).sum(axis=-1)[:, None]
        weights = np.exp(weights - weights.max(axis=0))
        weights /= weights.sum(axis=0)
        gain = covariance[:, :models, at] @ turn / scale[:, None, :]  # of the losses at the target on `away`
        left = covariance[:, :models, :models] - gain @ gain.mT
        spread, axes = np.linalg.eigh(left)
        spread = axes * np.sqrt(np.maximum(spread, 0.0))[:, None, :]
        middle = mean[:, None, :models] + away @ gain.mT + self.centre
        variance = np.maximum(np.diagonal(left, axis1=1, axis2=2), 0.0)[:, None]
        values = (weights[..., None] * expected_of(self.worth, middle, np.broadcast_to(variance, middle.shape))).sum(0)
        chosen = choose(self.worth, values, 1.0)
        chances = np.zeros(outcomes)
        for weight, centre, root in zip(weights, middle, spread, strict=True):
            losses = centre[:, None, :] + normal @ root.T
            best, own_loss = losses.min(axis=-1), np.take_along_axis(losses, chosen[:, None, None], axis=-1)[..., 0]
            bound = best if not self.worth.margin else np.log(np.exp(best) + self.worth.margin)
            chances += weight * (own_loss <= bound).mean(axis=-1)
        chances *= self.held
        chances = expit(logit(np.minimum(chances, 1.0)) - self.eager)
        decided = float((chances >= DECIDED).mean())
        return decided, float(np.sqrt(decided * (1 - decided) / outcomes)), float(chances.mean())
