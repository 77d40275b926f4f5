"""Decisions from the curves so far: the first choice, the candidates that are measured no further, and the end."""

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lensjax.core.errors import InputError
from lensjax.curves.csv_files import parse_curves
from lensjax.curves.metrics import METRICS
from lensjax.curves.table import CurveTable
from lensjax.measure.measurement import MEASUREMENTS, Records
from lensjax.selection.by_metric import predict_metric
from lensjax.selection.cheaper import CostName, costs_of
from lensjax.selection.evidence import Evidence
from lensjax.selection.methods import DEFAULT_METHOD, predict_by
from lensjax.selection.prediction import Prediction
from lensjax.study.spec import StudySpec


@dataclass(frozen=True)
class Verdict:
    """A decision, as fields of `lensjax.study.journal.Entry`."""

    decision: str
    choice: str
    probability_best: dict[str, float] = field(default_factory=dict)
    eliminated: tuple[str, ...] = ()
    stop: bool = False


def results_table(curves: str, task: str) -> CurveTable | None:
    """The curves of all candidates in the text of a study's curves.csv; None where no loss was measured."""
    rows = csv.DictReader(io.StringIO(curves))
    return parse_curves(curves, "the study's curves", task) if any(row["loss"] for row in rows) else None


def basis(spec: StudySpec, table: CurveTable) -> str:
    """A hash of everything that a decision depends on."""
    rules = spec.model_dump_json(include={"eliminate_below", "stop_when", "target", "method", "metric", "prefer"})
    return hashlib.sha256((rules + table.to_csv("tidy")).encode()).hexdigest()[:16]


def rankable(table: CurveTable | None) -> CurveTable | None:
    """The candidates with two sizes above 0, where there are two of them or more and one may be chosen."""
    if table is None:
        return None
    enough = np.flatnonzero(table.points() >= 2)
    return table.select(enough) if enough.size >= 2 and table.eligible[enough].any() else None


def evidence_for_methods(records: Records) -> Evidence:
    """Everything that was measured besides curves, as selection methods take it."""
    return Evidence({name: kind.for_methods(records) for name, kind in MEASUREMENTS.items()})


def decide(
    spec: StudySpec,
    table: CurveTable,
    target: int,
    out: Sequence[str],
    evidence: Evidence,
    costs: Mapping[CostName, Mapping[str, float]] | None = None,
) -> Verdict:
    """Apply the study's rules to the curves so far.

    The first choice is that of a ranking by the study's method: the candidate of least expected regret, or a cheaper
    one within the margin that the study prefers it by. Rules then are about P(within the margin of the best), and
    about regret beyond the margin.

    Args:
      spec: The study, with its rules.
      table: Curves of the candidates with two sizes above 0; see `rankable`.
      target: Training examples that candidates are compared at.
      out: Candidates that are measured no further already.
      evidence: Measurements besides curves.
      costs: See `lensjax.selection.ranking.rank`.
    """
    method, prediction = predict_by(spec.method, table, target, evidence, otherwise=DEFAULT_METHOD)
    prediction, unit, remark = _ruling(spec, table, target, prediction)
    best, what = int(prediction.order[0]), "best"
    likely, regrets = prediction.probability_best, prediction.expected_regret
    if spec.prefer is not None and prediction.is_loss:
        cheaper = spec.prefer.preference.among(prediction, costs_of(table, costs))
        best, likely, regrets = cheaper.choice, cheaper.probability, cheaper.shortfall
        what = f"within {spec.prefer.smallest_within:g} of the best"
    name = table.models[best]
    sentence = f"After {int(table.sizes.max()):,} examples: {name} first"
    if likely is None or regrets is None:
        ruled = spec.eliminate_below is not None or spec.stop_when is not None
        without = ", without the probabilities that eliminating and stopping need" if ruled else ""
        return Verdict(f"{sentence} by {method}{without}.{remark}", name)
    chances = dict(zip(table.models, np.nan_to_num(likely).tolist(), strict=True))
    probability, regret = chances[name], float(regrets[best])
    further = "" if spec.prefer is None else " beyond that"
    sentence += f", {what} with probability {probability:.2f}, expected regret{further} {regret:.4f} {unit}"
    losing: tuple[str, ...] = ()
    if spec.eliminate_below is not None:
        least = spec.eliminate_below  # which those that are never chosen do not reach
        losing = tuple(one for one, chance in chances.items() if chance < least and one != name and one not in out)
    rule = spec.stop_when
    stop = rule is not None and (
        (rule.probability_best is not None and probability >= rule.probability_best)
        or (rule.expected_regret is not None and regret <= rule.expected_regret)
    )
    if losing:
        sentence += f"; eliminated: {', '.join(f'{one} (P(best) {chances[one]:.2g})' for one in losing)}"
    if stop:
        sentence += "; the decision is clear"
    return Verdict(f"{sentence}.{remark}", name, chances, losing, stop)


def _ruling(spec: StudySpec, table: CurveTable, target: int, losses: Prediction) -> tuple[Prediction, str, str]:
    """The prediction that decides, of losses or of the study's metric, its unit, and why losses do if they do."""
    unit = table.unit.name
    if spec.metric is None:
        return losses, unit, ""
    metric = METRICS[spec.metric]
    try:
        return predict_metric(table, target, metric, losses).wrong, f"of {metric}", ""
    except InputError as error:
        return losses, unit, f" {error} The loss decides."
