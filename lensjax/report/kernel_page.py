"""A kernel as one self-contained HTML page: its spectrum, and the residual of linearised training."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup

from lensjax.report import text
from lensjax.report.html import Plot, render
from lensjax.report.plots import NO_EXTRA, PALETTE, base_layout, compact, figure_json

if TYPE_CHECKING:
    from lensjax.curvature.kernel import Kernel

_WHAT = {
    "loss": "Of the loss of each example",
    "target_logprob": "Of the log-probabilities of target tokens, summed over them,",
    "label_logits": "Of the logits of the tokens that targets begin with",
    "fisher_sketch": "Of random projections of the logits (an estimate of the Fisher-weighted kernel)",
}


def render_kernel(kernel: "Kernel", summary: Mapping[str, Any]) -> str:
    """The page; `summary` holds task, model, examples and what else is to be shown, see `Kernel.summary`."""
    plots = [_plot("spectrum", "Spectrum", spectrum_figure(kernel), "Eigenvalues of Θ / N, largest first.")]
    if kernel.times is not None:
        note = "Squared error per example that is left under gradient descent of the linearised model: F(Θ, t)."
        plots.append(_plot("residual", "Residual", residual_figure(kernel), note))
    facts = [(name.replace("_", " "), value) for name, value in summary.items() if isinstance(value, int | float | str)]
    return render(
        "kernel.html.j2",
        {
            "task": text.clean(summary["task"]),
            "model": text.clean(summary["model"]),
            "what": _WHAT[kernel.functional],
            "examples": summary["examples"],
            "rank": f"{summary['effective_rank']:.1f}",
            "size": summary["size"],
            "plots": plots,
            "facts": [(name, f"{v:.6g}" if isinstance(v, float) else text.clean(str(v), 200)) for name, v in facts],
        },
    )


def spectrum_figure(kernel: "Kernel") -> go.Figure:
    """Positive eigenvalues by rank, both on log axes."""
    values = kernel.eigenvalues[kernel.eigenvalues > 0]
    return _log_log(np.arange(1, len(values) + 1), values, "rank", "eigenvalue of Θ / N")


def residual_figure(kernel: "Kernel") -> go.Figure:
    """F(Θ, t) by time, both on log axes."""
    assert kernel.times is not None
    assert kernel.residuals is not None
    shown = kernel.residuals > 1e-12 * kernel.residuals[0]
    return _log_log(kernel.times[shown], kernel.residuals[shown], "η t", "F(Θ, t)")


def _log_log(x: np.ndarray, y: np.ndarray, x_title: str, y_title: str) -> go.Figure:
    figure = go.Figure(layout=base_layout(height=340, small=True))
    figure.add_scatter(
        x=compact(x),
        y=compact(y),
        mode="lines",
        line={"color": PALETTE[0], "width": 2},
        hovertemplate=f"{x_title} %{{x:.4~g}}<br>{y_title} %{{y:.4~g}}{NO_EXTRA}",
        showlegend=False,
    )
    figure.update_xaxes(type="log", title_text=x_title).update_yaxes(type="log", title_text=y_title)
    return figure


def _plot(name: str, title: str, figure: go.Figure, note: str) -> Plot:
    return Plot(name, title, Markup(figure_json(figure)), f"{title}: {note}", note)
