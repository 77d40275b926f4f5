"""Rankings: candidates in order of their predicted loss, with all that methods know of it."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from lensjax.core.errors import InputError, shorten
from lensjax.core.tabular import Columns, Tabular
from lensjax.curves.metrics import Metric
from lensjax.curves.table import CurveTable
from lensjax.fit.link import NotLinked
from lensjax.fit.posterior import CurvePosterior, curve_sizes
from lensjax.selection.by_metric import MetricPrediction, check_metric, predict_metric
from lensjax.selection.cheaper import Cheaper, CostName, Costs, Preference, choice_sentence, costs_of, on_front, regrets
from lensjax.selection.choices import check_choices
from lensjax.selection.decisive import Decisive
from lensjax.selection.evidence import Evidence
from lensjax.selection.methods import DEFAULT_METHOD, METHODS, judges_none, methods_in_order
from lensjax.selection.prediction import CLOSE, Prediction
from lensjax.selection.untuned import Untuned, untuned, untuned_warnings

SURE = 0.9  # P(best) of the first choice from which on wide intervals leave no doubt about it
WIDE = 1.2  # factor of widening that is worth a warning
SAME_TEST = "The test loss of every model was measured in the same way, on the same test set, in {unit}."
OWN_TOKENS = (
    "Models with different tokenizers are compared by the loss of their own tokens, which is lower where a tokenizer "
    "cuts a text into more of them; bits per byte would tell which is better."
)
NESTED = "Larger training sets contain the smaller ones, and the target follows the same distribution."


@dataclass(frozen=True)
class Curves:
    """Fitted curves of M models at G sizes, with a 90 % band, in the table's unit."""

    sizes: Int[np.ndarray, " G"]
    loss: Float[np.ndarray, "M G"]
    lower: Float[np.ndarray, "M G"]
    upper: Float[np.ndarray, "M G"]


