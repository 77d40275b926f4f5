"""A kernel as one self-contained HTML page: its spectrum, and the residual of linearised training."""

from collections.abc import Mapping
from typing import Any

from lensjax.core.sections import Line, LinePlot, Section
from lensjax.measure.kernel import Kernel
from lensjax.report.pages.sections import render_measurement

_WHAT = {
    "loss": "Of the loss of each example",
    "target_logprob": "Of the log-probabilities of target tokens, summed over them,",
    "label_logits": "Of the logits of the tokens that targets begin with",
    "fisher_sketch": "Of random projections of the logits (an estimate of the Fisher-weighted kernel)",
}


def render_kernel(kernel: Kernel, summary: Mapping[str, Any]) -> str:
    """The kernel of one model as a page that needs no network.

    Args:
      kernel: Measured before fine-tuning.
      summary: Task, model, examples and all else that is listed, see `Kernel.summary`; "ladder", where it is there,
        holds what `lensjax.measure.kernel.moved` says of each fine-tuned model.
    """
    values = kernel.eigenvalues[kernel.eigenvalues > 0].tolist()
    line = Line("spectrum", range(1, len(values) + 1), values)
    note = "Eigenvalues of Θ / N, largest first."
    plots = [LinePlot("spectrum", "Spectrum", "rank", "eigenvalue of Θ / N", [line], note)]
    if kernel.times is not None and kernel.residuals is not None:
        shown = kernel.residuals > 1e-12 * kernel.residuals[0]
        line = Line("residual", kernel.times[shown].tolist(), kernel.residuals[shown].tolist())
        note = "Squared error per example that is left under gradient descent of the linearised model: F(Θ, t)."
        plots.append(LinePlot("residual", "Residual", "η t", "F(Θ, t)", [line], note))
    if ladder := summary.get("ladder"):
        line = Line("drift", [rung["examples"] for rung in ladder], [rung["drift"] for rung in ladder])
        note = "1 − cos between this kernel and that after fine-tuning on so many examples."
        plots.append(LinePlot("drift", "Drift", "training examples", "1 − cos", [line], note, ladder=True))
    rank = f"Effective rank {summary['effective_rank']:.1f} of {summary['size']:,}."
    sections = [Section("figures", "Figures", plots=plots)]
    return render_measurement("Neural tangent kernel", "kernel", (_WHAT[kernel.functional], rank), sections, summary)
