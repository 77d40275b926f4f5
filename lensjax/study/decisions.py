"""What the curves measured so far say of the candidates, and who is measured no further."""

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lensjax.curves.csv_files import parse_curves
from lensjax.curves.table import CurveTable
from lensjax.fit.joint.fitting import fit_joint
from lensjax.fit.joint.posterior import JointPosterior
from lensjax.fit.posterior import expected_regret, probability_best
from lensjax.study.spec import StudySpec


@dataclass(frozen=True)
class Standing:
    """What the joint posterior says of M candidates at the target.

    Attributes:
      models: Their names.
      probability_best: P(each has the lowest loss).
      expected_regret: Of choosing each, in nats per token.
    """

    models: tuple[str, ...]
    probability_best: Float[np.ndarray, " M"]
    expected_regret: Float[np.ndarray, " M"]

    @property
    def best(self) -> int:
        """The position of the one with the least expected regret."""
        return int(np.argmin(self.expected_regret))


@dataclass(frozen=True)
class Verdict:
    """What follows from a standing: a sentence, who is measured no further, and whether measuring ends."""

    sentence: str
    eliminated: tuple[str, ...] = ()
    stop: bool = False


def results_table(curves: str, task: str) -> CurveTable | None:
    """The curves of all candidates in the text of a study's curves.csv; None where no loss was measured."""
    rows = csv.DictReader(io.StringIO(curves))
    return parse_curves(curves, "the study's curves", task) if any(row["loss"] for row in rows) else None


def basis(spec: StudySpec, table: CurveTable) -> str:
    """A hash of everything that a decision depends on."""
    rules = spec.model_dump_json(include={"eliminate_below", "stop_when", "target"})
    return hashlib.sha256((rules + table.to_csv("tidy")).encode()).hexdigest()[:16]


def rankable(table: CurveTable | None) -> CurveTable | None:
    """The candidates with two sizes above 0, where there are two of them or more."""
    if table is None:
        return None
    enough = np.flatnonzero(table.points() >= 2)
    return table.select(enough) if enough.size >= 2 else None


def standing(posterior: JointPosterior, target: int) -> Standing:
    """Who is best at the target, and what choosing each would cost."""
    samples = posterior.sample(target)
    return Standing(posterior.models, probability_best(samples), expected_regret(samples))


def decide(spec: StudySpec, table: CurveTable, target: int, out: Sequence[str]) -> Verdict:
    """What the study's rules say of the curves so far.

    Args:
      table: Of candidates with two sizes above 0; see `rankable`.
      out: Candidates that are measured no further already.
    """
    found = standing(fit_joint(table, target), target)
    name, best = found.models[found.best], found.best
    probability, regret = float(found.probability_best[best]), float(found.expected_regret[best])
    largest = int(table.sizes.max())
    sentence = (
        f"After {largest:,} examples: {name} first, best with probability {probability:.2f}, expected regret "
        f"{regret:.4f} nats per token"
    )
    losing: tuple[str, ...] = ()
    if spec.eliminate_below is not None:
        pairs = zip(found.models, found.probability_best, strict=True)
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