@dataclass(frozen=True, repr=False)
class Ranking(Tabular):
    """M candidates in order of what choosing them after fine-tuning on `target` examples is expected to cost.

    All arrays follow `table.models`; `order` holds their positions, best first.

    Attributes:
      table: the ranked models with everything in the file, sizes above `budget` included.
      budget: largest size the methods saw, in examples.
      target: size predicted for, in examples.
      method: name of the method that ranks.
      prediction: of that method.
      order: positions in `table.models`, best first: eligible models, by expected regret where the method gives draws
        of losses, else by its score, then those that the method cannot judge, then those that may not be chosen.
      baselines: predictions of the other methods, by name.
      missing: why a method has no prediction, by name.
      probability_best: P(this model has the lowest loss of the eligible ones at the target), where the method knows;
        NaN for models that are not eligible.
      expected_regret: expected loss above the best eligible candidate if this one is chosen, in the table's unit; NaN
        likewise.
      metric: the metric that models are ranked by, as predicted of the losses. Order, P(best) and expected regret are
        then of it, and regrets shares. None where models are ranked by loss.
      curves: fitted curves from the smallest measured size to the target, where the method fits any.
      parameters: per-model law parameters by name, where the method has any.
      costs: of models at inference by kind; NaN where unknown.
      cheaper: which model is the cheapest of those nearly as good as the best, where a margin was asked for.
      untuned: losses before fine-tuning and what is gained over them, where they were measured.
      decisive: what would decide it where it is too close to call, if that was asked; see `selection.deciding`.
      left_out: (model, why) of candidates that could not be ranked.
      warnings: sentences a user must read before trusting the ranking.
      assumptions: sentences saying what the method assumed and how it was fitted.
    """

    table: CurveTable
    budget: int
    target: int
    method: str
    prediction: Prediction
    order: Int[np.ndarray, " M"]
    baselines: dict[str, Prediction] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    probability_best: Float[np.ndarray, " M"] | None = None
    expected_regret: Float[np.ndarray, " M"] | None = None
    metric: MetricPrediction | None = None
    curves: Curves | None = None
    parameters: dict[str, Float[np.ndarray, " M"]] = field(default_factory=dict)
    costs: Costs = field(default_factory=dict)
    cheaper: Cheaper | None = None
    untuned: Untuned | None = None
    decisive: Decisive | None = None
    left_out: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        """The choice, and what it is of, in a line."""
        name, verb = self.table.models[self.choice], "leads, too close to call" if self.is_close else "is the choice"
        return f"{name} {verb}: {len(self.order)} models by {self.method} for {self.target:,} examples"

    def as_columns(self) -> Columns:
        """A row for each model, in order; `lensjax.selection.records.records` says more of each."""
        said = self.prediction
        columns = {"predicted": said.score, "lower90": said.lower, "upper90": said.upper}
        columns |= {"probability_best": self.probability_best, "expected_regret": self.expected_regret}
        known = {name: values[self.order] for name, values in columns.items() if values is not None}
        return {"model": [self.table.models[i] for i in self.order], **known}

    @property
    def ineligible(self) -> tuple[tuple[str, str], ...]:
        """(model, why) of those that are measured and shown, but never chosen."""
        pairs = ((self.table.models[i], self.table.ineligible[i]) for i in self.order)
        return tuple((model, why) for model, why in pairs if why)

    @property
    def regret_unit(self) -> str:
        """What regrets are in, in words."""
        return self.table.unit.name if self.metric is None else f"of {self.metric.metric}"

    @property
    def is_close(self) -> bool:
        """Whether the choice is more likely not to be the best than to be it, as far as the method knows.

        Where a cheaper model is preferred, being within the margin of the best is enough.
        """
        chances = self.probability_best if self.cheaper is None else self.cheaper.probability
        return chances is not None and bool(chances[self.choice] < CLOSE)

    @property
    def choices(self) -> Int[np.ndarray, " N"]:
        """Positions of the models that may be chosen, best first."""
        return self.order[self.table.eligible[self.order]]

    @property
    def choice(self) -> int:
        """Position of the model to choose: the first of the order, or a cheaper one that is nearly as good."""
        return int(self.order[0]) if self.cheaper is None else self.cheaper.choice

    @property
    def why(self) -> str:
        """Why a cheaper model is the choice, or none is, in a sentence; "" where none is preferred."""
        if self.cheaper is None:
            return ""
        return choice_sentence(self.table, self.cheaper, self.costs, self.regret_unit)

    @property
    def shown_cost(self) -> CostName | None:
        """The cost that losses are shown against: the preferred one, or FLOPs, or parameters; None if none is known."""
        preferred: tuple[CostName, ...] = () if self.cheaper is None else (self.cheaper.by,)
        names: tuple[CostName, ...] = (*preferred, "flops_per_token", "parameters")
        return next((name for name in names if name in self.costs and np.isfinite(self.costs[name]).any()), None)

    @property
    def front(self) -> Bool[np.ndarray, " M"]:
        """Which models are on the Pareto front of that cost and expected loss; none where either is not known."""
        if self.shown_cost is None or not self.prediction.is_loss:
            return np.zeros(len(self.table.models), bool)
        return on_front(self.costs[self.shown_cost], regrets(self.prediction))


def rank(
    table: CurveTable,
    budget: int,
    target: int,
    method: str = DEFAULT_METHOD,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    evidence: Evidence | None = None,
    otherwise: str | None = None,
    metric: Metric | None = None,
    prefer: Preference | None = None,
    costs: Mapping[CostName, Mapping[str, float]] | None = None,
) -> Ranking:
    """Rank the models of a table for fine-tuning on `target` examples, by least expected regret.

    Args:
      table: measured curves; sizes above `budget` are not looked at.
      budget: largest size to use, in examples.
      target: size to predict for, in examples.
      method: name in `METHODS` of the method that ranks; all others are run beside it.
      progress: called with (methods done, methods in all).
      evidence: measured values besides curves. Methods that need more are left out.
      otherwise: the method that ranks where `method` lacks evidence.
      metric: rank by this metric instead of the loss. Where losses do not tell it, a warning says so, and the loss
        ranks.
      prefer: choose a cheaper model than the best, if it is nearly as good; the order stays as it is.
      costs: of models at inference, by kind and name of the model, besides the table's numbers of parameters.

    Returns:
      All models with two sizes above 0 within the budget, in order, and what every method predicts of them. Models that
      are not eligible inform fits as all others do.

    Raises:
      InputError: budget, target or method make no sense for this table, fewer than two models have two sizes above 0
        within the budget, none of these is eligible, or the method that ranks lacks evidence or can judge none of them;
        or the table does not hold the metric, or the method predicts no losses to tell it from; or a cheaper model is
        preferred and losses or costs are not known.
    """
    METHODS.check(method)
    seen, left_out = _within(table, budget, target)
    if metric is not None:
        check_metric(seen, metric)
    predictions, missing = _predict_all(seen, target, evidence or Evidence(), progress)
    for name in (method, otherwise):
        if name in predictions and predictions[name].choice is None:
            missing[name] = judges_none(name, table.task)
    if method in missing and otherwise is not None:
        method = METHODS.check(otherwise)
    if method in missing:
        raise InputError(f"The method {method} cannot rank: {missing[method]}")
    prediction = predictions.pop(method)
    linked, unlinked = None, ""
    if metric is not None:
        try:
            linked = predict_metric(seen, target, metric, prediction)
        except NotLinked as error:
            unlinked = f"{error} Models are ranked by loss."
    ruling = prediction if linked is None else linked.wrong
    places = {model: place for place, model in enumerate(table.models)}
    ranking = Ranking(
        table=table.select([places[model] for model in seen.models]),
        budget=budget,
        target=target,
        method=method,
        prediction=prediction,
        order=ruling.order,
        baselines=predictions,
        missing=missing,
        probability_best=ruling.probability_best,
        expected_regret=ruling.expected_regret,
        metric=linked,
        left_out=left_out,
        assumptions=(
            *_frame(table),
            *(prediction.assumptions or (f"Ranked by {method}: {METHODS[method].summary}.",)),
            *(_rule(prediction, seen, target) if linked is None else linked.assumptions),
        ),
        **({} if prediction.posterior is None else _asked_of(prediction.posterior, prediction, seen, target)),
    )
    known = costs_of(seen, costs)
    cheaper = None if prefer is None else prefer.among(ruling, known)
    ranking = replace(ranking, costs=known, cheaper=cheaper, untuned=untuned(seen, prediction))
    return replace(ranking, warnings=(*filter(None, [unlinked]), *find_warnings(ranking, seen)))


