"""What would decide a close choice: against exact answers, and against what further runs then say."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import norm

from lensjax.curves.simulated import simulated
from lensjax.fit.joint.fitting import fit_joint
from lensjax.fit.joint.moments import Together
from lensjax.selection.advice import Advice, Point, relative_costs
from lensjax.selection.cheaper import Preference, costs_of
from lensjax.selection.deciding import (
    _known,
    _plans,
    _rungs,
    _Simulation,
    decisive,
    what_decides,
    what_would_decide,
)
from lensjax.selection.decisive import DECIDED, PROBABLY, Decisive, Plan
from lensjax.selection.prediction import CLOSE, predict_from
from lensjax.selection.ranking import Ranking
from lensjax.selection.worth import Worth

TARGET = 51_200
TABLE = simulated(seed=5, models=6, sizes=[200 * 2**k for k in range(9)], noise=0.02)
SEEN = TABLE.up_to(1600)


@pytest.fixture(scope="module")
def prediction():
    return predict_from(fit_joint(SEEN, TARGET), TARGET, SEEN)


# Against exact answers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [0.0, 0.02, 0.05])
def test_two_gaussian_models_are_decided_as_often_as_algebra_says(gap):
    sd, noise = np.array([0.05, 0.03]), 0.02
    mean = np.array([[0.0, gap, 0.0, gap]])
    runs = np.diag(sd**2)
    covariance = np.block([[runs, runs], [runs, runs + noise**2 * np.eye(2)]])[None]
    simulation = _Simulation(Together(mean, covariance), 0.3, Worth.plain(2), 1.0, seed=0)
    left = sd**2 * noise**2 / (sd**2 + noise**2)  # variances once both runs are measured
    sure = norm.ppf(DECIDED) * np.sqrt(left.sum())
    moved = np.sqrt((sd**2 - left).sum())
    expected = norm.cdf((-sure - gap) / moved) + norm.sf((sure - gap) / moved)
    decided, error, chance = simulation.after([2, 3], 4000)
    assert decided == pytest.approx(expected, abs=4 * error + 0.01)
    z = np.linspace(-8, 8, 20_001)
    average = np.average(norm.cdf(np.abs(gap + moved * z) / np.sqrt(left.sum())), weights=norm.pdf(z))
    assert chance == pytest.approx(average, abs=0.01)
    assert simulation.after([0, 1], 100) == (1.0, 0.0, 1.0)  # the very runs that are chosen between
    eager = simulation._replace(eager=0.6).after([2, 3], 4000)
    sure = norm.ppf(expit(logit(DECIDED) + 0.6)) * np.sqrt(left.sum())
    assert eager[0] == pytest.approx(norm.cdf((-sure - gap) / moved) + norm.sf((sure - gap) / moved), abs=0.04)
    assert eager[2] < chance
    half = simulation._replace(held=0.5).after([0, 1], 100)
    assert half == (0.0, 0.0, 0.5)  # others are as likely to be the best


def test_outcomes_weigh_the_priors():
    """Under one prior the first model is the best, under the other the second; a run tells which prior holds."""
    mean = np.array([[0.0, 0.1, -1.0], [0.1, 0.0, 1.0]])
    covariance = np.broadcast_to(np.diag([1e-6, 1e-6, 1e-4]), (2, 3, 3))
    simulation = _Simulation(Together(mean, covariance, np.array([0.6, 0.4])), 0.0, Worth.plain(2), 1.0, seed=0)
    assert simulation.after([2], 200) == pytest.approx((1.0, 0.0, 1.0))
    same = mean.copy()
    same[:, 2] = 0.0
    untold = _Simulation(Together(same, covariance, np.array([0.6, 0.4])), 0.0, Worth.plain(2), 1.0, seed=0)
    assert untold.after([2], 200) == pytest.approx((0.0, 0.0, 0.6))


def test_a_cheaper_model_within_the_margin_decides():
    mean, covariance = np.log([[1.0, 1.01, 1.01]]), np.zeros((1, 3, 3))
    covariance[:, [1, 2], [1, 2]] = 1e-6
    worth = Worth.plain(2)._replace(ranks=np.array([1, 0]), margin=0.05)
    within = _Simulation(Together(mean, covariance), 0.0, worth, 1.0, seed=0)
    assert within.after([2], 50) == pytest.approx((1.0, 0.0, 1.0))  # the second, 0.01 above the best, is the choice
    beyond = within._replace(worth=worth._replace(margin=0.0101))
    assert 0.3 < beyond.after([2], 50)[2] < 0.9


def test_what_was_measured_at_the_target_stays_so():
    joint = _known(Together(np.zeros((2, 3)), np.ones((2, 3, 3))), np.array([np.nan, 0.7]))
    np.testing.assert_array_equal(joint.mean, [[0, 0.7, 0]] * 2)
    np.testing.assert_array_equal(joint.covariance[0], [[1, 0, 1], [0, 0, 0], [1, 0, 1]])


def test_runs_are_of_sizes_beyond_what_a_model_was_measured_on():
    assert _rungs(800, 200, 3000) == [3000, 400, 800, 1600]
    assert _rungs(800, 800, 1600) == [1600]
    assert _rungs(800, 800, 800) == []
    plans = _plans(
        ["a", "b"], [3000, 400, 1600], np.array([200, 800]), lambda run: run.examples * (1 + (run[0] == "b"))
    )
    found = [([f"{model}{size}" for model, size in plan.points], plan.cost, plan.places) for plan in plans]
    assert found == [
        (["a400"], 400, [2]),
        (["a1600"], 1600, [4]),
        (["a3000"], 3000, [0]),
        (["a1600", "b1600"], 4800, [4, 5]),
        (["a3000", "b3000"], 9000, [0, 1]),
    ]
    assert [plan.cost for plan in _plans(["a", "b"], [400], np.zeros(2), {Point("a", 400): 3.0}.get)] == [3.0]


# Of a fit -----------------------------------------------------------------------------------------------------


def test_joint_moments_of_runs_are_those_of_the_advice(prediction):
    posterior, models = prediction.posterior, np.array([0, 1, 0, 3])
    joint = posterior.together(models, np.array([TARGET, TARGET, 3200, 6400]))
    moments = posterior.moments(TARGET, models[2:], np.array([3200, 6400]))
    np.testing.assert_allclose(joint.covariance[:, 2:, :2], moments.covariance[:, :, [0, 1]], rtol=1e-9)
    np.testing.assert_allclose(joint.mean[:, 2:], moments.point_mean)
    np.testing.assert_allclose(np.diagonal(joint.covariance, axis1=1, axis2=2)[:, 2:], moments.point_variance)
    np.testing.assert_array_equal(joint.shares, moments.shares)
    assert (np.linalg.eigvalsh(joint.covariance) > 0).all()


def test_the_cheapest_runs_that_probably_decide_it_are_named(prediction):
    found = what_decides(SEEN, TARGET, prediction)
    plan, names = found.plan, {point.model for point in found.plan.points}
    chances = prediction.probability_best
    assert found.is_probable
    assert PROBABLY <= plan.probability <= 1
    assert plan.error == pytest.approx(np.sqrt(plan.probability * (1 - plan.probability) / 800))
    assert plan.chance >= np.nanmax(chances) - 0.05  # what is learned does not harm
    assert names <= {SEEN.models[i] for i in np.argsort(-chances)[: len(names)]}
    costs = relative_costs(SEEN, [*plan.points, *(Point(model, TARGET) for model in SEEN.models)])
    assert plan.cost == pytest.approx(sum(costs[point] for point in plan.points))
    full = sum(costs[Point(model, TARGET)] for model in SEEN.models)
    assert found.cost == f"{100 * plan.cost / full:.2g} % of FullTuning"
    assert f"with probability {plan.probability:.2f} as simulated" in found.sentence
    assert found.sentence.endswith(f", and {plan.chance:.2f} on average.")
    assert f"{plan.points[0].examples:,} examples" in found.sentence
    assert found.content()["sentence"] == found.sentence
    free = what_decides(SEEN, TARGET, prediction, lambda point: 1.0 if point.examples == TARGET else None)
    assert {point.examples for point in free.plan.points} == {TARGET}
    assert free.cost == ""


def test_what_is_not_known_is_said(prediction):
    one = "How many more examples would decide it is not known, as this method does not say"
    assert what_decides(SEEN, TARGET, replace(prediction, posterior=None)).sentence.startswith(one)
    assert "only where the loss decides" in what_decides(SEEN, TARGET, prediction, by_metric=True).sentence
    unpriced = what_decides(SEEN, TARGET, prediction, lambda point: None)
    assert unpriced.sentence == "What further runs cost is not known, nor how many of them would decide it."
    full = simulated(seed=5, models=6, sizes=[*SEEN.sizes, TARGET])
    assert what_decides(full, TARGET, prediction).sentence == "Nothing is left to measure that would decide it."
    assert unpriced.content()["runs"] is None


def test_unlikely_plans_are_told_as_such():
    plan = Plan((Point("a", 800), Point("b", 800)), 3.0, 0.31, 0.02, 0.55)
    assert Decisive(plan, cost="2 % of FullTuning").sentence == (
        "No further runs of one size would probably decide it. The likeliest to is fine-tuning a, b on 800 examples "
        "each (1,600 in all, 2 % of FullTuning): P(best) of the choice is then 0.8 or more with probability 0.31 "
        "as simulated (about half as often in trials), and 0.55 on average."
    )
    assert repr(Decisive(None, "It is not known.")) == "<It is not known.>"
    single = Decisive(replace(plan, points=plan.points[:1], probability=0.6)).sentence
    assert single.startswith("Fine-tuning a on 800 examples may well decide it: P(best)")


def test_rankings_and_advice_say_it_where_they_are_close(prediction):
    clear = Ranking(TABLE, 1600, TARGET, "joint", prediction, prediction.order, costs=costs_of(SEEN))
    assert decisive(clear) is None  # without probabilities, as of some methods
    close = replace(clear, probability_best=np.full(6, 0.3))
    assert decisive(close) == what_decides(SEEN, TARGET, prediction)
    wish = prediction, Preference(0.05)
    cheaper = replace(close, cheaper=replace(wish[1].among(wish[0], close.costs), probability=np.full(6, 0.3)))
    assert decisive(cheaper) == what_decides(SEEN, TARGET, prediction, prefer=wish[1])
    advice = Advice((), prediction=prediction, chance=CLOSE - 0.01)
    assert what_would_decide(SEEN, TARGET, advice, None) == decisive(close)
    assert what_would_decide(SEEN, TARGET, replace(advice, chance=CLOSE), None) is None
    assert what_would_decide(SEEN, TARGET, Advice(()), None) is None
