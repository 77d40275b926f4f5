"""The figure of measured losses and fitted curves."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from lensjax.core.text import count, plotly_text
from lensjax.report.figures.plots import (
    GREY,
    MUTED,
    NO_EXTRA,
    PALETTE,
    SYMBOLS,
    add_band,
    base_layout,
    compact,
    error_bars,
    highlighted_models,
    label,
    plotted_models,
)
from lensjax.selection.ranking import Ranking

BANDS = 3
Points = list[float | None]
_POINT = "<b>%{text}</b><br>%{x:,.0f} examples<br>loss %{y:.4~g} "


def curves_figure(ranking: Ranking) -> go.Figure:
    """Measured losses, fitted curves and 90 % bands against the number of examples, both axes logarithmic."""
    table, curves, unit = ranking.table, ranking.curves, ranking.table.unit
    coloured = highlighted_models(ranking)
    grey = [i for i in plotted_models(ranking) if i not in coloured]
    used = (table.sizes > 0) & (table.sizes <= ranking.budget)
    later = table.sizes > ranking.budget
    points = (  # without fitted curves, lines join what the method saw
        (later, "-open", "measured later, not used", "markers"),
        (used, "", "measured", "lines+markers" if curves is None else "markers"),
    )
    figure = go.Figure(layout=base_layout(height=560))

    if grey:
        style = {"legendgroup": "others", "showlegend": False}
        if curves is not None:
            x, y, text = _joined((label(ranking, i), curves.sizes, curves.loss[i]) for i in grey)
            line = {"color": GREY, "width": 1}
            _add(figure, x, y, text, f"{unit}, fitted", mode="lines", line=line, opacity=0.55, **style)
        for columns, suffix, what, mode in points:
            x, y, text = _joined((label(ranking, i), table.sizes[columns], table.loss[i, columns]) for i in grey)
            marker, line = {"color": GREY, "size": 4, "symbol": "circle" + suffix}, {"color": GREY, "width": 1}
            _add(figure, x, y, text, f"{unit}, {what}", mode=mode, marker=marker, line=line, opacity=0.6, **style)

    for k, i in reversed(list(enumerate(coloured))):
        name, style = label(ranking, i), {"legendgroup": f"model {k}", "showlegend": False}
        if curves is not None:
            if k < BANDS:
                add_band(figure, curves.sizes, curves.lower[i], curves.upper[i], PALETTE[k], **style)
            x, y, line = compact(curves.sizes), compact(curves.loss[i]), {"color": PALETTE[k], "width": 2.2}
            _add(figure, x, y, name, f"{unit}, fitted", mode="lines", line=line, **style)
        else:
            _add_prediction(figure, ranking, i, k, style)
        for columns, suffix, what, mode in points:
            x, y = compact(table.sizes[columns]), compact(table.loss[i, columns])
            outline = {"width": 1.6 if suffix else 0}
            marker = {"color": PALETTE[k], "size": 8, "symbol": SYMBOLS[k] + suffix, "line": outline}
            line = {"color": PALETTE[k], "width": 1.2}
            _add(figure, x, y, name, f"{unit}, {what}", mode=mode, marker=marker, line=line, connectgaps=True, **style)

    for k, i in enumerate(coloured):
        marker = {"color": PALETTE[k], "size": 8, "symbol": SYMBOLS[k]}
        _add_legend(figure, f"{k + 1}. {plotly_text(table.models[i], 34)}", f"model {k}", marker, 2.2)
    if grey:
        other = f"{len(grey)} other model" + "s" * (len(grey) > 1)
        _add_legend(figure, other, "others", {"color": GREY, "size": 5}, 1)
    _curve_axes(figure, ranking, [*coloured, *grey])
    return figure


def add_rings(figure: go.Figure, ranking: Ranking, rings: Mapping[str, int]) -> None:
    """Draw rings around points of `curves_figure`, at one size for each of some models."""
    table, coloured = ranking.table, highlighted_models(ranking)
    for i in plotted_models(ranking):
        if (size := rings.get(table.models[i])) is None:
            continue
        place = coloured.index(i) if i in coloured else None
        colour = GREY if place is None else PALETTE[place]
        figure.add_scatter(
            x=[size],
            y=compact(table.column(size)[[i]]),
            mode="markers",
            marker={"color": colour, "symbol": "circle-open", "size": 17, "line": {"width": 2}},
            legendgroup="others" if place is None else f"model {place}",
            showlegend=False,
            hoverinfo="skip",  # the point inside answers the mouse
        )


def _joined(pieces: Iterable[tuple[str, np.ndarray, np.ndarray]]) -> tuple[Points, Points, list[str]]:
    """Many models as one trace with gaps, so that sixty grey curves cost one line and one legend entry."""
    x: Points = []
    y: Points = []
    text: list[str] = []
    for name, sizes, losses in pieces:
        known = np.isfinite(losses)
        x += [*compact(sizes[known]), None]
        y += [*compact(losses[known]), None]
        text += [name] * (int(known.sum()) + 1)
    return x, y, text


def _add(figure: go.Figure, x: object, y: object, text: object, what: str, **style: object) -> None:
    if x:
        names = [text] * len(x) if isinstance(text, str) else text  # type: ignore[arg-type]
        figure.add_scatter(x=x, y=y, text=names, hovertemplate=_POINT + what + NO_EXTRA, **style)


def _add_legend(figure: go.Figure, name: str, group: str, marker: dict[str, object], width: float) -> None:
    """A legend entry showing both line and marker; it toggles every trace of its group."""
    line = {"color": marker["color"], "width": width}
    figure.add_scatter(x=[None], y=[None], mode="lines+markers", name=name, legendgroup=group, marker=marker, line=line)


def _add_prediction(figure: go.Figure, ranking: Ranking, i: int, k: int, style: dict[str, object]) -> None:
    """The predicted loss at the target as a point, for a method that predicts a loss but fits no curve."""
    prediction = ranking.prediction
    if prediction.is_loss:
        marker = {"color": PALETTE[k], "size": 11, "symbol": "x-thin", "line": {"width": 2.5, "color": PALETTE[k]}}
        error = error_bars([i], prediction.score, prediction.lower, prediction.upper, PALETTE[k])
        x, y = [float(ranking.target)], compact([prediction.score[i]])
        what = f"{ranking.table.unit}, predicted"
        _add(figure, x, y, label(ranking, i), what, mode="markers", marker=marker, error_y=error, **style)


def _curve_axes(figure: go.Figure, ranking: Ranking, shown: Sequence[int]) -> None:
    table, budget, target = ranking.table, ranking.budget, ranking.target
    sizes = table.sizes[table.sizes > 0]
    rows = list(shown)
    losses = [table.loss[rows][:, table.sizes > 0].ravel()]
    if ranking.curves is not None:
        losses.append(ranking.curves.loss[rows].ravel())
    elif ranking.prediction.is_loss:
        losses.append(ranking.prediction.score[rows])
    everything = np.concatenate(losses)
    everything = everything[np.isfinite(everything) & (everything > 0)]
    if ranking.curves is not None and everything.size:  # room for the bands, but for wild ones only so much
        ends = ranking.curves.lower[rows[:BANDS]].ravel()
        low, high = everything.min(), everything.max()
        everything = np.append(everything, np.maximum(ends[np.isfinite(ends)], low * (low / high) ** 0.3))
    last = max([budget, *map(int, sizes)])
    beyond = [last * 2**k for k in range(1, 60) if 0 < last * 2**k < 0.75 * target]
    ticks = sorted({int(size) for size in sizes} | {size for size in (budget, target) if size > 0} | {*beyond})
    low, high = np.log10(ticks[0]), np.log10(ticks[-1])
    pad = max(0.035 * (high - low), 0.03)
    figure.update_xaxes(
        type="log",
        range=[low - pad, high + pad],
        title_text="training examples (log scale)",
        tickvals=ticks,
        ticktext=[count(tick) for tick in ticks],
    )
    if everything.size:
        bottom, top = np.log10(everything.min()), np.log10(everything.max())
        margin = max(0.06 * (top - bottom), 0.01)
        values = _loss_ticks(10 ** (bottom - margin), 10 ** (top + 2 * margin))
        figure.update_yaxes(
            range=[bottom - margin, top + 2 * margin], tickvals=values, ticktext=[f"{v:g}" for v in values]
        )
    figure.update_yaxes(type="log", title_text=f"test loss, {table.unit} (log scale)")
    extrapolated = {"x0": budget, "x1": target, "fillcolor": MUTED, "opacity": 0.05, "line_width": 0}
    if 0 < budget < target:
        figure.add_vrect(**extrapolated, layer="below")
    for size, what, dash in ((budget, "budget", "dash"), (target, "target", "solid")):
        figure.add_vline(size, line={"color": MUTED, "width": 1.2, "dash": dash}, layer="below")
        figure.add_annotation(
            x=np.log10(max(size, 1)),
            xanchor="right",
            y=1,
            yref="paper",
            yanchor="top",
            showarrow=False,
            text=f"{what} {count(size)} ",
            font={"size": 12, "color": MUTED},
        )


def _loss_ticks(low: float, high: float) -> list[float]:
    """Round values that are about evenly spaced on a logarithmic axis."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for steps in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)):
        values = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(values) >= 5:
            return values
    step = 10.0 ** np.floor(np.log10((high - low) / 4))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (m * step) <= 9)
    return [float(f"{v:.12g}") for v in np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step]
