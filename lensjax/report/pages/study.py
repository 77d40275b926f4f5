"""A study as one self-contained HTML page: its decision and ranking, and all that was measured and spent on the way."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from lensjax.core import text
from lensjax.report.figures.curves import curves_figure
from lensjax.report.figures.figures import plot
from lensjax.report.figures.plots import figure_json
from lensjax.report.figures.study import Line, lines_figure, mark_phases
from lensjax.report.pages.html import Plot, render
from lensjax.report.pages.ranking import Name, ranking_context
from lensjax.selection.ranking import Ranking

if TYPE_CHECKING:
    from lensjax.study.schema import Amount, Interval, Spent, StudyReport

_ENDED = {
    "rule": "ended: the decision is clear",
    "budget": "ended: the budget is spent",
    "ladder": "ended: every rung is measured",
}
_KINDS = {
    "finetune": "Fine-tuning",
    "learning_rates": "Choice of learning rates",
    "ntk": "Kernel",
    "hessian": "Hessian",
    "weights": "Weight metrics",
}
_SEEN_IN = {"bound": "the bound’s terms", "losses": "test losses (AtS)"}
_FLAT = 1e-12  # of F(0): what is below is rounding


@dataclass(frozen=True)
class Table:
    """A table of candidates: what it is called, its columns but the first, and for each row a name and values.

    Attributes:
      words: Columns of sentences, which break over lines.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[Name, Sequence[str]]]
    words: Sequence[str] = ()


def render_study(report: "StudyReport", ranking: Ranking | None) -> str:
    """The report as one HTML page that needs no network.

    Names, errors, and decisions may hold any text; it is escaped, see `lensjax.report.pages.html.render`.

    Args:
      report: What was found.
      ranking: The ranking that it holds, where it holds one.
    """
    # Without a ranking only what frames it is shown, of which these are the parts.
    shown: dict[str, Any] = {"compared": [], "assumptions": [], "has_curves": False}
    if ranking is not None:
        shown = ranking_context(ranking)
        begins = {phase.model: phase.begins for phase in report.phases if phase.begins is not None}
        figure = mark_phases(curves_figure(ranking), ranking, begins)
        shown["curves"] = replace(shown["curves"], json=Markup(figure_json(figure)))
    return render("study.html.j2", shown | _context(report))


def _context(report: "StudyReport") -> dict[str, Any]:
    return {
        "study": text.clean(report.study, 100),
        "task": text.clean(report.task),
        "is_ranked": bool(report.ranking),
        "chosen_name": None if report.decision.model is None else Name.of(report.decision.model),
        "decision": _lead(report),
        "final": report.decision.final,
        "study_facts": _facts(report),
        "warnings": [text.clean(sentence) for sentence in report.warnings],
        "so_far": _so_far(report),
        "ringed": any(phase.begins is not None for phase in report.phases),
        "phases": _phases(report),
        "terms_plot": _terms_plot(report),
        "kernel_plots": _kernel_plots(report),
        "kernels": _kernels(report),
        "lensllm": _lensllm(report),
        "lensllm_missing": text.clean(report.lensllm_missing),
        "cost": _cost_table(report),
        "cost_notes": _cost_notes(report),
        "failures": [
            (text.clean(failure.cell), text.clean(failure.error), text.clean(failure.mend))
            for failure in report.failures
        ],
        "eliminated": [(Name.of(one.model), one.after) for one in report.eliminated],
        "journal": [(text.clean(entry.time[:16]), text.clean(entry.decision)) for entry in report.journal],
        "origin": _origin(report),
        "left_out": [(Name.of(model), text.clean(why)) for model, why in report.left_out.items()],
    }


def _lead(report: "StudyReport") -> str:
    """The decision, without the words that the heading says already."""
    decision = report.decision
    sentence = text.clean(decision.sentence)
    for heading in (f"ine-tune {text.clean(decision.model, 100)}: ", "No decision yet: ", "No decision: "):
        if rest := sentence.partition(heading)[2]:
            return rest[:1].upper() + rest[1:]
    return sentence


def _facts(report: "StudyReport") -> list[tuple[str, str]]:
    progress, cost = report.progress, report.cost
    done = f"{progress.done:,} cell{'s' if progress.done != 1 else ''} done"
    if progress.ended_by is not None:
        done += f"; {_ENDED[progress.ended_by]}"
    elif progress.left is not None:
        done += f", {progress.left:,} left"
    states = [candidate.state for candidate in report.candidates]
    dropped = (f"{states.count(state)} {state}" for state in ("eliminated", "failed") if state in states)
    spent = _amount(cost.total)
    if cost.full_tuning is not None and cost.full_tuning.flops:
        spent += f", {text.share(cost.total.flops / cost.full_tuning.flops)} of FullTuning"
    return [
        ("Measured", f"up to {text.count(report.budget)} examples" if report.budget else "nothing yet"),
        ("Target", f"{text.count(report.target)} examples"),
        ("Candidates", ", ".join([f"{len(report.ranking)} ranked", *dropped])),
        ("Method", text.method_title(report.method)),
        ("Progress", done),
        ("Cost", spent),
    ]


