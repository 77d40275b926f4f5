"""LensLLM (arXiv 2505.03793): its law with the kernels' residuals, see `lensjax.fit.lensllm.fitting`."""

from functools import partial

from lensjax.core import text
from lensjax.core.errors import InputError
from lensjax.core.sections import DataTable, Section
from lensjax.core.specs import Interval, Strict
from lensjax.curves.table import CurveTable
from lensjax.fit.calibration import FEWEST
from lensjax.fit.lensllm.fitting import VARIANTS, CredibleInterval, LensLLMPosterior, Variant, fit_lensllm
from lensjax.fit.residuals import Residuals, stack_residuals
from lensjax.selection.ablation import compare_variants
from lensjax.selection.evidence import Evidence
from lensjax.selection.methods import register
from lensjax.selection.prediction import Prediction, predict_from

NTK = "ntk"
ASSUMPTIONS = (
    "All models were fitted at once: L = B / (D_l + D^β) + E with log D_l = a + b log F(Θ, t) + ε, where F is what "
    "linearised training at the pretrained weights has left of the squared error after a time t. All share a, b and t, "
    "and a population of B, β and E.",
    "Noise is Student-t with 3 degrees of freedom; intervals include that of a run that has not happened yet. The "
    "pretrained loss (D = 0) is not used.",
)
MEANING: dict[Variant, str] = {
    "tied": "log D_l = a + b log F(Θ, t) + ε, all learned",
    "published": "D_l = F(Θ, t), as in the paper, with one t for all",
    "hierarchical": "b = 0: a population of D_l, and kernels say nothing",
    "free": "D_l of each candidate by itself",
}


class Ablation(Strict):
    """One variant of the LensLLM law.

    Attributes:
      variant: Its name.
      meaning: In words.
      evidence: Log marginal likelihood of the measured losses, in nats.
      held_out: Mean log predictive density of the largest rung given the smaller ones, in nats a model.
      predicted: Losses at the target by candidate.
    """

    variant: str
    meaning: str
    evidence: float
    held_out: float | None
    predicted: dict[str, float]


class LensLLMFindings(Strict):
    """The fit of the LensLLM law and its ablation: log D_l = a + b log F(Θ, t) + ε.

    Attributes:
      a, b, time: Parameters that all candidates share in the tied variant.
      ablation: Every variant.
      verdict: Whether the kernels helped here.
      unit: That of predicted losses, in words.
    """

    a: Interval
    b: Interval
    time: Interval | None
    ablation: tuple[Ablation, ...]
    verdict: str
    unit: str = ""


def show(fit: LensLLMFindings | None, missing: str) -> Section:
    """The section of a study's page."""
    title = "LensLLM, and whether the kernels helped"
    if fit is None:
        return Section("lensllm", title, [f"Not fitted: {missing}"])
    rows = []
    for one in fit.ablation:
        best = min(one.predicted, key=lambda model: one.predicted[model])
        held = text.DASH if one.held_out is None else f"{one.held_out:.3f}"
        values = [held, f"{one.evidence:.2f}", f"{text.clean(best, 60)} ({text.number(one.predicted[best])})"]
        rows.append((one.variant, [*values, one.meaning]))
    first = f"First choice (predicted, {fit.unit})" if fit.unit else "First choice"
    columns = ["Held-out log density", "Log evidence", first, "What it holds"]
    table = DataTable("Variants of the LensLLM law", columns, rows, words=("What it holds", "First choice"))
    shared = [("a", fit.a), ("b", fit.b), ("t", fit.time)]
    law = (
        "L(D) = B / (D_l + D^β) + E with log D_l = a + b log F(Θ, t) + ε, fitted to all candidates at once. Shared, "
        f"with 90 % intervals: {', '.join(f'{name} {value}' for name, value in shared if value is not None)}."
    )
    return Section("lensllm", title, [fit.verdict, law], tables=[table])


@register(
    "lensllm",
    "LensLLM's law with the NTK's residuals",
    place=9,
    needs={NTK: "kernels"},
    findings=LensLLMFindings,
    show=show,
)
def lensllm(table: CurveTable, target: int, evidence: Evidence) -> Prediction:
    """Fits the models with two sizes above 0; two of them at least need a kernel."""
    fitted = table.select(table.points() >= FEWEST)
    residuals = stack_residuals(evidence.of(NTK, fitted.models))
    posterior = fit_lensllm(fitted, target, residuals)
    findings = partial(_findings, posterior, fitted, target, residuals)
    return predict_from(posterior, target, table, assumptions=ASSUMPTIONS, findings=findings)


def _findings(tied: LensLLMPosterior, table: CurveTable, target: int, residuals: Residuals) -> LensLLMFindings:
    """The shared numbers learned with the kernels, and all variants of the law side by side."""
    try:
        comparison = compare_variants(table, target, residuals)
        held_out = {variant: float(density[0]) for variant, (density, _) in comparison.scores.items()}
        verdict = comparison.verdict
    except InputError as error:
        held_out, verdict = {}, f"Whether the NTK term helped cannot be told yet: {error}"
    fits = {name: tied if name == tied.variant else fit_lensllm(table, target, residuals, name) for name in VARIANTS}
    ablation = tuple(
        Ablation(
            variant=variant,
            meaning=MEANING[variant],
            evidence=fit.evidence,
            held_out=held_out.get(variant),
            predicted=dict(zip(fit.models, fit.predict(target).loss[:, 0].tolist(), strict=True)),
        )
        for variant, fit in fits.items()
    )
    time = None if tied.time is None else _interval(tied.time)
    a, b = _interval(tied.a), _interval(tied.b)
    return LensLLMFindings(a=a, b=b, time=time, ablation=ablation, verdict=verdict, unit=table.unit.name)


def _interval(of: CredibleInterval) -> Interval:
    return Interval(value=float(of.value), lower=float(of.lower), upper=float(of.upper))
