import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lensjax.curves.public import VARIABLE
from lensjax.curves.simulated import simulated
from lensjax.fit.stacked.learned import COMPONENTS, Record
from lensjax.fit.stacked.weights import Falls
from lensjax.selection.advice import Point
from lensjax.selection.decisive import Plan

FOLDER = Path(__file__).parents[2] / "experiments" / "decisions"


@pytest.fixture(scope="module")
def experiment(imported):
    with imported(FOLDER, "cases", "evidence", "judging", "report", "run", "deciding", "intervals") as modules:
        yield modules


def made_up(experiment, task, seed, right="joint", models=4):
    """Evidence of a case in which one component is right and the others are off by .3 in log loss."""
    rng = np.random.default_rng(seed)
    octaves, level = np.full(models, 6.0), rng.normal(0, 0.1, models)
    fall = 0.1 * octaves + rng.normal(0, 0.3, (len(COMPONENTS), models))
    truth = np.exp(level - fall[COMPONENTS.index(right)] + rng.normal(0, 0.03, models))
    draws = level - fall[0] + rng.normal(0, 0.1, (400, models))
    record = Record(8.0, np.zeros(len(COMPONENTS)), 0)
    scores = np.full((len(experiment["evidence"].BASELINES), models), np.nan)
    scores[0] = np.exp(level - fall[1])
    ahead = Falls(level, octaves, fall, np.full(models, 0.1))
    return experiment["evidence"].Evidence(task, "sets of 5", f"{task}-{seed}", truth, draws, scores, ahead, record)


def test_cases_see_nothing_above_their_budget(experiment, monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path))  # without public curves the zoo and the simulations are left
    cases = experiment["cases"].all_cases(1, 1, 1, 9)
    assert {one.task for one in cases} == {"zoo", "simulated"}
    assert len({one.name for one in cases}) == len(cases) > 40
    for one in cases:
        assert one.table.sizes.max() <= one.target / 4
        assert len(one.table.models) == len(one.truth) >= 3
        assert np.isfinite(one.truth).all()


def test_evidence_is_computed_once(experiment, tmp_path, monkeypatch):
    cases, evidence = experiment["cases"], experiment["evidence"]
    (one,) = [c for c in cases.made(12) if len(c.table.models) <= 8 and 5 <= len(c.table.sizes) <= 8][:1]
    (first,) = evidence.gather([one], tmp_path)
    monkeypatch.setattr(evidence, "_compute", lambda *_: pytest.fail("computed again"))
    (again,) = evidence.gather([one], tmp_path)
    np.testing.assert_array_equal(first.draws, again.draws)
    np.testing.assert_array_equal(first.record.worse, again.record.worse)
    assert first.draws.shape == (evidence.DRAWS, len(one.truth))
    np.testing.assert_allclose(np.median(first.draws, axis=0), first.ahead.level - first.ahead.fall[0], atol=0.05)


def test_verdicts_are_what_their_names_say(experiment):
    judging = experiment["judging"]
    one = made_up(experiment, "flan", 0)
    found = judging.by_draws("joint", one, one.draws)
    losses = np.exp(one.draws)
    pairs = np.abs(losses[:, None] - losses[None]).mean(axis=(0, 1))
    crps = np.mean(np.abs(losses - one.truth).mean(axis=0) - pairs / 2) / np.ptp(one.truth)
    assert found.crps == pytest.approx(crps)
    wins = (np.argmin(one.draws, axis=1) == np.argmin(one.truth)).sum()
    assert found.log_score == pytest.approx(np.log((wins + 0.5) / (400 + 2)))
    assert sum(found.claimed) == pytest.approx(1)
    assert list(found.inside) == sorted(found.inside)
    line, *rest = judging.by_scores(one)
    assert not rest  # the others judge no model
    choice = np.argmin(one.scores[0])
    assert line.regret == one.truth[choice] - one.truth.min()


def test_learning_finds_the_component_that_is_right_and_narrows_what_is_too_wide(experiment):
    judging = experiment["judging"]
    cases = [made_up(experiment, task, seed, "last_three") for task in ("a", "b") for seed in range(12)]
    learned = judging.learn(cases, steps=80)
    before, after = (one.weights(cases[0].record)[1] for one in (judging.START, learned))
    assert after > before + 0.1
    assert learned.disagreement < judging.START.disagreement