def _rule(prediction: Prediction, seen: CurveTable, target: int) -> list[str]:
    """How the order follows from the prediction."""
    said = []
    if prediction.draws is not None:
        said.append(
            "Models are in order of expected regret: the loss of each above the lowest, averaged over "
            f"{len(prediction.draws):,} joint draws of all losses. Predicted losses are medians of the same draws, and "
            "intervals and P(best) are theirs too."
        )
    known = int(np.isfinite(seen.column(target)).sum())
    if known and prediction.is_loss:
        said.append(
            f"{known} of {len(seen.models)} models were measured at the target itself; their losses are taken as "
            "measured."
        )
    return said


def _frame(table: CurveTable) -> tuple[str, ...]:
    """What every method assumes of the losses in a table."""
    own = () if table.unit.any_tokenizer or table.caution else (OWN_TOKENS,)
    return (SAME_TEST.format(unit=table.unit), *own, NESTED)


def _within(table: CurveTable, budget: int, target: int) -> tuple[CurveTable, tuple[tuple[str, str], ...]]:
    """The table up to the budget, and the models that have too few points in it."""
    task, largest = shorten(table.task), int(table.sizes.max())
    if not largest:
        raise InputError(f"Task '{task}' holds no losses but those before fine-tuning; measure two larger sizes.")
    if target < budget:
        raise InputError(f"The target of {target} examples is smaller than the budget of {budget}; swap them.")
    if budget > largest:
        raise InputError(
            f"The budget of {budget} examples is larger than anything measured in task '{task}'; use at most {largest}."
        )
    seen = table.up_to(budget)
    points = seen.points()
    short = np.flatnonzero(points < 2)
    left_out = tuple(
        (
            table.models[i],
            (not points[i] and table.ineligible[i])
            or f"measured at {points[i]} sizes from 1 to {budget} examples; two are needed",
        )
        for i in short
    )
    seen = seen.select(np.flatnonzero(points >= 2))
    if len(seen.models) < 2:
        raise InputError(
            f"Only {len(seen.models)} of {len(table.models)} models of task '{task}' have two sizes from 1 to "
            f"{budget} examples; ranking needs two such models."
        )
    check_choices(seen)
    return seen, left_out


def _predict_all(
    seen: CurveTable, target: int, evidence: Evidence, progress: Callable[[int, int], None]
) -> tuple[dict[str, Prediction], dict[str, str]]:
    """Predictions of all methods, or why there is none. They run side by side, as compiling is most of the work."""
    names = methods_in_order()
    predictions, missing = {}, {}
    with ThreadPoolExecutor(max_workers=2) as pool:  # the last ones, which take longest, first
        jobs = {pool.submit(METHODS[name].predict, seen, target, evidence): name for name in reversed(names)}
        for done, job in enumerate(as_completed(jobs), start=1):
            try:
                predictions[jobs[job]] = job.result()
            except InputError as error:
                missing[jobs[job]] = str(error)
            progress(done, len(names))
    return {name: predictions[name] for name in names if name in predictions}, missing


