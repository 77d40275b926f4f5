"""Nothing that is told of one table contradicts anything else that is told of it.

By default few tables are tried; LENSJAX_EXAMPLES=2000 tries as many as that.
"""

import csv
import html
import json
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensjax.cli.rank import print_ranking
from lensjax.curves.table import CurveTable, curve_table
from lensjax.fit.posterior import CurvePosterior, Losses
from lensjax.report.pages.ranking import render_ranking
from lensjax.selection import ranking as rankings
from lensjax.selection.advice import advise
from lensjax.selection.evidence import Evidence
from lensjax.selection.methods import DEFAULT_METHOD, METHODS, Method
from lensjax.selection.metrics import evaluate
from lensjax.selection.prediction import CEILING, UNSEEN, exchanged, predict_from
from lensjax.selection.ranking import CLOSE, rank
from lensjax.selection.records import ranking_csv, ranking_json
from lensjax.study.decisions import decide
from lensjax.study.report import _decision
from lensjax.study.spec import StopRule, StudySpec

EXAMPLES = int(os.environ.get("LENSJAX_EXAMPLES", "10"))
FITS = EXAMPLES // 4  # tables that the default method is tried on
TARGET = 51_200
KINDS = ("power", "flat", "noisy", "drop", "jump", "rising", "diverged")
RULES = StudySpec.model_construct(eliminate_below=0.05, stop_when=StopRule(probability_best=0.8))
ENDED = SimpleNamespace(  # with nothing more to measure
    progress=SimpleNamespace(ended_by="rule", left=0),
    target=0,
    results=(),
    spec=SimpleNamespace(seeds=(0,), price_per_hour=None),
)


