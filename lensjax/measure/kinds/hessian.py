"""The Hessian's terms in the PAC-Bayes bound at every fine-tuned model, and the phases that they tell apart."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, Field

from lensjax.core import text
from lensjax.core.sections import DataTable, Line, LinePlot, Section
from lensjax.core.specs import Count, Interval, Strict
from lensjax.curves.table import CurveTable
from lensjax.measure.measurement import MEASUREMENTS, Arrays, Cell, Measured, Measurement, Records, Subject
from lensjax.train.prepare import FIRST_RUNG

if TYPE_CHECKING:  # what is computed with is imported by what computes
    from lensjax.curvature.bound import LayerTerms
    from lensjax.models.model import Batch, Model

KIND = "hessian"
_HELD = 8  # examples of a Hessian's product that are on the devices at a time
_SEEN_IN = {"bound": "the bound’s terms", "losses": "test losses (AtS)"}


class BoundFinding(Strict):
    """The terms of the PAC-Bayes bound along a candidate's ladder; see `lensjax.measure.rungs`.

    Attributes:
      model, seed: The ladder.
      block: Of layers that the products are of.
      measured_on: Number of training examples.
      examples: Of each rung.
      sum_of_largest: Σ H_i of each.
      phases: Of each, the Hessian's term being as in the bound; empty where nothing can be fitted.
      beta2: Of Σ H_i ≈ C₂ n^(−β₂).
      transition: Examples at which the pre-power phase ends.
      note: Why there is no fit or no transition.
    """

    model: str
    seed: int
    block: str
    measured_on: int
    examples: tuple[int, ...]
    sum_of_largest: tuple[float, ...]
    phases: tuple[str, ...]
    beta2: Interval | None
    transition: float | None
    note: str


class PowerPhase(Strict):
    """Where a candidate's power phase begins.

    Attributes:
      model: The candidate.
      seen_in: The bound's terms where they were measured on three rungs, and otherwise the test losses, by AtS.
      begins: The first rung in it, where earlier ones are in the pre-power phase.
      note: What is seen where it has no beginning.
    """

    model: str
    seen_in: Literal["bound", "losses"]
    begins: int | None
    note: str


class BoundFindings(BaseModel):
    """The bound's terms where they were measured, and where power phases begin."""

    bound_terms: tuple[BoundFinding, ...] = ()
    phases: tuple[PowerPhase, ...] = ()


@MEASUREMENTS.register(KIND)
class HessianTerms(Measurement):
    """The terms of the PAC-Bayes bound at every fine-tuned model; see `lensjax hessian --finetuned`.

    Attributes:
      examples: Number of training examples that they are measured on.
      block, positive_steps: See `lensjax.curvature.bound.layer_terms`.
    """

    title, label, help = "Hessian", "Hessian", "the terms of the PAC-Bayes bound at every fine-tuned model"
    findings: ClassVar[type[BaseModel] | None] = BoundFindings

    examples: Annotated[int, Field(ge=1, le=FIRST_RUNG, strict=True)] = 32
    block: Literal["diagonal", "joint"] = "diagonal"
    positive_steps: Count | None = None

    @property
    def rows(self) -> int:
        return self.examples

    def seeds_on(self, rung: int, seeds: Sequence[int]) -> Sequence[int]:
        return seeds if rung else ()

    def flops(self, model: "Model", batch: "Batch | None") -> int:
        from lensjax.measure.rungs import rung_flops

        assert batch is not None
        return rung_flops(model, [batch], block=self.block, positive_steps=self.positive_steps)

    def measure(self, subject: Subject) -> Measured:
        from lensjax.measure.rungs import measure_rungs, rung_arrays, rung_flops, rung_losses

        run, model = subject.run, subject.pretrained()
        batch, starts = subject.batch(model), range(0, self.examples, _HELD)
        batches = [{name: rows[start : start + _HELD] for name, rows in batch.items()} for start in starts]
        how: dict[str, Any] = {
            "block": self.block,
            "positive_steps": self.positive_steps,
            "losses": subject.shared.setdefault(KIND, rung_losses(model)),  # compiled once for all rungs
        }
        (rung,) = measure_rungs(model, batches, [run], **how)
        flops = rung_flops(model, batches, **how)  # what was traced for the terms is not traced again
        total = {"examples": rung.examples, "sum_of_largest": float(rung.terms.largest.sum())}
        return Measured(total, rung_arrays(rung), flops)

    @classmethod
    def collect(cls, records: Records) -> BoundFindings:
        terms = bound_terms(records)
        phases = [] if records.curves is None else power_phases(records.curves, terms)
        return BoundFindings(bound_terms=tuple(terms), phases=tuple(phases))

    @classmethod
    def show(cls, findings: Any) -> Sequence[Section]:
        table = _table(findings.bound_terms, findings.phases)
        if table is None or not (findings.bound_terms or any(phase.begins for phase in findings.phases)):
            return ()
        note = (
            "LensLLM divides a fine-tuning curve into a pre-power phase, in which the n^(−3/4) term of the PAC-Bayes "
            "bound rules, and a power phase, in which the Hessian’s does. Where the bound’s terms were measured on "
            "three rungs or more, Σ Hᵢ ≈ C₂ n^(−β₂) is fitted to them and they say which rules; elsewhere it is where "
            "AtS sees the line of log loss begin."
        )
        plots = [_plot(findings.bound_terms)] if findings.bound_terms else []
        begins = {phase.model: phase.begins for phase in findings.phases if phase.begins is not None}
        return [Section("phases", "Phases", [note], plots, [table], begins, "where the power phase begins")]


