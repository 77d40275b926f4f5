"""The report of a study, while it runs or after."""

from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lensjax.core import text
from lensjax.core.errors import InputError, listing
from lensjax.core.version import __version__
from lensjax.curves.metrics import METRICS
from lensjax.curves.table import CurveTable
from lensjax.measure.measurement import MEASUREMENTS
from lensjax.selection.advice import Point
from lensjax.selection.deciding import decisive
from lensjax.selection.evidence import Evidence
from lensjax.selection.methods import DEFAULT_METHOD, METHODS
from lensjax.selection.ranking import Ranking, rank
from lensjax.selection.records import records
from lensjax.selection.untuned import gain_sentence
from lensjax.study import schema
from lensjax.study.cost import run_cost, study_cost
from lensjax.study.decisions import evidence_for_methods, results_table
from lensjax.study.folder import study_records
from lensjax.study.inference import costs_by_name
from lensjax.study.learning import learning_curves
from lensjax.study.schema import StudyReport
from lensjax.study.spec import CandidateSpec, StudySpec
from lensjax.study.state import StudyState, read_state
from lensjax.study.tested import tested
from lensjax.train.results import curves_csv, steps_caution


@dataclass(frozen=True)
class Findings:
    """A report, and the contents of the files beside it.

    Attributes:
      report: Everything that was measured and decided.
      ranking: The same as `report.ranking`, with fitted curves; None where there is none.
      curves: The text of curves.csv.
    """

    report: StudyReport
    ranking: Ranking | None
    curves: str


def collect(spec: StudySpec, out: Path) -> Findings:
    """Everything that a study has measured and decided so far; computes rankings, but measures nothing.

    Args:
      spec: The study; `lensjax.study.folder.read_study_folder` reads it from its folder.
      out: Its folder, which another command may be writing to.

    Returns:
      The report; `lensjax.report.study_files.write_findings` writes its files.

    Raises:
      InputError: a file of the study cannot be read.
    """
    state = read_state(spec, out)
    curves = curves_csv(state.results, spec.task.max_unwritable)
    table = results_table(curves, spec.task.name)
    table = None if table is None else table.barring(state.barred)
    measured = study_records(spec, out, state.sizes, table, dict(state.faults))
    ranking, why = _rank(state, table, evidence_for_methods(measured))
    report = StudyReport(
        lensjax=__version__,
        study=spec.name,
        task=_task(spec),
        unit=None if table is None else table.unit.name,
        method=spec.method if ranking is None else ranking.method,
        strategy=spec.strategy,
        budget=0 if table is None else _largest(table),
        target=state.target,
        decision=_decision(state, ranking, why),
        progress=state.progress,
        candidates=tuple(_candidate(state, one, table) for one in spec.candidates),
        ranking=() if ranking is None else tuple(_ranked(ranking)),
        left_out={} if ranking is None else dict(ranking.left_out),
        warnings=(*state.damage, *(() if ranking is None else ranking.warnings)),
        assumptions=() if ranking is None else ranking.assumptions,
        **{name: value for _, kind in MEASUREMENTS.items() for name, value in kind.collect(measured) or ()},
        **_findings(ranking),
        cost=study_cost(state),
        learning=learning_curves(spec, out, state.results),
        failures=tuple(state.failed_cells()),
        eliminated=tuple(_eliminated(state)),
        journal=tuple(schema.PastDecision(time=e.time, decision=e.decision) for e in state.journal if e.decision),
        origin=_origin(state),
    )
    return Findings(report, ranking, curves)


def _largest(table: CurveTable) -> int:
    """The largest size with a measured loss."""
    return int(table.sizes[table.measured.any(axis=0)].max())


def _rank(state: StudyState, table: CurveTable | None, evidence: Evidence) -> tuple[Ranking | None, str]:
    """The ranking, with the study's cautions, or why there is none yet."""
    seen = None if table is None else table.up_to(state.target)
    if seen is None or not seen.measured.any():
        return None, "nothing was measured so far"
    method = state.spec.method
    try:
        ranking = rank(
            seen,
            _largest(seen),
            state.target,
            method,
            evidence=evidence,
            otherwise=DEFAULT_METHOD,
            metric=None if state.spec.metric is None else METRICS[state.spec.metric],
            prefer=None if state.spec.prefer is None else state.spec.prefer.preference,
            costs=costs_by_name(state.costs),
        )
    except InputError as error:
        return None, str(error)
    left_out, warnings = tuple(_left_out(state, ranking).items()), (*_cautions(state, ranking), *ranking.warnings)
    return replace(ranking, left_out=left_out, warnings=warnings), ""


