"""Plotly figures of a ranking, and their JSON in a form that is safe inside a <script> element.

Plotly reads tags in every text it draws, so names reach a figure through `plotly_text` only, and never
through a template: Plotly would expand a `%{…}` in it.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from lensjax.core.text import count, method_title, plotly_text
from lensjax.selection.prediction import Prediction
from lensjax.selection.ranking import Ranking
from lensjax.selection.records import ranks

# At least 3:1 contrast on white and on near-black, distinct in any colour vision; symbols say it again.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#B14A9E", "#8A6D00")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down")
HIGHLIGHTED = len(PALETTE)
PLOTTED = 60
GREY = "#8b929c"
_INK, MUTED, _LINE = "#1b1f24", "#59616b", "#e4e7eb"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
NO_EXTRA = "<extra></extra>"


def figure_json(figure: go.Figure) -> str:
    """Data and layout as JSON that neither ends a <script> element nor breaks a JavaScript string."""
    text = str(figure.to_json(engine="json"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def plotted_models(ranking: Ranking, limit: int = PLOTTED) -> list[int]:
    """Positions of the models to plot, best first: the first `limit` and every method's own first choice."""
    order = [int(i) for i in ranking.order]
    chosen = {prediction.choice for prediction in ranking.baselines.values()}
    return order[:limit] + [i for i in order[limit:] if i in chosen]


def highlighted_models(ranking: Ranking) -> list[int]:
    """Positions of the models drawn in colour: the best few that may be chosen, and that the method could judge."""
    choices = ranking.choices
    best: list[int] = choices[np.isfinite(ranking.prediction.score[choices])][:HIGHLIGHTED].tolist()
    return best


def agreement_figure(ranking: Ranking, baseline: str) -> go.Figure:
    """The ranking method's prediction against a baseline's: losses where both predict losses, else ranks."""
    other, title = ranking.baselines[baseline], method_title(baseline)
    shown = plotted_models(ranking)
    if other.is_loss and ranking.prediction.is_loss:
        x, y, what = other.score, ranking.prediction.score, "predicted loss"
        format_, unit = ":.4~g", f" {ranking.table.unit}"
    else:
        x, y = _places(other), _places(ranking.prediction)
        what, format_, unit = "rank", ":.0f", ""
    ours = method_title(ranking.method)
    values = (f"{plotly_text(name)} {what} %{{{axis}{format_}}}{unit}" for name, axis in ((title, "x"), (ours, "y")))
    hover = "<b>%{text}</b><br>" + "<br>".join(values)
    figure = go.Figure(layout=base_layout(height=250, small=True))
    _scatter(figure, ranking, shown, x, y, hover)
    first = np.array(shown[:PLOTTED], dtype=int)
    first = first[np.isfinite(x[first]) & np.isfinite(y[first])]
    ends = np.concatenate([y[first], _most(x[first])])
    titles = f"{plotly_text(title, 24)}: {what}", f"{plotly_text(ours, 24)}: {what}"
    _square(figure, ends, *titles, ranked=what == "rank")
    return figure


def measured_figure(ranking: Ranking) -> go.Figure:
    """Predicted against measured loss at the target, with 90 % intervals."""
    shown, prediction = plotted_models(ranking), ranking.prediction
    x, y = ranking.table.column(ranking.target), prediction.score
    hover = "<b>%{text}</b><br>measured %{x:.4~g}<br>predicted %{y:.4~g} " + ranking.table.unit.name
    figure = go.Figure(layout=base_layout(height=470, small=True))
    _scatter(figure, ranking, shown, x, y, hover, prediction.lower, prediction.upper)
    first = shown[:PLOTTED]
    ends = [x[first], y[first]]
    if prediction.lower is not None and prediction.upper is not None:
        ends += [_most(prediction.lower[first]), _most(prediction.upper[first])]
    at = f"loss at {count(ranking.target)}, {ranking.table.unit}"
    titles = f"measured {at}", f"predicted {at}"
    _square(figure, np.concatenate(ends), *titles)
    return figure


def beyond_axes(figure: go.Figure) -> int:
    """The number of points of `agreement_figure` outside its axes."""
    low, high = figure.layout.xaxis.range or (-np.inf, np.inf)
    points = [xy for trace in figure.data for xy in zip(trace.x, trace.y, strict=True)]
    return sum(not (low <= x <= high and low <= y <= high) for x, y in points)


def label(ranking: Ranking, i: int) -> str:
    """A model's name beside the mouse."""
    return plotly_text(ranking.table.models[i], 80)


def compact(values: Iterable[float]) -> list[float | None]:
    """Six significant digits each, which keeps the page small; None, a gap, where a value is missing."""
    return [float(f"{v:.6g}") if np.isfinite(v) else None for v in values]


