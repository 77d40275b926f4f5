"""The points to measure next: those that lower the expected regret of the choice most for their cost.

A point is a model fine-tuned on a number of examples. Once its log loss z is measured, the choice is the model with
the lowest E[L | z] at the target, so that measuring it lowers the expected regret of the choice by

    min_i E[L_i] - E_z[min_i E[L_i | z]],

the knowledge gradient (Frazier, Powell & Dayanik, INFORMS Journal on Computing 2009, for correlated beliefs). The
joint posterior is a mixture of priors p under each of which log losses are jointly Gaussian. With μ_p and v_p the
mean and variance of z, and c_pi its covariance with log L_i,

    E[L_i | z] p(z) = mean_p E_p[L_i | z] N(z; μ_p, v_p),

where L_i is lognormal given z under each prior, up to twice the largest draw of a ranking: tails far beyond all draws
decide nothing there, and may not do so here. That leaves an
integral over one number, taken without draws, so that small drops are not lost in their noise. A run at the target is
the one that would be chosen: its loss is known once it is measured.

Where the choice is by a metric, the share that is wrong takes the place of L_i, as its link to the loss expects it: a
point then tells of losses, not of the link. Where a cheaper model is preferred, see `lensjax.selection.worth`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from lensjax.core.errors import InputError, listing, shorten
from lensjax.core.tabular import Columns, Tabular
from lensjax.curves.metrics import Metric
from lensjax.curves.table import CurveTable
from lensjax.fit.joint.moments import JointMoments
from lensjax.fit.joint.posterior import JointPosterior
from lensjax.fit.joint.recent import joint_fit
from lensjax.fit.link import NotLinked
from lensjax.fit.stacked.posterior import StackedPosterior
from lensjax.selection.by_metric import predict_metric
from lensjax.selection.cheaper import CostName, Preference, choice_sentence, costs_of
from lensjax.selection.choices import check_choices
from lensjax.selection.methods import DEFAULT_METHOD, predict_by
from lensjax.selection.prediction import Prediction
from lensjax.selection.worth import Worth, choose, expected_of, shortfall, worth_of

ENOUGH = 2  # sizes above 0 that the joint fit needs of every model
REACH = 8.0  # standard deviations of a point's log loss that are integrated over
NODES = 512


class Point(NamedTuple):
    """A model fine-tuned on a number of examples."""

    model: str
    examples: int


@dataclass(frozen=True)
class NextPoint:
    """The benefit of measuring a point.

    Attributes:
      point: the point.
      cost: of measuring it, in the unit of the given costs.
      drop: expected drop of the regret of the choice, in the unit of the advice; None for a point that is needed
        before anything can be expected of its model.
    """

    point: Point
    cost: float
    drop: float | None


@dataclass(frozen=True, repr=False)
class Advice(Tabular):
    """The choice now, and points to measure before it.

    Attributes:
      points: the best to measure next first.
      choice: the model of the lowest expected regret, which a ranking puts first, or a cheaper one that is preferred;
        None while points are needed.
      regret: its expected loss above the best model's; where a cheaper model is preferred, beyond the margin. None
        while points are needed.
      regret_error: standard error of `regret`, which is estimated from draws.
      unit: what regrets and drops are in, in words.
      why: why a cheaper model is the choice, or none is, in a sentence; "" where none is preferred.
      remark: why the loss decides, where a metric was asked for that it does not tell; else "".
      prediction: of losses at the target, that the choice is made of; None while points are needed.
      chance: P(best) of the choice, or of its being within the margin of the best where a cheaper model is preferred.
      by_metric: whether the choice is by a metric.
    """

    points: tuple[NextPoint, ...]
    choice: str | None = None
    regret: float | None = None
    regret_error: float | None = None
    unit: str = ""
    why: str = ""
    remark: str = ""
    prediction: Prediction | None = None
    chance: float | None = None
    by_metric: bool = False

    @property
    def headline(self) -> str:
        """The choice now, and the point to measure next, in a line."""
        choice = "no choice yet"
        if self.choice is not None:
            choice = f"{self.choice}, expected regret {self.regret:.4g} {self.unit}".rstrip()
        first = next((next_.point for next_ in self.points), None)
        after = "nothing to measure" if first is None else f"next {first.model} at {first.examples:,} examples"
        return f"Advice: {choice}; {after}"

    def as_columns(self) -> Columns:
        """The points to measure, the best first."""
        return {
            "model": [next_.point.model for next_ in self.points],
            "examples": [next_.point.examples for next_ in self.points],
            "cost": [next_.cost for next_ in self.points],
            "drop": [next_.drop for next_ in self.points],
        }

    def batch(self, cost: float) -> tuple[NextPoint, ...]:
        """Points to measure before the next fit: each model's best, in order, while `cost` lasts; one at least.

        Needed points come all together.
        """
        if self.choice is None:
            return self.points
        best = {next_.point.model: next_ for next_ in reversed(self.points)}
        points = [next_ for next_ in self.points if best[next_.point.model] is next_]
        within = int(np.searchsorted(np.cumsum([next_.cost for next_ in points]), cost, side="right"))
        return tuple(points[: max(1, within)])


def candidate_points(table: CurveTable, rungs: Iterable[int]) -> list[Point]:
    """Every model that may be chosen at every rung above 0 where it has not been measured."""
    columns = {examples: np.isfinite(table.column(examples)) for examples in sorted(set(rungs)) if examples > 0}
    return [
        Point(model, examples)
        for i, model in enumerate(table.models)
        for examples, measured in columns.items()
        if table.eligible[i] and not measured[i]
    ]


def relative_costs(table: CurveTable, points: Iterable[Point]) -> dict[Point, float]:
    """6 × parameters × examples, the FLOPs for every token of an example; examples alone if a size is unknown."""
    each = 6 * table.parameters if np.isfinite(table.parameters).all() else np.ones(len(table.models))
    cost = dict(zip(table.models, each, strict=True))
    return {point: float(cost[point.model]) * point.examples for point in points}


def advise(
    table: CurveTable,
    target: int,
    costs: Mapping[Point, float],
    prediction: Prediction | None = None,
    prefer: Preference | None = None,
    *,
    metric: Metric | None = None,
    model_costs: Mapping[CostName, Mapping[str, float]] | None = None,
) -> Advice:
    """Order points by the expected drop in regret per cost, if one more is measured and the choice is made then.

    The amplitudes of the fit stay as they are, but the point's loss changes the weights of the priors. A model with
    fewer than two sizes above 0 needs its cheapest points first; until it has them no other points are given. Models
    that may not be chosen inform the fit if they have them, and are never the choice.

    Args:
      table: measured curves of M models; sizes above `target` are not looked at.
      target: number of training examples for which a model is to be chosen.
      costs: of the points that could be measured, in any unit.
      prediction: of the table's losses up to `target`, whose choice is the choice now; the default method's if not
        given.
      prefer: choose a cheaper model than the best, if it is nearly as good, and measure to find that one.
      metric: choose by this metric instead of the loss, if losses tell it; else the loss decides, and a remark says so.
      model_costs: of models at inference, by kind and name of the model, besides the table's numbers of parameters.

    Returns:
      The points in order, best first, and the choice as it is now.

    Raises:
      InputError: there are fewer than two models, none may be chosen, a point is of none of them, smaller than
        all that was measured or above the target, a cost is not a positive number, a model cannot come to two sizes,
        the smallest model is preferred and sizes are not known, or the table does not hold the metric.
    """
    _check(table, target, costs)
    table = table.up_to(target)
    table = table.select(table.eligible | (table.points() >= ENOUGH))
    needed = _needed(table, costs)
    if needed:
        return Advice(tuple(NextPoint(point, costs[point], None) for point in needed))
    if prediction is None:
        _, prediction = predict_by(DEFAULT_METHOD, table, target)
    linked, remark = None, ""
    if metric is not None:
        try:
            linked = predict_metric(table, target, metric, prediction)
        except NotLinked as error:
            remark = f"{error} The loss decides."
    ruling = prediction if linked is None else linked.wrong
    known = costs_of(table, model_costs)
    unit = table.unit.name if linked is None else f"of {metric}"
    choice, why, regret, chances = int(ruling.order[0]), "", _regret(ruling), ruling.probability_best
    if prefer is not None:
        cheaper = prefer.among(ruling, known)
        choice, why = cheaper.choice, choice_sentence(table, cheaper, known, unit)
        regret, chances = _regret(ruling, prefer.margin, choice), cheaper.probability
    points = list(costs)
    if points:
        worth = worth_of(table, target, prediction, linked, prefer, known)
        value = dict(zip(points, _drops_of(table, target, points, prediction, worth), strict=True))
        points.sort(key=lambda point: (-value[point] / costs[point], costs[point]))
    return Advice(
        points=tuple(NextPoint(point, costs[point], value[point]) for point in points),
        choice=table.models[choice],
        unit=unit,
        why=why,
        remark=remark,
        prediction=prediction,
        chance=None if chances is None else float(chances[choice]),
        by_metric=linked is not None,
        **regret,
    )


def _drops_of(
    table: CurveTable, target: int, points: Sequence[Point], prediction: Prediction, worth: Worth
) -> list[float]:
    """Expected drop of the regret of the choice by measuring each point."""
    fitted = prediction.posterior
    posterior = fitted if isinstance(fitted, JointPosterior | StackedPosterior) else joint_fit(table, target)
    position = {name: i for i, name in enumerate(table.models)}
    model = np.array([position[point.model] for point in points])
    examples = np.array([point.examples for point in points])
    moments = posterior.moments(target, model, examples)
    measured = np.log(table.column(target)) - posterior.centre
    own = (examples == target)[:, None] & (model[:, None] == np.arange(len(table.models)))
    _, drops = _drops(_with_runs_at_target(moments, measured, own), posterior.centre, table.eligible, worth)
    return drops.tolist()


def _with_runs_at_target(
    moments: JointMoments, measured: Float[np.ndarray, " M"], own: Bool[np.ndarray, "C M"]
) -> JointMoments:
    """Moments in which a run at the target is the one that its model would be chosen for, noise and all.

    Args:
      moments: with another run's noise at the target, even of what was measured there.
      measured: log loss at the target less the centre; NaN where not measured.
      own: whether a point is the run of a model at the target.
    """
    known = np.isfinite(measured)
    covariance = np.where(own, moments.point_variance[..., None], moments.covariance)
    return moments._replace(
        target_mean=np.where(known, measured, moments.target_mean),
        target_variance=np.where(known, 0.0, moments.target_variance),
        covariance=np.where(known, 0.0, covariance),
    )


def _regret(ruling: Prediction, margin: float = 0.0, choice: int | None = None) -> dict[str, float]:
    """Expected regret of a choice beyond a margin and its standard error, where there are draws."""
    if ruling.draws is None:
        return {}
    chosen = ruling.draws[:, ruling.order[0] if choice is None else choice]
    regrets = np.maximum(chosen - ruling.draws[:, ruling.choosable].min(axis=1) - margin, 0.0)
    return {"regret": float(regrets.mean()), "regret_error": float(regrets.std() / math.sqrt(len(regrets)))}


def _check(table: CurveTable, target: int, costs: Mapping[Point, float]) -> None:
    if len(table.models) < 2:
        raise InputError(f"Task '{shorten(table.task)}' has {len(table.models)} model; a choice needs two.")
    check_choices(table)
    for point, cost in costs.items():
        if point.model not in table.models:
            raise InputError(f"There is no model '{shorten(point.model)}'; choose from {listing(table.models)}.")
        if not 0 < point.examples <= target:
            raise InputError(f"{shorten(point.model)} at {point.examples} examples is not within 1 and {target}.")
        if not 0 < cost < math.inf:
            what = f"{shorten(point.model)} at {point.examples} examples"
            raise InputError(f"{what} costs {cost}; give a positive number.")


def _needed(table: CurveTable, costs: Mapping[Point, float]) -> list[Point]:
    """The points without which a model cannot be fitted, the cheapest first."""
    missing = dict(zip(table.models, ENOUGH - table.points(), strict=True))
    needed = []
    for point in sorted(costs, key=lambda point: (costs[point], point)):
        if missing[point.model] > 0:
            missing[point.model] -= 1
            needed.append(point)
    if stuck := [model for model, count in missing.items() if count > 0]:
        raise InputError(
            f"The points that could be measured leave {listing(stuck)} with fewer than two sizes above 0; add some."
        )
    return needed


def _drops(
    moments: JointMoments,
    centre: float,
    eligible: Bool[np.ndarray, " M"] | bool = True,
    worth: Worth | None = None,
) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " C"]]:
    """Expected losses at the target, infinite where a model may not be chosen; the drop in regret by each point.

    Args:
      moments, centre: of log losses, and what was taken off them.
      eligible: which models may be chosen.
      worth: what losses are worth; by default as they are.
    """
    priors, models = moments.target_mean.shape
    worth = Worth.plain(models) if worth is None else worth
    shares = np.full(priors, 1 / priors) if moments.shares is None else moments.shares
    expected = shares @ expected_of(worth, moments.target_mean + centre, moments.target_variance)
    expected = np.where(eligible, expected, np.inf)
    now = int(choose(worth, expected, 1.0))

    def drop(mean: np.ndarray, variance: np.ndarray, covariance: np.ndarray) -> float:
        sd = np.sqrt(variance)
        z = np.linspace(np.min(mean - REACH * sd), np.max(mean + REACH * sd), NODES)
        away = (z[:, None] - mean) / sd
        density = shares * np.exp(-(away**2) / 2) / (math.sqrt(2 * math.pi) * sd)
        gain = covariance / sd[:, None]
        left = np.maximum(moments.target_variance - gain**2, 0.0)
        given = expected_of(worth, moments.target_mean + centre + away[..., None] * gain, left)
        after = (density[:, None] @ given)[:, 0]  # E[L_i | z] p(z)
        after = np.where(eligible, after, np.inf)
        return float(np.sum(shortfall(worth, after, density.sum(axis=1), now)) * (z[1] - z[0]))

    points = moments.point_mean.T, moments.point_variance.T, moments.covariance.swapaxes(0, 1)
    return expected, np.array([drop(*point) for point in zip(*points, strict=True)])
