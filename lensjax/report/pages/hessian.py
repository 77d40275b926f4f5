"""A Hessian as one self-contained HTML page: its density, its layers, and the bound's terms along a ladder."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lensjax.core.sections import DataTable, DotPlot, Line, LinePlot, Section
from lensjax.measure.hessian import Hessian
from lensjax.report.pages.sections import cell, render_measurement

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
_TERMS = {name: _COLUMNS[name] for name in ("hessian_term", "remainder_term", "sum_of_largest")}
_HOW = {"as_bounded": "Hessian's term as in the bound", "scale_fitted": "its scale fitted"}


def render_hessian(hessian: Hessian, summary: Mapping[str, Any]) -> str:
    """The Hessian of one model as a page that needs no network.

    Args:
      hessian: Measured before fine-tuning.
      summary: Task, model, examples and all else that is listed, see `Hessian.summary`; "ladder", where it is there, is
        what `lensjax.measure.rungs.ladder_summary` says of the fine-tuned models.
    """
    ladder, facts = summary.get("ladder"), dict(summary)
    sections = [_figures(hessian, ladder)]
    if ladder is not None:
        facts = {"task": summary["task"], "model": summary["model"], **_fitted(ladder), **summary}
        sections.append(Section("rows", "Rungs", tables=[_rungs(ladder)]))
    first = f"Largest eigenvalue {hessian.eigenvalues[0]:.4g}, trace {summary['trace']:.4g}."
    return render_measurement("Hessian", "Hessian", ("Of the mean loss of target tokens", first), sections, facts)


def _figures(hessian: Hessian, ladder: Mapping[str, Any] | None) -> Section:
    plots: list[LinePlot | DotPlot] = [_density(hessian), _layers(hessian)]
    if ladder is not None:
        note = f"Block {ladder['block']}, C = {ladder['loss_bound']:.4g} nats ({ladder['loss_bound_is']})."
        terms = _TERMS | {"gap": "test loss − (1 + ε) L̂"}
        sizes = [row["examples"] for row in ladder["rungs"]]
        lines = [Line(title, sizes, [row[name] for row in ladder["rungs"]]) for name, title in terms.items()]
        plots.append(LinePlot("terms", "Terms of the bound", "training examples", "nats", lines, note, ladder=True))
    return Section("figures", "Figures", plots=plots)


def _density(hessian: Hessian) -> LinePlot:
    nodes = hessian.density.nodes
    low, high = float(nodes.min()), float(nodes.max())
    width = max(high - low, 1e-12 * max(abs(low), abs(high), 1)) / _WIDTHS
    grid = np.linspace(low - 3 * width, high + 3 * width, _POINTS)
    density = hessian.density.curve(grid, width)
    ends = (density.value + sign * 2 * density.standard_error for sign in (-1, 0, 1))
    lower, y, upper = (np.maximum(end, 1e-9 * density.value.max()).tolist() for end in ends)
    line = Line("density", grid.tolist(), y, lower, upper)
    note = "Share of eigenvalues per unit, by stochastic Lanczos quadrature; the band is two standard errors."
    return LinePlot("density", "Spectral density", "eigenvalue", "density", [line], note, log_x=False)


def _layers(hessian: Hessian) -> DotPlot:
    value, error = hessian.layer_traces.value, hessian.layer_traces.standard_error
    shown = np.argsort(-np.abs(value), kind="stable")[:_SHOWN]
    names = [hessian.layers[i] for i in shown]
    note = f"Traces of layers' own blocks, the {_SHOWN} largest in magnitude; bars are two standard errors."
    return DotPlot("layers", "Layers", "trace", names, value[shown].tolist(), (2 * error[shown]).tolist(), note)


def _rungs(ladder: Mapping[str, Any]) -> DataTable:
    """The terms of every rung, and its phase where that is known."""
    first, *others = _COLUMNS
    columns = [_COLUMNS[name] for name in others]
    rows = [[cell(row[name]) for name in others] for row in ladder["rungs"]]
    if ladder["decay"] is not None:
        for name, title in _HOW.items():
            columns.append(f"phase, {title}")
            rows = [[*row, phase] for row, phase in zip(rows, ladder["phases"][name]["phase"], strict=True)]
    names = [cell(row[first]) for row in ladder["rungs"]]
    return DataTable("Rungs", columns, list(zip(names, rows, strict=True)), heading=_COLUMNS[first])


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