def _asked_of(posterior: CurvePosterior, prediction: Prediction, seen: CurveTable, target: int) -> dict[str, Any]:
    """Curves and laws of a posterior. Curves end in the medians and intervals of the prediction."""
    sizes = curve_sizes(posterior.unit, target, len(posterior.models))
    measured, ends = np.isfinite(seen.column(target)), (prediction.score, prediction.lower, prediction.upper)
    parts = [
        part if end is None else np.column_stack([part[:, :-1], np.where(measured, part[:, -1], end)])
        for part, end in zip(posterior.predict(sizes).parts, ends, strict=True)
    ]
    return {"curves": Curves(sizes, *parts), "parameters": posterior.law_parameters()}


def _closeness(ranking: Ranking) -> list[str]:
    """How sure the first choice is, where that is not obvious from the order."""
    chances, regrets, choices = ranking.probability_best, ranking.expected_regret, ranking.choices
    if chances is None or regrets is None:
        return []
    said, first = [], choices[0]
    name = shorten(ranking.table.models[first], 100)
    cheaper = ranking.cheaper
    if ranking.is_close and cheaper is not None and cheaper.probability is not None:
        chosen, chance = shorten(ranking.table.models[cheaper.choice], 100), cheaper.probability[cheaper.choice]
        said.append(
            f"Too close to call: {chosen} is within {cheaper.margin:g} of the best with probability {chance:.2f}."
        )
    elif ranking.is_close:
        rivals = int((np.cumsum(np.sort(chances[choices])[::-1]) < SURE).sum()) + 1
        said.append(
            f"Too close to call: {name} is best with probability {chances[first]:.2f}, and it takes {rivals} models to "
            f"be {SURE:.2f} sure that the best is among them."
        )
    likeliest = int(np.nanargmax(chances))
    if chances[likeliest] > chances[first]:
        said.append(
            f"{shorten(ranking.table.models[likeliest], 100)} is the likeliest to be best, with probability "
            f"{chances[likeliest]:.2f}, and yet {name} comes first: where it is not the best it is not as far from it "
            f"(expected regret {regrets[first]:.3g} against {regrets[likeliest]:.3g} {ranking.regret_unit})."
        )
    return said


def find_warnings(ranking: Ranking, seen: CurveTable) -> tuple[str, ...]:
    """Reasons to trust the ranking less, most serious first."""
    warnings = [*filter(None, [seen.caution]), *_closeness(ranking)]
    prediction, choices = ranking.prediction, ranking.choices
    chances, names = ranking.probability_best, seen.models
    predicted = ~np.isfinite(seen.column(ranking.target))
    points = seen.points()[predicted]
    if predicted.any() and (fewest := int(points.min())) < 4:
        few = int((points < 4).sum())
        warnings.append(
            f"{few} of {len(names)} models were measured at fewer than 4 sizes (the fewest: {fewest}); their "
            "curves say little about where they bend."
        )
    if predicted.any():
        warnings += prediction.cautions
    if predicted.any() and prediction.widening > WIDE:
        warnings.append(
            "The fit to smaller sizes predicts losses at the largest less well than it claims; "
            f"intervals are {prediction.widening:.1f} times as wide as modelled."
        )
    judged = prediction.score[choices][np.isfinite(prediction.score[choices])]
    if prediction.lower is not None and prediction.upper is not None:
        width = float(np.median((prediction.upper - prediction.lower)[choices]))
        spread = float(np.ptp(judged))
        surely = chances is not None and chances[choices[0]] >= SURE
        if width > spread and not surely:  # errors that models share leave the order as it is
            doubt = "the order may well be wrong" if ranking.is_close else "places below the first may well be wrong"
            warnings.append(
                f"The typical 90 % interval ({width:.3f} {seen.unit} wide) is wider than the spread of the predicted "
                f"losses ({spread:.3f}); {doubt}."
            )
    if ranking.target > 64 * ranking.budget:
        warnings.append(f"The target lies {ranking.target / ranking.budget:.0f} times beyond the budget.")
    if len(judged) < len(choices):
        warnings.append(f"{ranking.method} cannot judge {len(choices) - len(judged)} models; they come last.")
    warnings += untuned_warnings(seen, ranking.untuned, ranking.choice)
    return tuple(warnings)