def _places(prediction: Prediction) -> Float[np.ndarray, " M"]:
    return np.array(ranks(prediction), float)  # None becomes NaN


def error_bars(
    rows: list[int], score: np.ndarray, lower: np.ndarray | None, upper: np.ndarray | None, colour: str
) -> dict[str, object] | None:
    """Plotly's error bars of some models, where the method gives intervals."""
    if lower is None or upper is None or not rows:
        return None
    return {
        "array": compact(upper[rows] - score[rows]),
        "arrayminus": compact(score[rows] - lower[rows]),
        "color": translucent(colour, 0.5 if colour == GREY else 1),
        "thickness": 1.2,
        "width": 0,
    }


def _scatter(
    figure: go.Figure,
    ranking: Ranking,
    shown: Sequence[int],
    x: np.ndarray,
    y: np.ndarray,
    hover: str,
    lower: np.ndarray | None = None,
    upper: np.ndarray | None = None,
) -> None:
    """Shown models as points, grey ones first, coloured ones over them with the best on top."""
    coloured = highlighted_models(ranking)
    known = np.isfinite(x) & np.isfinite(y)
    layers = [([i for i in shown if i not in coloured and known[i]], GREY, "circle", 6, 0.6)]
    layers += [([i] if known[i] else [], PALETTE[k], SYMBOLS[k], 9, 1) for k, i in enumerate(coloured)][::-1]
    for rows, colour, symbol, size, opacity in layers:
        if rows:
            figure.add_scatter(
                x=compact(x[rows]),
                y=compact(y[rows]),
                text=[label(ranking, i) for i in rows],
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": size, "opacity": opacity},
                error_y=error_bars(rows, y, lower, upper, colour),
                hovertemplate=hover + NO_EXTRA,
                showlegend=False,
            )


def add_band(
    figure: go.Figure, x: np.ndarray, lower: np.ndarray, upper: np.ndarray, colour: str, **style: object
) -> None:
    """A translucent band between two lines, where both are known and above 0."""
    known = np.flatnonzero(np.isfinite(lower) & np.isfinite(upper) & (lower > 0))
    if known.size:
        figure.add_scatter(
            x=compact(np.concatenate([x[known], x[known[::-1]]])),
            y=compact(np.concatenate([upper[known], lower[known[::-1]]])),
            mode="lines",
            fill="toself",
            fillcolor=translucent(colour, 0.14),
            line={"width": 0},
            hoverinfo="skip",
            **{"showlegend": False, **style},
        )


def translucent(colour: str, alpha: float) -> str:
    """A #rrggbb colour with an opacity."""
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def _most(values: np.ndarray) -> np.ndarray:
    """The range of all but the outermost values, so that a few wild ones do not squeeze the rest."""
    known = values[np.isfinite(values)]
    return np.array(np.quantile(known, [0.04, 0.96])) if known.size else known


def _square(figure: go.Figure, values: np.ndarray, x_title: str, y_title: str, ranked: bool = False) -> None:
    """Both axes on the one range that holds the values, with its diagonal."""
    values = values[np.isfinite(values)]
    figure.update_xaxes(title_text=x_title).update_yaxes(title_text=y_title)
    if not values.size:
        return
    low, high = float(values.min()), float(values.max())
    gap = max(0.06 * (high - low), 0.5 if ranked else 1e-3 * abs(high))
    axis: dict[str, object] = {"range": [low - gap, high + gap], "autorange": False}
    if ranked:
        step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if high <= 5 * s)
        axis["tickvals"] = [1, *range(max(step, 2), int(high) + 1, step)]
    figure.update_xaxes(axis).update_yaxes(axis)
    ends = {"x0": low - gap, "y0": low - gap, "x1": high + gap, "y1": high + gap}
    figure.add_shape(type="line", **ends, line={"color": MUTED, "width": 1, "dash": "dot"}, layer="below")


def base_layout(height: int, small: bool = False) -> go.Layout:
    """The look of every figure; a small one cannot be zoomed."""
    axis = {
        "gridcolor": _LINE,
        "linecolor": MUTED,
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": _LINE,
        "ticklen": 4,
        "automargin": True,
        "title": {"standoff": 8, "font": {"size": 12, "color": MUTED}},
        "fixedrange": small,
    }
    return go.Layout(
        template=go.layout.Template(),
        height=height,
        margin={"l": 8, "r": 10, "t": 8 if small else 34, "b": 8},
        font={"family": _FONT, "size": 12, "color": _INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="closest",
        hoverlabel={"bgcolor": "#ffffff", "font": {"color": _INK, "size": 13}, "align": "left", "namelength": -1},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": MUTED},
        legend={
            "orientation": "h",
            "y": -0.14,
            "x": 0,
            "yanchor": "top",
            "groupclick": "togglegroup",
            "font": {"size": 12},
        },
        xaxis=axis,
        yaxis=axis,
    )