def test_the_experiment_writes_what_its_readme_names(experiment, tmp_path, monkeypatch):
    run = experiment["run"]
    every = [made_up(experiment, task, seed) for task in ("flan", "zoo") for seed in range(3)]
    monkeypatch.setattr(run, "all_cases", lambda *_: every)
    monkeypatch.setattr(run, "gather", lambda cases, cache: iter(cases))
    monkeypatch.setattr(run, "STEPS", 3)
    run.main(tmp_path, tmp_path, learn_all=True)
    numbers = json.loads((tmp_path / "learned.json").read_text())
    assert set(numbers) == {"without flan", "without zoo", "of all", "shipped"}
    text = (tmp_path / "report.md").read_text()
    assert text.count("\n| stacked |") >= 3
    assert "### zoo: sets of 5 and 8" in text
    rows = (tmp_path / "verdicts.csv").read_text().splitlines()
    assert len(rows) == 1 + 6 * 4
    assert all(row.count(",") == rows[0].count(",") for row in rows)
    assert (tmp_path / "reliability.svg").stat().st_size > 1000


def test_runs_of_a_plan_are_seen_and_no_others(experiment):
    deciding, whole = experiment["deciding"], simulated(seed=0, models=3)
    plan = Plan((Point(whole.models[2], 3200), Point(whole.models[0], 3200)), 1.0, 0.6, 0.01, 0.8)
    known = deciding.with_runs(whole.up_to(800), whole, plan)
    expected = np.where(whole.sizes <= 800, whole.loss, np.nan)
    expected[[0, 2], 4] = whole.loss[[0, 2], 4]
    np.testing.assert_array_equal(known.loss, expected)
    away = replace(plan, points=(Point(whole.models[0], 3000),))
    assert deciding.with_runs(whole.up_to(800), whole, away) is None


def test_claims_stand_beside_what_came_of_them(experiment):
    deciding = experiment["deciding"]
    one = deciding.Verdict("flan", "a", 0.4, 2, 800, 0.55, 0.8, 0.9, True)
    said = deciding.summary([one, one._replace(chance=0.6, right=False), one._replace(part="x", claimed=0.3)])
    assert "| flan | 2 | 0.55 | 0.50 | 0.80 | 0.75 | 0.50 |" in said
    assert "| claimed below 0.5 | 1 | 0.30 | 1.00 | 0.80 | 0.90 | 1.00 |" in said


def test_intervals_are_learned_by_the_worst_side_of_the_worst_task(experiment):
    intervals, judging = experiment["intervals"], experiment["judging"]
    cases = [made_up(experiment, task, seed, models=6) for task in ("a", "b") for seed in range(20)]
    cases += [replace(one, task="low", truth=one.truth * 0.85) for one in cases[:20]]  # further than foreseen
    start = replace(judging.START, disagreement=0.01)
    learned = intervals.learn_intervals(cases, start)
    assert learned.growth > 0.01
    for some in (start, learned):
        draws = [judging.stacked_draws(one, some) for one in cases[40:]]
        truth = [np.log(one.truth) for one in cases[40:]]
        below = np.mean([t < np.quantile(d, 0.05, axis=0) for t, d in zip(truth, draws, strict=True)])
        at = np.abs(intervals.GROWTHS - some.growth).argmin(), np.abs(intervals.SPARSE - some.sparse).argmin()
        assert intervals.by_numbers(cases, some)[2][at][0] == pytest.approx(below, abs=0.02)


def test_an_error_that_falls_share_leaves_medians_and_moves_all_models_alike(experiment):
    intervals, one = experiment["intervals"], made_up(experiment, "a", 0)
    learned = intervals.LEARNED
    without, wide = experiment["judging"].stacked_draws(one, learned), intervals.shared(one, learned)
    fall = np.tensordot(learned.weights(one.record), one.ahead.fall, 1)
    factors = 1 - (wide - without) / fall
    np.testing.assert_allclose(factors, np.broadcast_to(factors[:, :1], factors.shape))
    np.testing.assert_allclose(np.exp(np.log(factors[:, 0]).mean()), 1)
    assert np.log(factors[:, 0]).std() == pytest.approx(intervals.SHARED, rel=0.1)
