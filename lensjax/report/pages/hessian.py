"""A Hessian as one self-contained HTML page: its density, its layers, and the bound's terms along a ladder."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from lensjax.core.text import plotly_text
from lensjax.report.figures.figures import Table, log_log, plot, render_figures
from lensjax.report.figures.plots import GREY, NO_EXTRA, PALETTE, base_layout, compact, translucent

if TYPE_CHECKING:
    from lensjax.measure.hessian import Hessian

_POINTS, _WIDTHS = 400, 60  # of the density's grid, and smoothing widths in its range
_SHOWN = 40  # layers
_COLUMNS = {
    "examples": "examples",
    "test_loss": "test loss",
    "train_loss": "training loss",
    "sum_of_largest": "Σ Hᵢ",
    "squared_distance": "‖v‖²",
    "empirical_term": "(1 + ε) L̂",
    "hessian_term": "(1 + ε) Σ √(C Hᵢ) / √n",
    "remainder_term": "c n^(−3/4)",
    "bound": "bound",
}
_HOW = {"as_bounded": "Hessian's term as in the bound", "scale_fitted": "its scale fitted"}


def render_hessian(hessian: "Hessian", summary: Mapping[str, Any]) -> str:
    """The page; `summary` holds task, model, examples, `Hessian.summary`'s numbers and the ladder's, if any."""
    density = "Share of eigenvalues per unit, by stochastic Lanczos quadrature; the band is two standard errors."
    layers = f"Traces of layers' own blocks, the {_SHOWN} largest in magnitude; bars are two standard errors."
    plots = [
        plot("density", "Spectral density", density_figure(hessian), density),
        plot("layers", "Layers", layers_figure(hessian), layers),
    ]
    ladder, table, facts = summary.get("ladder"), None, dict(summary)
    if ladder is not None:
        about = f"Block {ladder['block']}, C = {ladder['loss_bound']:.4g} nats ({ladder['loss_bound_is']})."
        plots.append(plot("terms", "Terms of the bound", terms_figure(ladder), about))
        facts = {"task": summary["task"], "model": summary["model"], **_fitted(ladder), **summary}
        table = _rungs(ladder)
    first = f"Largest eigenvalue {hessian.eigenvalues[0]:.4g}, trace {summary['trace']:.4g}."
    return render_figures("Hessian", "Hessian", "Of the mean loss of target tokens", first, plots, facts, table)


def density_figure(hessian: "Hessian") -> go.Figure:
    """The smoothed density, its axis logarithmic."""
    nodes = hessian.density.nodes
    low, high = float(nodes.min()), float(nodes.max())
    width = max(high - low, 1e-12 * max(abs(low), abs(high), 1)) / _WIDTHS
    grid = np.linspace(low - 3 * width, high + 3 * width, _POINTS)
    found = hessian.density.curve(grid, width)
    least = 1e-9 * found.value.max()
    figure = go.Figure(layout=base_layout(height=340, small=True))
    ends = [np.maximum(found.value + sign * 2 * found.standard_error, least) for sign in (1, -1)]
    figure.add_scatter(
        x=compact([*grid, *grid[::-1]]),
        y=compact([*ends[0], *ends[1][::-1]]),
        fill="toself",
        fillcolor=translucent(PALETTE[0], 0.2),
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )
    figure.add_scatter(
        x=compact(grid),
        y=compact(np.maximum(found.value, least)),
        mode="lines",
        line={"color": PALETTE[0], "width": 2},
        hovertemplate=f"eigenvalue %{{x:.4~g}}<br>density %{{y:.4~g}}{NO_EXTRA}",
        showlegend=False,
    )
    figure.update_xaxes(title_text="eigenvalue")
    return figure.update_yaxes(type="log", title_text="density")


def layers_figure(hessian: "Hessian") -> go.Figure:
    """Traces of the layers, those of the largest magnitude."""
    value, error = hessian.layer_traces.value, hessian.layer_traces.standard_error
    shown = np.argsort(-np.abs(value), kind="stable")[:_SHOWN][::-1]
    figure = go.Figure(layout=base_layout(height=120 + 16 * len(shown), small=True))
    figure.add_scatter(
        x=compact(value[shown]),
        y=[plotly_text(hessian.layers[i]) for i in shown],
        error_x={"array": compact(2 * error[shown]), "color": GREY, "thickness": 1.2, "width": 0},
        mode="markers",
        marker={"color": PALETTE[0], "size": 7},
        hovertemplate=f"%{{y}}<br>trace %{{x:.4~g}}{NO_EXTRA}",
        showlegend=False,
    )
    return figure.update_xaxes(title_text="trace")


def terms_figure(ladder: Mapping[str, Any]) -> go.Figure:
    """ΣH_i, the bound's terms and the gap that they bound, by the number of training examples."""
    names = {name: _COLUMNS[name] for name in ("hessian_term", "remainder_term", "sum_of_largest")}
    names["gap"] = "test loss − (1 + ε) L̂"
    lines = {}
    for name, title in names.items():
        points = np.array([(row["examples"], row[name]) for row in ladder["rungs"] if row[name] > 0])
        if len(points):
            lines[title] = points[:, 0], points[:, 1]
    return log_log("training examples", "nats", lines, "lines+markers")


def _rungs(ladder: Mapping[str, Any]) -> Table:
    """The terms of every rung, and its phase where that is known."""
    columns, rows = list(_COLUMNS.values()), [[row[name] for name in _COLUMNS] for row in ladder["rungs"]]
    if ladder["decay"] is not None:
        for name, title in _HOW.items():
            columns.append(f"phase, {title}")
            rows = [[*row, phase] for row, phase in zip(rows, ladder["phases"][name]["phase"], strict=True)]
    return Table("Rungs", columns, rows)


def _fitted(ladder: Mapping[str, Any]) -> dict[str, str]:
    """What the ladder's fit says, in words."""
    decay = ladder["decay"]
    if decay is None:
        return {"not fitted": ladder["not_fitted"]}
    level = f"{decay['level']:.0%} interval"
    facts = {
        title: f"{decay[name]:.3f} ({level} {decay[f'{name}_interval'][0]:.3f} to {decay[f'{name}_interval'][1]:.3f})"
        for name, title in (("beta2", "β₂"), ("beta3", "β₃"))
    }
    for name, title in _HOW.items():
        phases = ladder["phases"][name]
        moved = phases["reason"] if phases["transition"] is None else f"at {phases['transition']:,.0f} examples"
        facts[f"transition, {title}"] = moved
    seen = ladder["residual_transition"]
    facts["transition of AtS, from residuals"] = "none seen" if seen is None else f"at {seen:,} examples"
    return facts