def bound_terms(records: Records) -> list[BoundFinding]:
    """The bound's terms along every ladder on which any were measured.

    Raises:
      InputError: a file of them cannot be read.
    """
    ladders = []
    for name in records.models:
        for seed in records.seeds:
            cells = [Cell(KIND, name, size, seed) for size in records.sizes if size]
            measured = [one.arrays for cell in cells if (one := records.read(cell)) is not None]
            if arrays := [one for one in measured if "forms" in one]:
                ladders.append(_ladder(name, seed, arrays))
    return ladders


def _ladder(model: str, seed: int, arrays: Sequence[Arrays]) -> BoundFinding:
    from lensjax.measure.rungs import ladder_summary, read_rung

    # Rungs that were measured with other settings than the last do not fit one line with it.
    rungs = [read_rung(one) for one in arrays]
    summary = ladder_summary([rung for rung in rungs if _settings(rung.terms) == _settings(rungs[-1].terms)])
    fitted = summary["decay"]
    phases = None if fitted is None else summary["phases"]["as_bounded"]
    ends = None if fitted is None else fitted["beta2_interval"]
    return BoundFinding(
        model=model,
        seed=seed,
        block=summary["block"],
        measured_on=summary["measured_on"],
        examples=tuple(row["examples"] for row in summary["rungs"]),
        sum_of_largest=tuple(row["sum_of_largest"] for row in summary["rungs"]),
        phases=() if phases is None else tuple(phases["phase"]),
        beta2=None if ends is None else Interval(value=fitted["beta2"], lower=ends[0], upper=ends[1]),
        transition=None if phases is None else phases["transition"],
        note=summary["not_fitted"] if phases is None else phases["reason"],
    )


def _settings(terms: "LayerTerms") -> tuple[Any, ...]:
    return terms.block, terms.over, terms.losses.size, terms.positive is None


def power_phases(table: CurveTable, terms: Sequence[BoundFinding]) -> list[PowerPhase]:
    """Where candidates' power phases begin: by the bound's terms where there is a fit, and by AtS otherwise."""
    from lensjax.curvature.phases import LEAST_RUNGS
    from lensjax.measure.transition import residual_transition

    fitted = {one.model: one for one in reversed(terms) if one.phases}
    phases = []
    for name, losses in zip(table.models, table.loss, strict=True):
        known = np.isfinite(losses) & (table.sizes > 0)
        if name in fitted:
            phases.append(_from_bound(fitted[name]))
        elif known.sum() >= LEAST_RUNGS:
            begins = residual_transition(table.sizes[known], losses[known])
            note = "" if begins else "All sizes but the smallest, which AtS never takes, lie on one line."
            phases.append(PowerPhase(model=name, seen_in="losses", begins=begins, note=note))
    return phases


def _from_bound(terms: BoundFinding) -> PowerPhase:
    later = [size for size, phase in zip(terms.examples, terms.phases, strict=True) if phase == "power"]
    begins = min(later) if terms.transition is not None and 0 < len(later) < len(terms.phases) else None
    note = terms.note[:1].upper() + terms.note[1:] + "." if terms.note else ""
    if begins is None and not note:
        note = f"The transition, at {terms.transition:,.0f} examples, lies outside the rungs."
    return PowerPhase(model=terms.model, seen_in="bound", begins=begins, note=note)


def _table(bounds: Sequence[BoundFinding], phases: Sequence[PowerPhase]) -> DataTable | None:
    """Where phases begin, beside the terms of the bound where these were measured."""
    terms, seen = {one.model: one for one in reversed(bounds)}, {one.model: one for one in phases}
    rows = []
    for model in dict.fromkeys([*seen, *terms]):
        phase, term = seen.get(model), terms.get(model)
        begins = "" if phase is None or phase.begins is None else f"{text.count(phase.begins)} examples"
        if begins and term is not None and term.transition is not None:
            begins += f" (fit: {term.transition:,.0f})"
        row = [begins or text.DASH, "" if phase is None else _SEEN_IN[phase.seen_in]]
        if terms:
            row += [text.significant(term.sum_of_largest[-1], 3), str(term.beta2 or text.DASH)] if term else ["", ""]
        rows.append((model, [*row, (phase and phase.note) or (term and term.note) or ""]))
    columns = ["Power phase from", "Seen in", *(["Σ Hᵢ, last rung", "β₂, 90 % interval"] if terms else []), "Note"]
    return DataTable("Phases of candidates", columns, rows, words=("Note",)) if rows else None


def _plot(terms: Sequence[BoundFinding]) -> LinePlot:
    several = len({one.seed for one in terms}) > 1
    names = [f"{one.model}, seed {one.seed}" if several else one.model for one in terms]
    lines = [Line(n, t.examples, t.sum_of_largest, model=t.model) for n, t in zip(names, terms, strict=True)]
    blocks = "rows of blocks as in one product" if terms[0].block == "joint" else "layers’ own blocks"
    note = f"Σ Hᵢ over layers at every rung, the largest of {terms[0].measured_on:,} training examples, {blocks}."
    return LinePlot("terms", "Hessian terms", "training examples", "Σ Hᵢ", lines, note, ladder=True)