def _findings(ranking: Ranking | None) -> dict[str, Any]:
    """What methods add to the report in fields of their names, and why where they do not."""
    fields: dict[str, Any] = {}
    for name in (name for name, method in METHODS.items() if method.findings is not None):
        prediction = None if ranking is None else ({ranking.method: ranking.prediction} | ranking.baselines).get(name)
        findings = None if prediction is None or prediction.findings is None else prediction.findings()
        missing = "there is no ranking yet." if ranking is None else ranking.missing.get(name, "")
        fields |= {name: findings, f"{name}_missing": missing}
    return fields


def _cautions(state: StudyState, ranking: Ranking) -> list[str]:
    """Doubts about the first choice."""
    first, asked = ranking.table.models[ranking.choice], state.spec.method
    cautions, how = [], "comes first" if ranking.choice == ranking.order[0] else "is chosen"
    if asked != ranking.method:
        ours, theirs = text.method_title(ranking.method), text.method_title(asked)
        cautions.append(f"{ours} ranks, as {theirs} could not be fitted: {ranking.missing[asked]}")
    if first in state.failed:
        cautions.append(f"{first} {how}, and a run of it failed: {state.failed[first].error.rstrip('.')}.")
    if first in state.eliminated:
        cautions.append(f"{first} {how}, and was eliminated after {state.eliminated[first]:,} examples.")
    clear = next((entry.choice for entry in reversed(state.journal) if entry.stop), "")
    if state.ended_by == "rule" and clear not in ("", first):
        cautions.append(f"Measuring ended as {clear} was clearly first, and {first} {how} by what is known now.")
    if caution := steps_caution(state.results):
        cautions.append(caution)
    return cautions


def _eliminated(state: StudyState) -> Iterator[schema.Elimination]:
    for name, size in state.eliminated.items():
        when = next(entry for entry in reversed(state.journal) if name in entry.eliminated)
        yield schema.Elimination(model=name, after=size, probability_best=when.probability_best.get(name))


def _left_out(state: StudyState, ranking: Ranking) -> dict[str, str]:
    """Candidates that are not in the ranking, and why."""
    known, left = dict(ranking.left_out), {}
    for name in state.spec.names:
        if name not in ranking.table.models:
            failed = state.failed.get(name)
            refused = state.refused.get(name)
            otherwise = f"not measured, as {refused}" if refused else "nothing was measured yet"
            left[name] = f"failed: {failed.error}" if failed else known.get(name, otherwise)
    return left


def _ranked(ranking: Ranking) -> list[schema.Ranked]:
    rows = []
    for row, i in zip(records(ranking), ranking.order, strict=True):
        baselines = {name: row.pop(name) for name in ranking.baselines}
        law = {name: float(values[i]) for name, values in ranking.parameters.items()}
        rows.append(schema.Ranked.model_validate({**row, "baselines": baselines, "law": law}))
    return rows


def _candidate(state: StudyState, one: CandidateSpec, table: CurveTable | None) -> schema.CandidateState:
    """How far a candidate is."""
    name, losses, ineligible = one.name, {}, state.barred.get(one.name, "")
    results, cost = [result for result in state.results if result.model == name], state.costs.get(name)
    known, tests = next(iter(results), None), tested(results)
    if table is not None and name in table.models:
        place = table.models.index(name)
        row, ineligible = table.loss[place], table.ineligible[place]
        losses = {int(size): float(loss) for size, loss in zip(table.sizes, row, strict=True) if np.isfinite(loss)}
    states: tuple[tuple[schema.State, Container[str]], ...] = (
        ("failed", state.failed),
        ("eliminated", state.eliminated),
        ("refused", state.refused),
    )
    dropped = next((dropped for dropped, names in states if name in names), None)
    return schema.CandidateState(
        name=name,
        source=one.source,
        family=None if known is None else known.family,
        parameters=known.size if known is not None else cost.parameters if cost is not None else None,
        state=dropped or ("measured" if losses or tests else "waiting"),
        inference=cost,
        losses=losses,
        tests=tests,
        notes=tuple(dict.fromkeys(result.note for result in results if result.note)),
        ineligible=ineligible or None,
        writing=next((run.writing for run in state.results if run.model == name and run.writing), None),
        samples=next((run.samples for run in sorted(results, key=lambda run: -run.examples) if run.samples), ()),
    )


