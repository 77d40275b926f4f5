"""Rankings: candidates in order of their predicted loss, with all that methods know of it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lensjax.core.errors import InputError, listing, shorten
from lensjax.curves.table import CurveTable
from lensjax.fit.posterior import CurvePosterior
from lensjax.selection.choices import check_choices
from lensjax.selection.evidence import Evidence
from lensjax.selection.methods import DEFAULT_METHOD, METHODS, judges_none, methods_in_order
from lensjax.selection.prediction import Prediction

WIDE = 1.2  # factor of widening that is worth a warning
ASSUMPTIONS = (
    "The test loss of every model was measured in the same way, on the same test set, in nats per token.",
    "Larger training sets contain the smaller ones, and the target follows the same distribution.",
)


@dataclass(frozen=True)
class Curves:
    """Fitted curves of M models at G sizes, with a 90 % band, in nats per token."""

    sizes: Int[np.ndarray, " G"]
    loss: Float[np.ndarray, "M G"]
    lower: Float[np.ndarray, "M G"]
    upper: Float[np.ndarray, "M G"]


@dataclass(frozen=True)
class Ranking:
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
      expected_regret: expected loss above the best eligible candidate if this one is chosen, nats per token; NaN
        likewise.
      curves: fitted curves from the smallest measured size to the target, where the method fits any.
      parameters: per-model law parameters by name, where the method has any.
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
    curves: Curves | None = None
    parameters: dict[str, Float[np.ndarray, " M"]] = field(default_factory=dict)
    left_out: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()

    @property
    def ineligible(self) -> tuple[tuple[str, str], ...]:
        """(model, why) of those that are measured and shown, but never chosen."""
        pairs = ((self.table.models[i], self.table.ineligible[i]) for i in self.order)
        return tuple((model, why) for model, why in pairs if why)

    @property
    def choices(self) -> Int[np.ndarray, " N"]:
        """Positions of the models that may be chosen, best first."""
        return self.order[self.table.eligible[self.order]]


def rank(
    table: CurveTable,
    budget: int,
    target: int,
    method: str = DEFAULT_METHOD,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    evidence: Evidence | None = None,
    otherwise: str | None = None,
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

    Returns:
      All models with two sizes above 0 within the budget, in order, and what every method predicts of them. Models that
      are not eligible inform fits as all others do.

    Raises:
      InputError: budget, target or method make no sense for this table, fewer than two models have two sizes above 0
        within the budget, none of these is eligible, or the method that ranks lacks evidence or can judge none of them.
    """
    METHODS.check(method)
    seen, left_out = _within(table, budget, target)
    predictions, missing = _predict_all(seen, target, evidence or Evidence(), progress)
    for name in (method, otherwise):
        if name in predictions and predictions[name].choice is None:
            missing[name] = judges_none(name, table.task)
    if method in missing and otherwise is not None:
        method = METHODS.check(otherwise)
    if method in missing:
        raise InputError(f"The method {method} cannot rank: {missing[method]}")
    prediction = predictions.pop(method)
    ranking = Ranking(
        table=table.select([table.models.index(model) for model in seen.models]),
        budget=budget,
        target=target,
        method=method,
        prediction=prediction,
        order=prediction.order,
        baselines=predictions,
        missing=missing,
        probability_best=prediction.probability_best,
        expected_regret=prediction.expected_regret,
        left_out=left_out,
        assumptions=(*ASSUMPTIONS, *(prediction.assumptions or (f"Ranked by {method}: {METHODS[method].summary}.",))),
        **({} if prediction.posterior is None else _asked_of(prediction.posterior, target)),
    )
    return replace(ranking, warnings=find_warnings(ranking, seen))


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
        (table.models[i], f"measured at {points[i]} sizes from 1 to {budget} examples; two are needed") for i in short
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


def _asked_of(posterior: CurvePosterior, target: int) -> dict[str, Any]:
    """Curves and laws of a posterior."""
    sizes = np.unique(np.geomspace(posterior.unit, target, 30).round().astype(np.int64))
    return {"curves": Curves(sizes, *posterior.predict(sizes).parts), "parameters": posterior.law_parameters()}


def find_warnings(ranking: Ranking, seen: CurveTable) -> tuple[str, ...]:
    """Reasons to trust the ranking less, most serious first."""
    warnings = []
    points, prediction, choices = seen.points(), ranking.prediction, ranking.choices
    best = choices[0]
    if (fewest := int(points.min())) < 4:
        few = int((points < 4).sum())
        warnings.append(
            f"{few} of {len(points)} models were measured at fewer than 4 sizes (the fewest: {fewest}); their "
            "curves say little about where they bend."
        )
    warnings += prediction.cautions
    if prediction.widening > WIDE:
        warnings.append(
            "The fit to smaller sizes predicts losses at the largest less well than it claims; "
            f"intervals are {prediction.widening:.1f} times as wide as modelled, and the order may still be wrong."
        )
    judged = prediction.score[choices][np.isfinite(prediction.score[choices])]
    if prediction.lower is not None and prediction.upper is not None:
        width = float(np.median((prediction.upper - prediction.lower)[choices]))
        spread = float(np.ptp(judged))
        surely = ranking.probability_best is not None and ranking.probability_best[best] >= 0.9
        if width > spread and not surely:  # errors that models share leave the order as it is
            warnings.append(
                f"The typical 90 % interval ({width:.3f} nats wide) is wider than the spread of the predicted "
                f"losses ({spread:.3f} nats); the order may well be wrong."
            )
        measured = seen.column(ranking.target) if ranking.target in seen.sizes else np.full(len(points), np.nan)
        outside = np.flatnonzero((measured < prediction.lower) | (measured > prediction.upper))
        if outside.size:
            warnings.append(
                f"The losses measured at the target itself of {listing([seen.models[i] for i in outside])} lie outside "
                "their 90 % intervals; trust what was measured."
            )
    if ranking.probability_best is not None and ranking.probability_best[best] < 0.5:
        rivals = int((np.cumsum(np.sort(ranking.probability_best[choices])[::-1]) < 0.9).sum()) + 1
        warnings.append(
            f"No clear winner: the first choice is best with probability {ranking.probability_best[best]:.2f}, "
            f"and it takes {rivals} models to hold the best with probability 0.90."
        )
    if ranking.target > 64 * ranking.budget:
        warnings.append(f"The target lies {ranking.target / ranking.budget:.0f} times beyond the budget.")
    if len(judged) < len(choices):
        warnings.append(f"{ranking.method} cannot judge {len(choices) - len(judged)} models; they come last.")
    return tuple(warnings)
