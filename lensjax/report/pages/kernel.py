"""A kernel as one self-contained HTML page: its spectrum, and the residual of linearised training."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from lensjax.report.figures.figures import log_log, plot, render_figures

if TYPE_CHECKING:
    from lensjax.measure.kernel import Kernel

_WHAT = {
    "loss": "Of the loss of each example",
    "target_logprob": "Of the log-probabilities of target tokens, summed over them,",
    "label_logits": "Of the logits of the tokens that targets begin with",
    "fisher_sketch": "Of random projections of the logits (an estimate of the Fisher-weighted kernel)",
}


def render_kernel(kernel: "Kernel", summary: Mapping[str, Any]) -> str:
    """The page; `summary` holds task, model, examples and what else is to be shown, see `Kernel.summary`.

    Its "ladder", where there is one, is of fine-tuned models, see `lensjax.measure.kernel.moved`.
    """
    plots = [plot("spectrum", "Spectrum", spectrum_figure(kernel), "Eigenvalues of Θ / N, largest first.")]
    if kernel.times is not None:
        note = "Squared error per example that is left under gradient descent of the linearised model: F(Θ, t)."
        plots.append(plot("residual", "Residual", residual_figure(kernel), note))
    if ladder := summary.get("ladder"):
        note = "1 − cos between this kernel and that after fine-tuning on so many examples."
        plots.append(plot("drift", "Drift", drift_figure(ladder), note))
    rank = f"Effective rank {summary['effective_rank']:.1f} of {summary['size']:,}."
    return render_figures("Neural tangent kernel", "kernel", _WHAT[kernel.functional], rank, plots, summary)


def spectrum_figure(kernel: "Kernel") -> go.Figure:
    """Positive eigenvalues by rank, both on log axes."""
    values = kernel.eigenvalues[kernel.eigenvalues > 0]
    line = np.arange(1, len(values) + 1), values
    return log_log("rank", "eigenvalue of Θ / N", {"spectrum": line}, "lines")


def residual_figure(kernel: "Kernel") -> go.Figure:
    """F(Θ, t) by time, both on log axes."""
    assert kernel.times is not None
    assert kernel.residuals is not None
    shown = kernel.residuals > 1e-12 * kernel.residuals[0]
    return log_log("η t", "F(Θ, t)", {"residual": (kernel.times[shown], kernel.residuals[shown])}, "lines")


def drift_figure(ladder: Sequence[Mapping[str, Any]]) -> go.Figure:
    """How far kernels have drifted by the number of training examples, both on log axes."""
    points = np.array([(rung["examples"], rung["drift"]) for rung in ladder if rung["drift"] > 0]).reshape(-1, 2)
    return log_log("training examples", "1 − cos", {"drift": (points[:, 0], points[:, 1])}, "lines+markers")