def _decision(state: StudyState, ranking: Ranking | None, why: str) -> schema.Decision:
    """The decision in a sentence, or how far the study is."""
    progress = state.progress
    final = progress.ended_by is not None
    if ranking is None:
        return schema.Decision(sentence=_undecided(state, why), model=None, final=final)
    names = [text.clean(ranking.table.models[i], 100) for i in ranking.choices]
    best, cheaper = ranking.choice, ranking.cheaper
    prediction, method = ranking.prediction, text.method_title(ranking.method)
    if prediction.is_loss:
        said = f"predicted {text.number(prediction.score[best])} {ranking.table.unit} at {ranking.target:,} examples"
        if prediction.lower is not None and prediction.upper is not None:
            ends = text.number(prediction.lower[best]), text.number(prediction.upper[best])
            said += f" (90 % interval {ends[0]} to {ends[1]})"
    else:
        said = f"{method} ranks it first of {len(names)} for {ranking.target:,} examples"
    if ranking.metric is not None:
        by = ranking.metric
        said = f"predicted {by.metric} {text.number(by.score[best])} at {ranking.target:,} examples"
        if by.lower is not None and by.upper is not None:
            said += f" (90 % interval {text.number(by.lower[best])} to {text.number(by.upper[best])})"
    if len(names) == 1:
        said += ", the only candidate that may be chosen"
    elif cheaper is not None and best != cheaper.best:
        said += f", within {cheaper.margin:g} of the best of {len(names)}"
        if cheaper.probability is not None:
            said += f" with probability {text.probability(cheaper.probability[best])}"
    elif ranking.probability_best is not None:
        said += f", best of {len(names)} with probability {text.probability(ranking.probability_best[best])}"
    other, place = (1, "second ") if best == ranking.choices[0] else (0, "the best, ")
    scores = prediction.score if ranking.metric is None else ranking.metric.score
    score = float(scores[ranking.choices[other]]) if len(names) > 1 else np.nan
    if np.isfinite(score):
        said += f"; {place}{names[other]}{',' * (not other)}"
        said += f" at {text.number(score)}" if prediction.is_loss else ""
    chosen = text.clean(ranking.table.models[best], 100)
    start = f"Fine-tune {chosen}: " if final else f"So far, fine-tune {chosen}: "
    if ranking.is_close:
        start = f"Too close to call: {chosen} leads, "
    left = "" if not progress.left else f", with {runs_and_measurements(progress.left)} left"
    sentence = f"{start}{said}{left}."
    reasons = (
        ranking.why,
        "" if ranking.untuned is None else gain_sentence(ranking.table, ranking.untuned, best),
    )
    return schema.Decision(
        sentence=sentence,
        model=ranking.table.models[best],
        because=tuple(filter(None, reasons)),
        more=_more(state, ranking) if final else "",
        final=final,
        close=ranking.is_close,
    )


def _undecided(state: StudyState, why: str) -> str:
    progress = state.progress
    start = "No decision" if progress.ended_by else "No decision yet"
    points = {(result.model, result.examples) for result in state.results if result.examples and result.loss}
    enough = sum(sizes >= 2 for sizes in Counter(model for model, _ in points).values())
    if state.results and enough < 2:
        why = f"a ranking needs two candidates measured at two sizes above 0, and there {_are(enough)} so far"
    sentence = f"{start}: {why.rstrip('.')}."
    if state.failed:
        sentence += f" Failed: {listing(list(state.failed))}; the report says why, and what to do."
    if progress.left:
        sentence += f" {runs_and_measurements(progress.left)} of {progress.left + progress.done} are left."
    return sentence


def _are(count: int) -> str:
    return "is 1" if count == 1 else f"are {count or 'none'}"


def runs_and_measurements(count: int) -> str:
    """A number of cells, in words that users know."""
    return "1 run or measurement" if count == 1 else f"{count:,} runs and measurements"


def _task(spec: StudySpec) -> str:
    """The task's name; where that is only the study's, what its rows are called."""
    named = spec.task.name if spec.task.name != spec.name else ""
    return named or spec.task.source.name or spec.task.name


def _more(state: StudyState, ranking: Ranking) -> str:
    """What would probably decide it and would take, where it is too close to call; else ""."""

    def seconds(point: Point) -> float | None:
        cost = run_cost(state, point.model, point.examples)
        return None if cost is None else cost.seconds

    found = decisive(ranking, seconds)
    if found is None or found.plan is None:
        return "" if found is None else found.why
    costs = [cost for run in found.plan.points if (cost := run_cost(state, *run)) is not None]
    took, hour = sum(one.seconds for one in costs), state.spec.price_per_hour
    money = "" if hour is None else f", {hour * took / 3600:,.2f} at the given price per hour"
    said = f"about {text.duration(took)}, {text.flops(sum(one.flops for one in costs))}{money}"
    budget = found.plan.points[0].examples
    return (
        f"{replace(found, cost=said).sentence} A budget of {budget} measures them, and the other candidates that are "
        "left."
    )


def _origin(state: StudyState) -> schema.Origin:
    results = state.results
    return schema.Origin(
        lensjax=tuple(sorted({result.lensjax for result in results})),
        jax=tuple(sorted({result.jax for result in results})),
        devices=tuple(sorted({f"{result.devices} × {result.device}" for result in results})),
        seeds=state.spec.seeds,
        data=tuple(sorted({result.origin for result in results} - {""})),
    )
