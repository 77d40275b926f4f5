"""Whether the NTK term of the LensLLM law helps: its variants predict the largest measured sizes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from lensjax.core.errors import InputError
from lensjax.curves.table import CurveTable
from lensjax.fit.calibration import FEWEST, hold_out
from lensjax.fit.lensllm.fitting import VARIANTS, Variant, fit_lensllm
from lensjax.fit.residuals import Residuals

STEPS = (1, 2)  # held-out sizes of each model; the largest of them is predicted
SURE = 0.95  # one-sided confidence in a difference, from which on it is called one


@dataclass(frozen=True)
class Comparison:
    """How well each variant predicts the largest measured size of M models from smaller ones.

    Attributes:
      models: M names.
      log_density: by variant, log predictive density of each measured log loss in nats, one step and two steps ahead;
        NaN for a model with too few sizes.
      log_error: by variant, log of the predicted loss over the measured one, likewise.
      evidence: by variant, log marginal likelihood of all but the largest sizes, in nats. It may differ where
        predictions do not yet.
    """

    models: tuple[str, ...]
    log_density: dict[Variant, Float[np.ndarray, "M 2"]]
    log_error: dict[Variant, Float[np.ndarray, "M 2"]]
    evidence: dict[Variant, float]

    @property
    def scores(self) -> dict[Variant, tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]]:
        """Mean log predictive density and log-RMSE over models by variant, one and two steps ahead."""
        return {
            variant: (_mean(density), np.sqrt(_mean(self.log_error[variant] ** 2)))
            for variant, density in self.log_density.items()
        }

    @property
    def difference(self) -> tuple[float, float]:
        """Gain in log density of a model's held-out loss by the NTK term, tied less hierarchical, in nats.

        Returns:
          Mean and standard error over models; the latter is NaN for one model, and a little small where models err
          together, as they were fitted together.
        """
        gained = self.log_density["tied"] - self.log_density["hierarchical"]
        each = _mean(gained[np.isfinite(gained).any(axis=1)].T)
        error = float(each.std(ddof=1) / np.sqrt(len(each))) if len(each) > 1 else float("nan")
        return float(each.mean()), error

    @property
    def verdict(self) -> str:
        """Whether the NTK term helped, in one sentence; Student's t over models, one-sided at 95 %."""
        mean, error = self.difference
        count = int(np.isfinite(self.log_density["tied"]).any(axis=1).sum())
        if count < 2:
            return "Whether the NTK term helped cannot be told from one model's held-out losses."
        sure = abs(mean) > stdtrit(count - 1, SURE) * error
        effect = ("helped" if mean > 0 else "hurt") if sure else "made no difference"
        return (
            f"The NTK term {effect} here: it changed the log density of a held-out loss by {mean:+.2f} ± {error:.2f} "
            f"nats (mean and standard error over {count} models)."
        )


def compare_variants(
    table: CurveTable, horizon: int, residuals: Residuals, variants: Sequence[Variant] = VARIANTS
) -> Comparison:
    """Score variants of the LensLLM law by leaving out the largest sizes of every model.

    Each variant is fitted without the largest size of each model, and without the two largest, and predicts the
    largest. A model with too few points keeps them all and is not scored.

    Args:
      table: measured curves of M models with at least two sizes D > 0 each.
      horizon, residuals: see `lensjax.fit.lensllm.fitting.fit_lensllm`.
      variants: those to compare.

    Returns:
      Scores of every variant, one and two steps ahead.

    Raises:
      InputError: no model has three sizes, or see `fit_lensllm`.
    """
    if not (table.points() > FEWEST).any():
        raise InputError("To hold out the largest size, a model needs three sizes above 0; measure another.")
    held = [hold_out(table, steps) for steps in STEPS]
    nothing = np.full((len(table.models), len(STEPS)), np.nan)
    log_density: dict[Variant, np.ndarray] = {variant: nothing.copy() for variant in variants}
    log_error: dict[Variant, np.ndarray] = {variant: nothing.copy() for variant in variants}
    evidence: dict[Variant, float] = {}
    for step, (seen, last) in enumerate(held):
        scored = last.measured.any(axis=1)
        if not scored.any():
            continue
        column = np.argmax(last.measured, axis=1)[scored]
        for variant in variants:
            posterior = fit_lensllm(seen, horizon, residuals, variant)
            evidence.setdefault(variant, posterior.evidence)
            density, predicted = posterior.log_density(last), posterior.predict(last.sizes[column]).loss[scored]
            log_density[variant][scored, step] = density[scored, column]
            log_error[variant][scored, step] = np.log(np.diagonal(predicted) / last.loss[scored, column])
    return Comparison(table.models, log_density, log_error, evidence)


def _mean(values: Float[np.ndarray, "M ..."]) -> Float[np.ndarray, "..."]:
    """Mean over the models that have a value; NaN where none has."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = np.where(known, values, 0.0).sum(axis=0) / known.sum(axis=0)
    return mean
