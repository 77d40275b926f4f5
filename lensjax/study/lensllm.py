"""The LensLLM method on a study's candidates: its law, its ablation, and the ranking that it gives."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from lensjax.core.errors import InputError
from lensjax.curves.table import CurveTable
from lensjax.fit.lensllm.fitting import VARIANTS, Estimate, LensLLMPosterior, Variant, fit_lensllm
from lensjax.fit.residuals import stack_residuals
from lensjax.selection.ablation import compare_variants
from lensjax.selection.methods import Prediction
from lensjax.selection.ranking import Curves, Ranking, find_warnings
from lensjax.study import schema
from lensjax.study.evidence import Modes
from lensjax.study.spec import LENSLLM

_MEANING: dict[Variant, str] = {
    "tied": "log D_l = a + b log F(Θ, t) + ε, all learned",
    "published": "D_l = F(Θ, t), as in the paper, with one t for all",
    "hierarchical": "b = 0: a population of D_l, and kernels say nothing",
    "free": "D_l of each candidate by itself",
}


@dataclass(frozen=True)
class LensLLMFit:
    """What was learned, with the kernels (tied), and what a report says of it."""

    posterior: LensLLMPosterior
    told: schema.LensLLM


def lensllm_prediction(posterior: LensLLMPosterior, target: int) -> Prediction:
    """Losses at the target, with their 90 % intervals."""
    losses = posterior.predict(target)
    return Prediction(losses.loss[:, 0], lower=losses.lower[:, 0], upper=losses.upper[:, 0])


def fit_study(table: CurveTable, target: int, modes: Mapping[str, Modes]) -> LensLLMFit:
    """Fit all variants of the law to candidates with two sizes above 0, and compare them.

    Args:
      table: Their curves.
      target: In examples.
      modes: Of residuals, by candidate; see `lensjax.study.evidence.kernels`.

    Raises:
      InputError: fewer than two of them have a kernel, or they cannot be fitted.
    """
    residuals = stack_residuals([modes.get(model) for model in table.models])
    fits = {variant: fit_lensllm(table, target, residuals, variant) for variant in VARIANTS}
    try:
        comparison = compare_variants(table, target, residuals)
        held_out = {variant: float(density[0]) for variant, (density, _) in comparison.scores.items()}
        verdict = comparison.verdict
    except InputError as error:
        held_out, verdict = {}, f"Whether the NTK term helped cannot be told yet: {error}"
    tied = fits["tied"]
    ablation = tuple(
        schema.Ablation(
            variant=variant,
            meaning=_MEANING[variant],
            evidence=fit.evidence,
            held_out=held_out.get(variant),
            predicted=dict(zip(fit.models, fit.predict(target).loss[:, 0].tolist(), strict=True)),
        )
        for variant, fit in fits.items()
    )
    time = None if tied.time is None else _interval(tied.time)
    told = schema.LensLLM(a=_interval(tied.a), b=_interval(tied.b), time=time, ablation=ablation, verdict=verdict)
    return LensLLMFit(tied, told)


def ranked_by(fit: LensLLMFit, ranking: Ranking) -> Ranking:
    """A ranking by the joint fit as one by LensLLM, with the joint fit among the baselines."""
    posterior, target, prediction = fit.posterior, ranking.target, lensllm_prediction(fit.posterior, ranking.target)
    sizes = np.unique(np.geomspace(posterior.unit, target, 30).round().astype(np.int64))
    losses = posterior.predict(sizes)
    ranking = replace(
        ranking,
        method=LENSLLM,
        prediction=prediction,
        order=np.argsort(prediction.score, kind="stable"),
        baselines=ranking.baselines | {ranking.method: ranking.prediction},
        probability_best=posterior.probability_best(target),
        expected_regret=posterior.expected_regret(target),
        curves=Curves(sizes, losses.loss, losses.lower, losses.upper),
        parameters={name: np.asarray(found.value) for name, found in posterior.parameters.items()},
        assumptions=(
            *ranking.assumptions[:2],
            "All models were fitted at once: L = B / (D_l + D^β) + E with log D_l = a + b log F(Θ, t) + ε, where F is "
            "what linearised training at the pretrained weights has left of the squared error after a time t. All "
            "share a, b and t, and a population of B, β and E.",
            "Noise is Student-t with 3 degrees of freedom; intervals include that of a run that has not happened yet. "
            "The pretrained loss (D = 0) is not used.",
        ),
    )
    return replace(ranking, warnings=find_warnings(ranking, ranking.table.up_to(ranking.budget)))


def _interval(found: Estimate) -> schema.Interval:
    return schema.Interval(value=float(found.value), lower=float(found.lower), upper=float(found.upper))
