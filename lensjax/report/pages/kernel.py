"""A kernel as one self-contained HTML page: its spectrum, and the residual of linearised training."""

from collections.abc import Mapping
from typing import Any

from lensjax.core.sections import Line, LinePlot, Section
from lensjax.measure.approximate import ApproximateKernel
from lensjax.measure.functionals import FUNCTIONALS
from lensjax.measure.kernel import MeasuredKernel
from lensjax.report.pages.sections import render_measurement


def render_kernel(kernel: MeasuredKernel | ApproximateKernel, summary: Mapping[str, Any]) -> str:
    """The kernel of one model as a page that needs no network.

    Args:
      kernel: Measured before fine-tuning.
      summary: Task, model, examples and all else that is listed, see `MeasuredKernel.summary`; "ladder", where given,
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
    what = FUNCTIONALS[kernel.functional].description
    sections = [Section("figures", "Figures", plots=plots)]
    return render_measurement("Neural tangent kernel", "kernel", (what, kernel.sentence), sections, summary)
