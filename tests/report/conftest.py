"""Synthetic rankings for the tests of the report."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from lensjax.curves import curve_table
from lensjax.selection.methods import Prediction
from lensjax.selection.ranking import Curves, Ranking

SIZES = (0, 200, 400, 800, 1600, 3200, 6400, 12800)

HOSTILE = (
    "</script><script>window.hacked=1</script>",
    '<img src=x onerror="window.hacked=1">',
    "a\"b'c&d<b>bold</b>",
    "%{x} {{ 7 * 7 }} {% raw %}",
    "<!-- <script>",
    "line\u2028separator\u2029and\u202eoverride\x00",
    "emoji 👩‍🔬 名前",
    "$\\alpha$ <a href='javascript:window.hacked=1'>x</a>",
    "org/" + "long-name-" * 30,
)


def synthetic(
    names: Sequence[str] | int = 8,
    *,
    budget: int = 1600,
    later: bool = True,
    task: str = "toy",
    families: Sequence[str] | None = None,
    seed: int = 0,
    **changes: object,
) -> Ranking:
    """A ranking with every optional field, of models that follow power laws; `changes` replace fields."""
    models = [f"org/model-{i}" for i in range(names)] if isinstance(names, int) else list(names)
    rng, count, target = np.random.default_rng(seed), len(models), SIZES[-1]
    level, slope = rng.uniform(3, 5, (count, 1)), rng.uniform(0.05, 0.15, (count, 1))
    loss = level * (np.array(SIZES) / 200 + 1) ** -slope
    if not later:
        loss = np.where(np.array(SIZES) > budget, np.nan, loss)
    table = curve_table(
        models,
        SIZES,
        loss,
        parameters=rng.uniform(1e8, 7e9, count),
        families=[f"family-{i % 3}" for i in range(count)] if families is None else families,
        task=task,
    )
    grid = np.unique(np.geomspace(200, target, 30).astype(np.int64))
    fitted = level * (grid / 200 + 1) ** -slope
    width = 0.02 * np.maximum(np.log2(grid / budget), 0.1)
    score = fitted[:, -1]
    fields: dict[str, object] = {
        "table": table,
        "budget": budget,
        "target": target,
        "method": "lensjax",
        "prediction": Prediction(score, True, score * np.exp(-width[-1]), score * np.exp(width[-1])),
        "order": np.argsort(score),
        "baselines": {
            "zero_shot": Prediction(loss[:, 0], is_loss=False),
            "sub_tuning": Prediction(table.column(budget), is_loss=False),
            "ats": Prediction(score * rng.uniform(0.9, 1.1, count)),
        },
        "probability_best": rng.dirichlet(np.ones(count)),
        "expected_regret": score - score.min(),
        "curves": Curves(grid, fitted, fitted * np.exp(-width), fitted * np.exp(width)),
        "parameters": {"B": rng.uniform(1, 9, count), "beta": slope[:, 0]},
        "left_out": (("org/too-short", "Fewer than two sizes were measured."),),
        "warnings": ("The target is far beyond the budget.",),
        "assumptions": ("The loss follows a rectified scaling law.",),
    }
    return Ranking(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def make_ranking() -> Callable[..., Ranking]:
    """`synthetic`, for tests to call."""
    return synthetic


@pytest.fixture
def hostile_names() -> tuple[str, ...]:
    """Names that break out of HTML, scripts, Plotly texts and templates wherever escaping is forgotten."""
    return HOSTILE