def _so_far(report: "StudyReport") -> Table:
    """What there is before there is a ranking."""
    sizes = sorted({size for candidate in report.candidates for size in candidate.losses})
    rows = [
        (Name.of(one.name), [one.state, *(text.number(one.losses.get(size, float("nan"))) for size in sizes)])
        for one in report.candidates
    ]
    return Table("Test losses so far", ["State", *map(text.count, sizes)], rows)


def _in_order(report: "StudyReport", models: Sequence[str]) -> list[str]:
    """Models as they are ranked, so that colours of figures agree; those in no ranking last."""
    places = {row.model: row.rank for row in report.ranking}
    return sorted(models, key=lambda model: places.get(model, len(places) + 1))


def _phases(report: "StudyReport") -> Table | None:
    """Where phases begin, beside the terms of the bound where these were measured."""
    terms = {one.model: one for one in reversed(report.bound_terms)}
    seen = {one.model: one for one in report.phases}
    rows = []
    for model in _in_order(report, list(dict.fromkeys([*seen, *terms]))):
        phase, term = seen.get(model), terms.get(model)
        begins = "" if phase is None or phase.begins is None else f"{text.count(phase.begins)} examples"
        if begins and term is not None and term.transition is not None:
            begins += f" (fit: {term.transition:,.0f})"
        row = [begins or text.DASH, "" if phase is None else _SEEN_IN[phase.seen_in]]
        if terms:
            row += ["", ""] if term is None else [text.significant(term.sum_of_largest[-1], 3), _interval(term.beta2)]
        note = phase.note if phase is not None and phase.note else term.note if term is not None else ""
        rows.append((Name.of(model), [*row, text.clean(note)]))
    columns = ["Power phase from", "Seen in", *(["Σ Hᵢ, last rung", "β₂, 90 % interval"] if terms else []), "Note"]
    return Table("Phases of candidates", columns, rows, words=("Note",)) if rows else None


def _terms_plot(report: "StudyReport") -> Plot | None:
    if not report.bound_terms:
        return None
    several = len({one.seed for one in report.bound_terms}) > 1
    lines: list[Line] = []
    for model in _in_order(report, list(dict.fromkeys(one.model for one in report.bound_terms))):
        for one in (one for one in report.bound_terms if one.model == model):
            name = f"{model}, seed {one.seed}" if several else model
            lines.append((name, one.examples, one.sum_of_largest))
    one = report.bound_terms[0]
    note = (
        f"Σ Hᵢ over layers at every rung, the largest of {one.measured_on:,} training examples, "
        f"{'rows of blocks as in one product' if one.block == 'joint' else 'layers’ own blocks'}."
    )
    return plot("terms", "Hessian terms", lines_figure("training examples", "Σ Hᵢ", lines, ladder=True), note)


def _kernel_plots(report: "StudyReport") -> list[Plot]:
    if not report.kernels:
        return []
    kernels = {one.model: one for one in report.kernels}
    ordered = [kernels[model] for model in _in_order(report, list(kernels))]
    spectra: list[Line] = [(one.model, range(1, len(one.eigenvalues) + 1), one.eigenvalues) for one in ordered]
    residuals: list[Line] = []
    for one in ordered:
        pairs = [
            (t, f) for t, f in zip(one.times, one.residuals, strict=True) if f > _FLAT * max(one.residuals, default=0)
        ]
        residuals.append((one.model, [t for t, _ in pairs], [f for _, f in pairs]))
    drifts: list[Line] = [
        (one.model, one.examples, one.drift)
        for model in ordered
        for one in report.kernel_drifts
        if one.model == model.model
    ]
    plots = [
        plot(
            "spectra",
            "NTK spectra",
            lines_figure("rank", "eigenvalue of Θ / N", spectra),
            "Eigenvalues of Θ / N at the pretrained weights, largest first.",
        ),
        plot(
            "residuals",
            "Residuals F(Θ, t)",
            lines_figure("η t", "F(Θ, t)", residuals),
            "Squared error per example that linearised training has left after a time t.",
        ),
    ]
    if drifts:
        figure = lines_figure("training examples", "1 − cos of kernels", drifts, ladder=True)
        note = "1 − cos between the kernel before and after fine-tuning: 0 where only its scale changes."
        plots.append(plot("drifts", "Drift of kernels", figure, note))
    return plots