def curve(kind: str, level: float, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Losses of one model, of a kind that users have."""
    slope = {"flat": 0.0, "rising": -0.08}.get(kind, rng.uniform(0.02, 0.3))
    log_loss = np.log(level) - slope * np.log2(np.maximum(sizes, 50) / 200)
    noise = {"noisy": 0.3}.get(kind, 0.01)
    log_loss += noise * rng.standard_normal(len(sizes))
    where = rng.integers(len(sizes))
    log_loss[where:] -= {"drop": 1.5, "jump": -0.8}.get(kind, 0.0)
    if kind == "diverged":
        log_loss[where] += 3
    return np.exp(log_loss)


@st.composite
def tables(draw: st.DrawFn) -> CurveTable:
    """Curves of 2 to 30 models at 2 to 8 sizes, some shorter, some measured at the target, some not eligible."""
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=2, max_size=30))
    sizes = 200 * 2 ** np.arange(draw(st.integers(2, 8)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    level = rng.choice([0.3, 2.0, 2.1, 4.0], len(kinds))
    if draw(st.booleans()):
        sizes = np.append(sizes, TARGET)
    loss = np.array([curve(kind, start, sizes, rng) for kind, start in zip(kinds, level, strict=True)])
    if draw(st.booleans()):
        loss[np.arange(len(sizes)) >= rng.integers(2, len(sizes) + 1, len(kinds))[:, None]] = np.nan
    if draw(st.booleans()):
        loss[-1] = loss[0]  # twins
    table = curve_table([f"m{i}" for i in range(len(kinds))], sizes, loss, families=["f"] * len(kinds))
    barred = draw(st.sets(st.sampled_from(table.models[1:]))) if draw(st.booleans()) else ()
    return table.barring(dict.fromkeys(barred, "it is too large"))


@dataclass(frozen=True)
class Cheap(CurvePosterior):
    """Draws about each model's last losses with tails of every length, which cost nothing to make."""

    table: CurveTable
    horizon: int
    models: tuple[str, ...] = field(init=False, default=())
    unit: int = 200

    def __post_init__(self) -> None:
        object.__setattr__(self, "models", self.table.models)

    def sample(self, examples: int, draws: int = 400, seed: int = 0) -> np.ndarray:
        rng, log_loss = np.random.default_rng(seed), np.log(self.table.loss)
        rows, measured = np.arange(len(self.models)), self.table.measured
        last = measured.shape[1] - 1 - np.argmax(measured[:, ::-1], axis=1)
        before = last - np.argmax(measured[rows[:, None], np.maximum(last[:, None] - 1 - np.arange(8), 0)], axis=1) - 1
        slope = log_loss[rows, last] - log_loss[rows, np.maximum(before, 0)]
        octaves = np.log2(examples / self.table.sizes[last])
        sd = 0.02 + np.abs(slope) * octaves / 2
        tail = np.where(rows % 3 == 2, 3, 30)  # degrees of freedom
        noise = rng.standard_t(tail, (draws, len(rows))) + 0.3 * rng.standard_normal((draws, 1))
        return np.exp(log_loss[rows, last] + slope * octaves * (rng.random((draws, len(rows))) < 0.7) + sd * noise)

    def predict(self, examples: int | np.ndarray) -> Losses:
        each = [np.quantile(self.sample(int(size)), (0.5, 0.05, 0.95), axis=0) for size in np.atleast_1d(examples)]
        return Losses(self.models, np.atleast_1d(examples), *np.stack(each, axis=-1))

    def law_parameters(self) -> dict[str, np.ndarray]:
        return {}


def cheap(table: CurveTable, target: int, evidence: Evidence) -> object:
    return predict_from(Cheap(table, target), target, table)


@contextmanager
def few_methods(default: Method | None = None):
    """The default method, or another by its name, beside two plain ones."""
    with pytest.MonkeyPatch.context() as patch:
        entries = {name: METHODS[name] for name in ("ats", "sub_tuning", DEFAULT_METHOD)}
        patch.setattr(METHODS, "_entries", entries | ({} if default is None else {DEFAULT_METHOD: default}))
        patch.setattr(rankings, "methods_in_order", lambda: list(entries))
        yield


def cheaply():
    return few_methods(Method(DEFAULT_METHOD, "cheap draws", cheap))


@settings(max_examples=EXAMPLES)
@given(tables(), st.integers(0, 9))
def test_nothing_contradicts_anything_else(table, number):
    with cheaply():
        check(table, page=number == 0)  # which takes ten times as long as all the rest


A, B = (5, 5, 5, 1, 1), (4, 3.8, 3.6, 3.4, 3.2)
DROPS = [
    [3.0, 2.8, 2.7, 1.2, 1.1],
    *(3 * 2.0 ** (-rate * np.arange(5)) for rate in (0.1, 0.12, 0.08, 0.11)),
]
HOPELESS = [[0.5, 0.3, 0.21], [0.48, 0.31, 0.2], [0.5, 0.33, 0.22], [1.5, 1.3, 1.2]]


SOLVED = [[2.0, 1.9, 1e-29], [2.1, 2.0, 1.8], [2.0, 1.8, 1.9]]
FLAT = [[1.0, 1.0], [3.0, 2.9], [3.0, 3.0], [2.0, 2.1]]
TABLES = {
    "two": [A, B],
    "a drop among five": DROPS,
    "a hopeless one": HOPELESS,
    "one that all but loses nothing": SOLVED,
    "one that diverged": [[2.0, 1.8, 1e25], *SOLVED[1:]],
    "two points": FLAT,
    "all alike": [[2.0] * 4] * 3,
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("losses", TABLES.values(), ids=TABLES)
def test_nothing_contradicts_anything_else_by_the_default_method(losses):
    sizes = 200 * 2 ** np.arange(len(losses[0]))
    with few_methods():
        check(curve_table([f"m{i}" for i in range(len(losses))], sizes, losses))


@pytest.mark.parametrize("method", ["joint", "stacked"])
def test_two_points_of_each_model_are_no_reason_to_be_sure(method):
    falling = 3 * 2.0 ** (-0.1 * np.arange(4)) * np.array([[0.1], [1.0], [1.0]])  # a tenth of the others' losses
    table = curve_table("abc", [200, 400, 800, 1600], falling)
    for budget, least, most in ((400, 0.95, 0.99), (1600, 0.99, 1.0)):
        chances = METHODS[method].predict(table.up_to(budget), 6400).probability_best
        assert least <= chances[0] <= most


def test_models_of_two_points_take_each_others_place_without_changing_medians():
    rng = np.random.default_rng(0)
    for count, models in ((1000, 2), (999, 5), (4000, 12)):
        draws = rng.lognormal(rng.normal(0, 2, models), 0.1, (count, models))
        found = exchanged(draws)
        np.testing.assert_array_equal(np.median(found, axis=0), np.median(draws, axis=0))
        np.testing.assert_array_equal(np.sort(found, axis=1), np.sort(draws, axis=1))
        assert 0.01 < (found != draws).any(axis=1).mean() < 5 * UNSEEN
    np.testing.assert_array_equal(exchanged(np.ones((8, 3))), 1)


@pytest.mark.skipif(FITS < 1, reason="LENSJAX_EXAMPLES is below 4")
@settings(max_examples=max(FITS, 1))
@given(tables())
def test_nothing_contradicts_anything_else_by_the_default_method_of_random_tables(table):
    with few_methods():
        check(table)


def check(table: CurveTable, page: bool = True) -> None:
    """Rank a table, and compare everything that is told of it."""
    seen = table.select(table.points() >= 2)
    if len(seen.models) < 2 or not seen.eligible.any():
        return
    budget = int(seen.sizes[seen.measured.any(axis=0)].max())
    ranking = rank(table, budget, TARGET)
    names, prediction = ranking.table.models, ranking.prediction
    chances, regrets, choices = ranking.probability_best, ranking.expected_regret, ranking.choices
    first = int(ranking.order[0])

    # Everything is of the same draws, and finite.
    draws = prediction.draws
    assert np.isfinite(draws).all()
    assert (draws <= CEILING * np.nanmax(seen.loss, axis=1)).all()
    np.testing.assert_allclose(np.median(draws, axis=0), prediction.score)
    assert (prediction.lower <= prediction.score).all()
    assert (prediction.score <= prediction.upper).all()
    of_choices = draws[:, choices]
    np.testing.assert_allclose(regrets[choices], (of_choices - of_choices.min(axis=1, keepdims=True)).mean(axis=0))
    assert chances[choices].sum() == pytest.approx(1)
    assert np.isnan(chances[~ranking.table.eligible]).all()

    # The order is that of regrets, and agrees with what draws leave no doubt about.
    assert (np.diff(regrets[choices]) >= 0).all()
    assert (regrets[choices] >= 0).all()
    assert ranking.table.eligible[ranking.order].tolist() == sorted(ranking.table.eligible, reverse=True)
    place = np.argsort(ranking.order)
    for i in choices:
        if chances[i] == 1:
            assert (i, regrets[i]) == (first, 0)
        for j in choices:
            if (draws[:, i] < draws[:, j]).all():
                assert place[i] < place[j]
    measured = np.isfinite(seen.column(TARGET))
    np.testing.assert_array_equal(prediction.score[measured], seen.column(TARGET)[measured])
    np.testing.assert_array_equal(ranking.curves.loss[~measured, -1], prediction.score[~measured])
    np.testing.assert_array_equal(ranking.curves.upper[~measured, -1], prediction.upper[~measured])

    if not isinstance(prediction.posterior, Cheap):  # whose draws rise
        largest = np.max(np.where(seen.measured, seen.sizes, 0), axis=1)
        beyond = ranking.curves.sizes[:-1] >= largest[:, None]
        steps = np.diff(ranking.curves.loss, axis=1)
        assert (steps[beyond & ~measured[:, None]] <= 1e-9 * np.nanmax(seen.loss)).all()

    # What is said of the first choice.
    said = " ".join(ranking.warnings)
    assert ranking.is_close == (chances[first] < CLOSE)
    assert (
        f"Too close to call: {names[first]} is best with probability {chances[first]:.2f}" in said
    ) == ranking.is_close
    likeliest = int(np.nanargmax(chances))
    assert ("is the likeliest to be best" in said) == (chances[likeliest] > chances[first])
    assert ("the order may well be wrong" not in said) or ranking.is_close

    # Advice, studies, back-tests.
    if (seen.up_to(TARGET).points() >= 2).all():
        advice = advise(seen, TARGET, {})
        assert (advice.choice, advice.regret) == (names[first], pytest.approx(regrets[first]))
    verdict = decide(RULES, seen, TARGET, [], Evidence())
    assert verdict.choice == names[first]
    assert f"{names[first]} first, best with probability {chances[first]:.2f}" in verdict.decision
    assert f"expected regret {regrets[first]:.4f} " in verdict.decision
    assert verdict.stop == (chances[first] >= 0.8)
    assert names[first] not in verdict.eliminated
    known = dict(zip(names, np.nan_to_num(chances), strict=True))
    assert all((known[name] < 0.05) == (name in verdict.eliminated) for name in names if name != names[first])
    told = _decision(ENDED, ranking, "")
    assert (told.model, told.close) == (names[first], ranking.is_close)
    head = "Too close to call: {} leads, " if ranking.is_close else "Fine-tune {}: "
    assert told.sentence.startswith(head.format(names[first]))
    truth = np.arange(1.0, len(names) + 1)
    assert evaluate(prediction, truth)["regret"] == truth[first] - truth.min()

    # Files, the page and the terminal.
    content = json.loads(ranking_json(ranking))
    assert content["too_close_to_call"] == ranking.is_close
    rows = [row for row in content["models"] if row["rank"] is not None]
    assert [row["model"] for row in rows] == [names[i] for i in choices]
    assert [row["expected_regret"] for row in rows] == sorted(row["expected_regret"] for row in rows)
    assert [row["model"] for row in csv.DictReader(ranking_csv(ranking).splitlines())] == [
        row["model"] for row in content["models"]
    ]
    if not page:
        return
    written = render_ranking(ranking)
    shown = re.findall(r'<th scope="row" class="model">.*?(m\d+)', written.partition('<table class="ranking">')[2])
    assert shown[: len(names)] == [names[i] for i in ranking.order]
    title = re.sub(
        r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", "", written.partition("<h1>")[2].partition("</h1>")[0]))
    )
    headline = f"Too close to call: {names[first]} leads" if ranking.is_close else f"Fine-tune {names[first]}"
    assert title == headline


def test_the_terminal_says_the_same(capsys):
    sizes = 200 * 2 ** np.arange(5)
    for losses in ([A, B], HOPELESS, [B, B]):
        table = curve_table([f"m{i}" for i in range(len(losses))], sizes[: len(losses[0])], losses)
        with cheaply():
            found = rank(table, 800, TARGET)
        print_ranking(found)
        first = found.table.models[found.order[0]]
        out = capsys.readouterr().out
        start = f"Too close to call: {first} leads; " if found.is_close else f"Choose {first}; "
        assert start in out
        rows = re.findall(r"│ +\d+ │ (m\d+)", out)
        assert rows == [found.table.models[i] for i in found.order]
