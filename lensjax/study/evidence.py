"""What was measured of candidates besides curves, as a report tells it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from pydantic import TypeAdapter

from lensjax.curvature.dynamics import kernel_drift, residual_modes
from lensjax.curvature.phases import LEAST_RUNGS
from lensjax.curves.table import CurveTable
from lensjax.measure.rungs import ladder_summary, read_rung
from lensjax.measure.transition import residual_transition
from lensjax.models.heavy_tails import WeightMetrics
from lensjax.study import schema
from lensjax.study.cells import read_evidence
from lensjax.study.journal import Cell
from lensjax.study.state import StudyState

Modes = tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]
Arrays = dict[str, np.ndarray[Any, Any]]


def kernels(state: StudyState, out: Path) -> tuple[list[schema.Kernel], dict[str, Modes]]:
    """Candidates' kernels, and their residuals' modes for the LensLLM law.

    Raises:
      InputError: a file of them cannot be read.
    """
    found, modes = [], {}
    for name in state.spec.names:
        measured = read_evidence(out, Cell("ntk", name, 0, state.spec.seeds[0]))
        if measured is None or "theta" not in measured[1]:
            continue
        summary, arrays = measured
        told = {key: summary[key] for key in ("functional", "size", "effective_rank", "target_alignment")}
        lines = {key: tuple(arrays[key].tolist()) for key in ("eigenvalues", "times", "residuals")}
        found.append(schema.Kernel.model_validate({"model": name, **told, **lines}))
        rates, weights = residual_modes(arrays["theta"], arrays["f0"], arrays["y"])
        modes[name] = np.asarray(rates), np.asarray(weights)
    return found, modes


def kernel_drifts(state: StudyState, out: Path) -> list[schema.KernelDrift]:
    """How far fine-tuning moves kernels, along every ladder of which any were measured.

    Rungs whose kernel is of another functional or of other examples than the candidate's are left out.

    Raises:
      InputError: a file of them cannot be read.
    """
    found, seed = [], state.spec.seeds[0]
    for name in state.spec.names:
        before = read_evidence(out, Cell("ntk", name, 0, seed))
        rungs = [(size, read_evidence(out, Cell("ntk", name, size, seed))) for size in state.sizes if size]
        like = [
            (size, *after)
            for size, after in rungs
            if before is not None and after is not None and "theta" in after[1]
            if _of_training_aside(after[0]) == _of_training_aside(before[0])
        ]
        if before is None or "theta" not in before[1] or not like:
            continue
        told: dict[str, list[Any]] = {"examples": [size for size, _, _ in like], "drift": [], "growth": []}
        for _, summary, arrays in like:
            told["drift"].append(kernel_drift(before[1]["theta"], arrays["theta"]))
            told["growth"].append(summary["trace"] / before[0]["trace"])
        told |= {key: [summary[key] for _, summary, _ in like] for key in ("effective_rank", "target_alignment")}
        found.append(schema.KernelDrift.model_validate({"model": name, "seed": seed, **told}))
    return found


def _of_training_aside(summary: dict[str, Any]) -> dict[str, Any]:
    """What a kernel depends on but for how the model was fine-tuned."""
    return {name: value for name, value in (summary.get("asked") or {}).items() if name != "training"}


def bound_terms(state: StudyState, out: Path) -> list[schema.BoundTerms]:
    """The bound's terms along every ladder of which any were measured.

    Raises:
      InputError: a file of them cannot be read.
    """
    found = []
    for name in state.spec.names:
        for seed in state.spec.seeds:
            cells = [Cell("hessian", name, size, seed) for size in state.sizes if size]
            measured = [read_evidence(out, cell) for cell in cells]
            arrays = [one[1] for one in measured if one is not None and "forms" in one[1]]
            if arrays:
                found.append(_ladder(name, seed, arrays))
    return found


def _ladder(model: str, seed: int, arrays: Sequence[Arrays]) -> schema.BoundTerms:
    # Rungs that were measured with other settings than the last do not fit one line with it.
    latest = read_rung(arrays[-1]).terms
    like = [rung for rung in map(read_rung, arrays) if _settings(rung.terms) == _settings(latest)]
    summary = ladder_summary(like)
    fitted = summary["decay"]
    phases = None if fitted is None else summary["phases"]["as_bounded"]
    ends = None if fitted is None else fitted["beta2_interval"]
    return schema.BoundTerms(
        model=model,
        seed=seed,
        block=summary["block"],
        measured_on=summary["measured_on"],
        examples=tuple(row["examples"] for row in summary["rungs"]),
        sum_of_largest=tuple(row["sum_of_largest"] for row in summary["rungs"]),
        phases=() if phases is None else tuple(phases["phase"]),
        beta2=None if ends is None else schema.Interval(value=fitted["beta2"], lower=ends[0], upper=ends[1]),
        transition=None if phases is None else phases["transition"],
        note=summary["not_fitted"] if phases is None else phases["reason"],
    )


def _settings(terms: Any) -> tuple[Any, ...]:
    return terms.block, terms.over, terms.losses.size, terms.positive is None


def power_phases(table: CurveTable, terms: Iterable[schema.BoundTerms]) -> list[schema.PowerPhase]:
    """Where candidates' power phases begin: by the bound's terms where there is a fit, and by AtS otherwise."""
    fitted = {one.model: one for one in reversed(list(terms)) if one.phases}
    found = []
    for name, losses in zip(table.models, table.loss, strict=True):
        known = np.isfinite(losses) & (table.sizes > 0)
        if name in fitted:
            found.append(_from_bound(fitted[name]))
        elif known.sum() >= LEAST_RUNGS:
            begins = residual_transition(table.sizes[known], losses[known])
            note = "" if begins else "All sizes but the smallest, which AtS never takes, lie on one line."
            found.append(schema.PowerPhase(model=name, seen_in="losses", begins=begins, note=note))
    return found


def _from_bound(terms: schema.BoundTerms) -> schema.PowerPhase:
    later = [size for size, phase in zip(terms.examples, terms.phases, strict=True) if phase == "power"]
    begins = min(later) if terms.transition is not None and 0 < len(later) < len(terms.phases) else None
    note = terms.note[:1].upper() + terms.note[1:] + "." if terms.note else ""
    if begins is None and not note:
        note = f"The transition, at {terms.transition:,.0f} examples, lies outside the rungs."
    return schema.PowerPhase(model=terms.model, seen_in="bound", begins=begins, note=note)


def weight_scores(state: StudyState, out: Path) -> dict[str, float]:
    """NLPmetrics' score, PL_alpha + E_TPL_lambda, of candidates whose weights were looked at; less is better.

    Raises:
      InputError: a file of them cannot be read.
    """
    scores = {}
    for name in state.spec.names:
        measured = read_evidence(out, Cell("weights", name))
        if measured is not None:
            scores[name] = _WEIGHTS.validate_python(measured[0]).score
    return scores


_WEIGHTS = TypeAdapter(WeightMetrics)