def _kernels(report: "StudyReport") -> Table | None:
    kernels = {one.model: one for one in report.kernels}
    drifts = {one.model: one for one in report.kernel_drifts}
    rows = []
    for model in _in_order(report, list(kernels)):
        one, drift = kernels[model], drifts.get(model)
        aligned = text.DASH if one.target_alignment is None else f"{one.target_alignment:.3f}"
        start = text.significant(one.residuals[0]) if one.residuals else text.DASH
        moved = [text.DASH] * 2 if drift is None else [f"{drift.drift[-1]:.3f}", text.significant(drift.growth[-1], 3)]
        values = [f"{one.effective_rank:.1f} of {one.size:,}", aligned, _first(one.eigenvalues), start]
        rows.append((Name.of(model), values + (moved if drifts else [])))
    after = ["Drift, last rung", "Growth of its trace"] if drifts else []
    columns = ["Effective rank", "Alignment", "Largest eigenvalue", "F(Θ, 0)", *after]
    return Table("Kernels of candidates", columns, rows) if rows else None


def _lensllm(report: "StudyReport") -> dict[str, Any] | None:
    found = report.lensllm
    if found is None:
        return None
    rows = []
    for one in found.ablation:
        best = min(one.predicted, key=lambda model: one.predicted[model])
        held = text.DASH if one.held_out is None else f"{one.held_out:.3f}"
        values = [held, f"{one.evidence:.2f}", f"{text.clean(best, 60)} ({text.number(one.predicted[best])})"]
        rows.append((Name.of(one.variant), [*values, text.clean(one.meaning)]))
    columns = ["Held-out log density", "Log evidence", "First choice", "What it holds"]
    table = Table("Variants of the LensLLM law", columns, rows, words=("What it holds", "First choice"))
    shared = [("a", found.a), ("b", found.b), ("t", found.time)]
    return {
        "verdict": text.clean(found.verdict),
        "shared": [(name, _interval(value)) for name, value in shared if value is not None],
        "table": table,
    }


def _cost_table(report: "StudyReport") -> Table | None:
    kinds = [kind for kind in _KINDS if any(one.kind == kind for one in report.cost.spent)]
    rows = []
    for candidate in report.candidates:
        took: dict[str, Spent] = {one.kind: one for one in report.cost.spent if one.model == candidate.name}
        if took:
            values = [
                " · ".join(filter(None, (text.duration(one.seconds), text.flops(one.flops))))
                if (one := took.get(kind))
                else ""
                for kind in kinds
            ]
            rows.append((Name.of(candidate.name), values))
    return Table("What was spent on candidates", [_KINDS[kind] for kind in kinds], rows) if rows else None


def _cost_notes(report: "StudyReport") -> list[str]:
    """What was spent and saved, in sentences."""
    cost, full = report.cost, report.cost.full_tuning
    notes = [f"The study {'took' if report.progress.ended_by else 'has taken'} {_amount(cost.total)}."]
    if full is not None and full.flops and full.seconds:
        without = [text.clean(one.name, 60) for one in report.candidates if one.name not in cost.full_tuning_of]
        but = f" but {', '.join(without)}, of which every run failed," if without else ""
        notes += [
            f"FullTuning, every candidate{but} on {report.target:,} examples with every seed, would take "
            f"{_amount(full)}, in proportion to each one’s largest run.",
            f"The study took {_share(cost.total.flops / full.flops)} those FLOPs, and "
            f"{_share(cost.total.seconds / full.seconds)} that time, in which programs are compiled too.",
        ]
    if cost.skipped_flops:
        notes.append(
            f"Elimination and early stopping spared {text.flops(cost.skipped_flops)} of the "
            f"{text.flops(cost.ladder_flops)} of the whole ladder, "
            f"{text.share(cost.skipped_flops / cost.ladder_flops)}."
        )
    if any(one.kind == "weights" for one in cost.spent):
        notes.append("FLOPs of weight metrics are not counted; their time is.")
    return [*notes, text.clean(cost.energy)]


def _origin(report: "StudyReport") -> list[tuple[str, str]]:
    origin = report.origin
    pairs = [
        ("measured with", ", ".join([*(f"LensJAX {v}" for v in origin.lensjax), *(f"jax {v}" for v in origin.jax)])),
        ("devices", ", ".join(origin.devices)),
        ("seeds", ", ".join(map(str, origin.seeds))),
    ]
    return [(name, text.clean(value)) for name, value in pairs if value]


def _interval(found: "Interval | None") -> str:
    if found is None:
        return text.DASH
    value, lower, upper = (text.significant(one, 3) for one in (found.value, found.lower, found.upper))
    return f"{value} ({lower} to {upper})"


def _first(values: Sequence[float]) -> str:
    return text.significant(values[0]) if values else text.DASH


def _amount(amount: "Amount") -> str:
    parts = [text.flops(amount.flops), text.duration(amount.seconds)]
    if amount.kwh is not None:
        parts.append(f"about {amount.kwh:.2g} kWh")
    return ", ".join(filter(None, parts)) or "nothing"


def _share(share: float) -> str:
    return f"{text.share(share)} of" if share < 2 else f"{share:,.3g} times"
