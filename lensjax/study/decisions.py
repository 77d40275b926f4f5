"""Decisions from the curves so far: the first choice, the candidates that are measured no further, and the end."""

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from lensjax.curves.csv_files import parse_curves
from lensjax.curves.table import CurveTable
from lensjax.curves.units import NATS_PER_TOKEN
from lensjax.fit.joint.fitting import fit_joint
from lensjax.fit.posterior import CurvePosterior, chances_and_regrets
from lensjax.study.spec import StudySpec


@dataclass(frozen=True)
class Verdict:
    """A decision, as fields of `lensjax.study.journal.Entry`."""

    decision: str
    eliminated: tuple[str, ...] = ()
    stop: bool = False


def results_table(curves: str, task: str) -> CurveTable | None:
    """The curves of all candidates in the text of a study's curves.csv; None where no loss was measured."""
    rows = csv.DictReader(io.StringIO(curves))
    return (
        parse_curves(curves, "the study's curves", task, NATS_PER_TOKEN) if any(row["loss"] for row in rows) else None
    )


def basis(spec: StudySpec, table: CurveTable) -> str:
    """A hash of everything that a decision depends on."""
    rules = spec.model_dump_json(include={"eliminate_below", "stop_when", "target"})
    return hashlib.sha256((rules + table.to_csv("tidy")).encode()).hexdigest()[:16]


def rankable(table: CurveTable | None) -> CurveTable | None:
    """The candidates with two sizes above 0, where there are two of them or more and one may be chosen."""
    if table is None:
        return None
    enough = np.flatnonzero(table.points() >= 2)
    return table.select(enough) if enough.size >= 2 and table.eligible[enough].any() else None


def standing(
    posterior: CurvePosterior, target: int, eligible: Bool[np.ndarray, " models"]
) -> tuple[Float[np.ndarray, " models"], Float[np.ndarray, " models"]]:
    """P(a candidate has the lowest loss at the target) and expected regret, among the eligible; NaN for the others."""
    return chances_and_regrets(posterior.sample(target), eligible)


def decide(spec: StudySpec, table: CurveTable, target: int, out: Sequence[str]) -> Verdict:
    """Apply the study's rules to the curves so far.

    Args:
      spec: The study, with its rules.
      table: Curves of the candidates with two sizes above 0; see `rankable`.
      target: Training examples that candidates are compared at.
      out: Candidates that are measured no further already.
    """
    chances, regrets = standing(fit_joint(table, target), target, table.eligible)
    best = int(np.nanargmin(regrets))
    name, probability, regret = table.models[best], float(chances[best]), float(regrets[best])
    largest = int(table.sizes.max())
    sentence = (
        f"After {largest:,} examples: {name} first, best with probability {probability:.2f}, expected regret "
        f"{regret:.4f} nats per token"
    )
    losing: tuple[str, ...] = ()
    if spec.eliminate_below is not None:
        pairs = zip(table.models, np.nan_to_num(chances), strict=True)  # those never chosen have no chance
        losing = tuple(m for m, p in pairs if p < spec.eliminate_below and m != name and m not in out)
    rule = spec.stop_when
    stop = rule is not None and (
        (rule.probability_best is not None and probability >= rule.probability_best)
        or (rule.expected_regret is not None and regret <= rule.expected_regret)
    )
    if losing:
        sentence += f"; eliminated: {', '.join(losing)}"
    if stop:
        sentence += "; the decision is clear"
    return Verdict(sentence + ".", losing, stop)
