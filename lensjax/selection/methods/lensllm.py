"""LensLLM (arXiv 2505.03793): its law with the kernels' residuals, see `lensjax.fit.lensllm.fitting`."""

from functools import partial
from typing import Any

from lensjax.core.errors import InputError
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


@register("lensllm", "LensLLM's law with the NTK's residuals", place=9, needs={NTK: "kernels"})
def lensllm(table: CurveTable, target: int, evidence: Evidence) -> Prediction:
    """Fits the models with two sizes above 0; two of them at least need a kernel."""
    fitted = table.select(table.points() >= FEWEST)
    residuals = stack_residuals(evidence.of(NTK, fitted.models))
    posterior = fit_lensllm(fitted, target, residuals)
    section = partial(_section, posterior, fitted, target, residuals)
    return predict_from(posterior, target, table, assumptions=ASSUMPTIONS, section=section)


def _section(tied: LensLLMPosterior, table: CurveTable, target: int, residuals: Residuals) -> dict[str, Any]:
    """The shared numbers learned with the kernels, and all variants of the law side by side."""
    try:
        comparison = compare_variants(table, target, residuals)
        held_out = {variant: float(density[0]) for variant, (density, _) in comparison.scores.items()}
        verdict = comparison.verdict
    except InputError as error:
        held_out, verdict = {}, f"Whether the NTK term helped cannot be told yet: {error}"
    fits = {name: tied if name == tied.variant else fit_lensllm(table, target, residuals, name) for name in VARIANTS}
    ablation = [
        {
            "variant": variant,
            "meaning": MEANING[variant],
            "evidence": fit.evidence,
            "held_out": held_out.get(variant),
            "predicted": dict(zip(fit.models, fit.predict(target).loss[:, 0].tolist(), strict=True)),
        }
        for variant, fit in fits.items()
    ]
    time = None if tied.time is None else _numbers(tied.time)
    return {"a": _numbers(tied.a), "b": _numbers(tied.b), "time": time, "ablation": ablation, "verdict": verdict}


def _numbers(interval: CredibleInterval) -> dict[str, float]:
    return {name: float(value) for name, value in interval._asdict().items()}
