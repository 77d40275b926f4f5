"""What was measured of a study's candidates besides their losses, as sections of its page."""

from collections.abc import Sequence

from lensjax.core import text
from lensjax.core.sections import DataTable, Line, LinePlot, Section
from lensjax.study.schema import Interval, StudyReport

_PHASES = (
    "LensLLM divides a fine-tuning curve into a pre-power phase, in which the n^(−3/4) term of the PAC-Bayes bound "
    "rules, and a power phase, in which the Hessian’s does. Where the bound’s terms were measured on three rungs or "
    "more, Σ Hᵢ ≈ C₂ n^(−β₂) is fitted to them and they say which rules; elsewhere it is where AtS sees the line of "
    "log loss begin."
)
_KERNELS = (
    "The exact neural tangent kernel Θ of every candidate before fine-tuning, on the same training examples. Effective "
    "rank is the exponential of the spectrum’s entropy; alignment is the cosine between Θ and the outer product of the "
    "residual."
)
_SEEN_IN = {"bound": "the bound’s terms", "losses": "test losses (AtS)"}
_FLAT = 1e-12  # of F(0): what is below is rounding


def sections(report: StudyReport) -> list[Section]:
    """Sections on phases and kernels, where these were measured."""
    found = []
    if report.phases or report.bound_terms:
        found.append(Section("phases", "Phases", [_PHASES], _terms(report), [_phases(report)]))
    if report.kernels:
        found.append(Section("kernels", "Kernels", [_KERNELS], _kernel_plots(report), [_kernels(report)]))
    return found


def interval(value: Interval | None) -> str:
    """A number and its 90 % interval."""
    if value is None:
        return text.DASH
    middle, lower, upper = (text.significant(one, 3) for one in (value.value, value.lower, value.upper))
    return f"{middle} ({lower} to {upper})"


def _phases(report: StudyReport) -> DataTable:
    """Where phases begin, beside the terms of the bound where these were measured."""
    terms = {one.model: one for one in reversed(report.bound_terms)}
    seen = {one.model: one for one in report.phases}
    rows = []
    for model in dict.fromkeys([*seen, *terms]):
        phase, term = seen.get(model), terms.get(model)
        begins = "" if phase is None or phase.begins is None else f"{text.count(phase.begins)} examples"
        if begins and term is not None and term.transition is not None:
            begins += f" (fit: {term.transition:,.0f})"
        row = [begins or text.DASH, "" if phase is None else _SEEN_IN[phase.seen_in]]
        if terms:
            row += ["", ""] if term is None else [text.significant(term.sum_of_largest[-1], 3), interval(term.beta2)]
        note = phase.note if phase is not None and phase.note else term.note if term is not None else ""
        rows.append((model, [*row, note]))
    columns = ["Power phase from", "Seen in", *(["Σ Hᵢ, last rung", "β₂, 90 % interval"] if terms else []), "Note"]
    return DataTable("Phases of candidates", columns, rows, words=("Note",))


def _terms(report: StudyReport) -> list[LinePlot]:
    if not report.bound_terms:
        return []
    several = len({one.seed for one in report.bound_terms}) > 1
    lines = [
        Line(
            f"{one.model}, seed {one.seed}" if several else one.model,
            one.examples,
            one.sum_of_largest,
            model=one.model,
        )
        for one in report.bound_terms
    ]
    one = report.bound_terms[0]
    note = (
        f"Σ Hᵢ over layers at every rung, the largest of {one.measured_on:,} training examples, "
        f"{'rows of blocks as in one product' if one.block == 'joint' else 'layers’ own blocks'}."
    )
    return [LinePlot("terms", "Hessian terms", "training examples", "Σ Hᵢ", lines, note, ladder=True)]


def _kernel_plots(report: StudyReport) -> list[LinePlot]:
    kernels = {one.model: one for one in report.kernels}
    spectra = [Line(name, range(1, len(one.eigenvalues) + 1), one.eigenvalues) for name, one in kernels.items()]
    residuals = []
    for name, one in kernels.items():
        least = _FLAT * max(one.residuals, default=0)
        points = [(t, f) for t, f in zip(one.times, one.residuals, strict=True) if f > least]
        residuals.append(Line(name, [t for t, _ in points], [f for _, f in points]))
    drifts = [Line(one.model, one.examples, one.drift) for one in report.kernel_drifts if one.model in kernels]
    plots = [
        LinePlot(
            "spectra",
            "NTK spectra",
            "rank",
            "eigenvalue of Θ / N",
            spectra,
            "Eigenvalues of Θ / N at the pretrained weights, largest first.",
        ),
        LinePlot(
            "residuals",
            "Residuals F(Θ, t)",
            "η t",
            "F(Θ, t)",
            residuals,
            "Squared error per example that linearised training has left after a time t.",
        ),
    ]
    if drifts:
        note = "1 − cos between the kernel before and after fine-tuning: 0 where only its scale changes."
        x, y = "training examples", "1 − cos of kernels"
        plots.append(LinePlot("drifts", "Drift of kernels", x, y, drifts, note, ladder=True))
    return plots


def _kernels(report: StudyReport) -> DataTable:
    kernels = {one.model: one for one in report.kernels}
    drifts = {one.model: one for one in report.kernel_drifts}
    rows = []
    for model, one in kernels.items():
        drift = drifts.get(model)
        aligned = text.DASH if one.target_alignment is None else f"{one.target_alignment:.3f}"
        moved = [text.DASH] * 2 if drift is None else [f"{drift.drift[-1]:.3f}", text.significant(drift.growth[-1], 3)]
        values = [f"{one.effective_rank:.1f} of {one.size:,}", aligned, _first(one.eigenvalues), _first(one.residuals)]
        rows.append((model, values + (moved if drifts else [])))
    after = ["Drift, last rung", "Growth of its trace"] if drifts else []
    columns = ["Effective rank", "Alignment", "Largest eigenvalue", "F(Θ, 0)", *after]
    return DataTable("Kernels of candidates", columns, rows)


def _first(values: Sequence[float]) -> str:
    return text.significant(values[0]) if values else text.DASH
