from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensjax.core.errors import InputError
from lensjax.curves.metrics import METRICS, Shares
from lensjax.curves.simulated import simulated
from lensjax.curves.table import curve_table
from lensjax.fit.joint import hierarchy
from lensjax.fit.joint.curves import extrapolate
from lensjax.fit.joint.fitting import fit_joint
from lensjax.fit.joint.moments import JointMoments, joint_moments
from lensjax.selection.advice import (
    Advice,
    NextPoint,
    Point,
    _drops,
    _with_runs_at_target,
    advise,
    candidate_points,
    relative_costs,
)
from lensjax.selection.by_metric import predict_metric
from lensjax.selection.cheaper import Preference
from lensjax.selection.prediction import Prediction, predict_from
from lensjax.selection.ranking import rank
from lensjax.selection.worth import Worth, choose, expected_of, shortfall, worth_of

TARGET = 51_200
RUNGS = [200 * 2**k for k in range(8)]
TABLE = simulated(seed=1, models=6, sizes=[0, *RUNGS[:4]])
MODELS = TABLE.models
COSTS = relative_costs(TABLE, candidate_points(TABLE, RUNGS))
OFFSETS = np.array([0.0, 0, 2.5, 0, 0, 2.5])  # of log odds, by which a metric favours models


@pytest.fixture(scope="module")
def posterior():
    return fit_joint(TABLE, TARGET)


@pytest.fixture(scope="module")
def prediction(posterior):
    return predict_from(posterior, TARGET)


@pytest.fixture(scope="module")
def advice(prediction):
    return advise(TABLE, TARGET, COSTS, prediction)


@pytest.fixture(scope="module")
def by_default():
    """By the default method, which is stacked on the joint fit."""
    return advise(TABLE, TARGET, COSTS)


# Against exact conditioning -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def refit(posterior):
    """Log evidence, and means and variances at the target, under each prior after a point was measured to have z."""

    def one(row, x, z):
        obs, fitted, dof = posterior.observations, posterior.fitted, posterior.dof
        at = np.sum(obs.present[row] & (obs.x[row] < x))
        new = np.sum(obs.present[row]) == at  # beyond the last size; within, it shares the jump that it splits

        def insert(values, value, filled=None):
            """With one more column, in which rows but the one are padded."""
            fill = values[..., -1:] if filled is None else np.full_like(values[..., -1:], filled)
            wide = np.concatenate([values, fill], axis=-1)
            wide[..., row, at + 1 :] = values[..., row, at:]
            wide[..., row, at] = value
            return wide

        measured = obs._replace(
            x=insert(obs.x, x),
            y=insert(obs.y, z),
            present=insert(obs.present, True, False),
            noise=insert(obs.noise, 1.0),
        )
        # What has not happened yet has Student's variance.
        to_come = (dof - 2) / dof
        jump = fitted.weights.jump
        weights = hierarchy.Weights(
            noise=insert(fitted.weights.noise, to_come),
            jump=insert(jump, to_come if new else jump[:, row, min(at, jump.shape[-1] - 1)]),
        )
        given = hierarchy.condition(measured, weights, fitted.scales, fitted.slopes)
        x_target = np.log2(np.array([TARGET / posterior.unit]))
        ahead = extrapolate(measured, fitted.scales, fitted.slopes, given, x_target, dof)
        shared, covariance = hierarchy.shared_moments(measured, given)
        gain = ahead.gain[:, :, 0]
        mean = ahead.offset[:, :, 0] + np.einsum("pmq,pmq->pm", gain, shared)
        variance = ahead.covariance[:, :, 0, 0] + np.einsum("pmq,pmqr,pmr->pm", gain, covariance, gain)
        variance += fitted.scales.noise[:, None] ** 2 * dof / (dof - 2)
        return given.evidence - fitted.given.evidence, mean, variance

    def run(point, z):
        row, x = MODELS.index(point.model), np.log2(point.examples / posterior.unit)
        return tuple(np.stack(part, axis=1) for part in zip(*(one(row, x, each) for each in z), strict=True))

    return run


def moments_of(posterior, points):
    """To first order in the slopes' coefficients."""
    rows = np.array([MODELS.index(point.model) for point in points])
    x = np.log2(np.array([TARGET, *(point.examples for point in points)]) / posterior.unit)
    return joint_moments(posterior.observations, posterior.fitted, x, rows, np.arange(1, len(x)), posterior.dof)


def test_moments_are_the_draws_with_correlations_to_first_order(posterior):
    rows, sizes = np.array([0, 3, 3]), np.array([3200, 25_600, TARGET])
    found = posterior.moments(TARGET, rows, sizes)
    ((_, draws),) = posterior._by_prior(posterior._octaves(TARGET), 2000, 1)
    draws = draws[:, :, 0].swapaxes(1, 2)
    ratio = np.log(found.target_variance / draws.var(axis=1))  # a single draw far out counts for much
    assert np.abs(ratio).max() < np.log(2.5)
    assert np.abs(ratio).mean() < 0.15
    expected = np.log(np.exp(draws).mean(axis=1))
    sd = np.sqrt(found.target_variance)
    assert np.all(np.abs(found.target_mean + found.target_variance / 2 - expected) < 0.3 * sd)
    np.testing.assert_allclose(found.shares, posterior.prior_weights)
    correlation = found.covariance / np.sqrt(found.point_variance[:, :, None] * found.target_variance[:, None])
    assert np.all(np.abs(correlation) <= 1)
    assert np.all(np.argmax(correlation, axis=2) == rows)  # a model's own points say most of it


POINTS = [Point(MODELS[0], 3200), Point(MODELS[3], 25_600), Point(MODELS[5], 500)]  # the last between two sizes


@pytest.mark.parametrize("number", range(3))
def test_moments_are_those_of_exact_conditioning(posterior, refit, number):
    found = moments_of(posterior, POINTS)
    point_mean, point_variance = found.point_mean[:, number, None], found.point_variance[:, number, None]
    z = np.mean(point_mean) + np.array([-0.05, 0.0, 0.02])
    evidence, mean, variance = refit(POINTS[number], z)
    density = -((z - point_mean) ** 2) / (2 * point_variance) - np.log(2 * np.pi * point_variance) / 2
    np.testing.assert_allclose(evidence, density, rtol=1e-6)
    gain = found.covariance[:, number] / point_variance  # of every model, under each prior
    expected = found.target_mean[:, None] + gain[:, None] * (z - point_mean)[:, :, None]
    np.testing.assert_allclose(mean, expected, atol=1e-9)
    left = found.target_variance - found.covariance[:, number] * gain
    np.testing.assert_allclose(variance, np.broadcast_to(left[:, None], variance.shape), rtol=1e-6)


def test_drops_agree_with_fantasised_measurements(posterior, refit):
    compared = 0
    for point in (Point(model, 12_800) for model in MODELS):
        found = moments_of(posterior, [point])
        mean, reach = found.point_mean.mean(), 9 * np.sqrt(found.point_variance.max())
        z, step = np.linspace(mean - reach, mean + reach, 201, retstep=True)
        evidence, mean, variance = refit(point, z)
        after = np.mean(np.exp(evidence)[..., None] * np.exp(mean + variance / 2 + posterior.centre), axis=0)
        expected, drops = _drops(found, posterior.centre)
        fantasised = np.sum(after[:, np.argmin(expected)] - after.min(axis=1)) * step
        assert drops[0] == pytest.approx(fantasised, rel=0.01, abs=1e-12), point
        compared += drops[0] > 1e-6
    assert compared >= 3


def test_drops_agree_with_draws_of_a_mixture():
    rng = np.random.default_rng(1)
    target, point = rng.normal(0, 0.1, (3, 4)), rng.normal(0, 0.05, (3, 1))
    roots = rng.normal(0, 0.1, (3, 5, 5))
    covariance = roots @ roots.swapaxes(1, 2)
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    moments = JointMoments(target, variance[:, :4], point, variance[:, 4:], covariance[:, 4:, :4])
    expected, drops = _drops(moments, 0.5)
    draws = [rng.multivariate_normal(np.append(target[p], point[p]), covariance[p], 100_000) for p in range(3)]
    samples = np.concatenate(draws)
    losses, z = np.exp(samples[:, :4] + 0.5), samples[:, 4]
    np.testing.assert_allclose(expected, losses.mean(axis=0), rtol=5e-3)
    # What is expected at each of many narrow ranges of z; the least of them is a little too low.
    bins = np.array_split(losses[np.argsort(z)], 300)
    after = np.mean([found.mean(axis=0).min() for found in bins])
    assert drops[0] == pytest.approx(losses.mean(axis=0).min() - after, rel=0.05)


# What drops are like ------------------------------------------------------------------------------------------


def one_prior(covariance, gap=0.05, sd=0.05):
    """Two models and one point, under one prior."""
    single = np.ones((1, 1))
    target = np.array([[0.0, gap]]), np.array([[0.01, 0.01]])
    return JointMoments(*target, 0 * single, sd**2 * single, np.array([[covariance]]))


def drops_of(moments):
    return _drops(moments, 0.0)[1]


def test_a_ceiling_bounds_what_is_expected():
    wide = one_prior([0.004, 0.0])._replace(target_variance=np.array([[9.0, 0.01]]))
    (free, _), (bounded, other), (still, _) = (
        _drops(wide, 0.0, True, Worth.plain(2)._replace(ceiling=np.full(2, top)))[0] for top in (1e30, 2.0, 1.2)
    )
    assert free == pytest.approx(np.exp(4.5))
    draws = np.exp(3 * np.random.default_rng(0).standard_normal(400_000))
    assert bounded == pytest.approx(np.minimum(draws, 2.0).mean(), rel=5e-3)
    assert still < bounded < free
    assert other == pytest.approx(np.exp(0.055), rel=1e-3)


def test_a_run_at_the_target_is_the_one_to_choose():
    moments = JointMoments(*(np.full((1, 2), x) for x in (0.0, 0.04, 0.1, 0.04)), np.full((1, 2, 2), 0.01))
    measured, own = np.array([np.nan, -0.3]), np.array([[True, False], [False, False]])
    found = _with_runs_at_target(moments, measured, own)
    np.testing.assert_allclose(found.target_mean, [[0.0, -0.3]])
    np.testing.assert_allclose(found.target_variance, [[0.04, 0.0]])
    np.testing.assert_allclose(found.covariance, [[[0.04, 0.0], [0.01, 0.0]]])


def test_a_point_that_says_nothing_of_the_target_is_worth_nothing():
    assert drops_of(one_prior([0.0, 0.0])) == 0


def test_a_point_that_moves_all_models_alike_is_worth_nothing():
    assert drops_of(one_prior([0.004, 0.004])) == 0


def test_small_drops_are_exact():
    # E[max(0, L_0 - L_1) | z] for the difference of two lognormals, as of an option (Black & Scholes).
    from scipy.stats import norm

    for gap in (0.05, 0.3):
        losses = np.exp([0.005, gap + 0.005])
        spread = 0.004 / 0.05  # of log L_0 in z
        d = (np.log(losses[0] / losses[1]) + spread**2 / 2) / spread
        exact = losses[0] * norm.cdf(d) - losses[1] * norm.cdf(d - spread)
        assert 0 < exact < 0.02
        assert drops_of(one_prior([0.004, 0.0], gap))[0] == pytest.approx(exact, rel=0.01)


def test_drops_are_not_negative_and_below_the_regret(advice):
    drops = [found.drop for found in advice.points]
    assert min(drops) >= 0
    assert 0 < max(drops) < advice.regret + 3 * advice.regret_error
    per_cost = [found.drop / found.cost for found in advice.points]
    assert per_cost == sorted(per_cost, reverse=True)


def test_the_choice_is_a_ranking_s_first(by_default):
    found = rank(TABLE, int(TABLE.sizes[-1]), TARGET)
    assert by_default.choice == MODELS[found.order[0]]
    assert by_default.regret == pytest.approx(found.expected_regret.min())


def test_of_two_equal_points_the_cheaper_comes_first(prediction):
    points = [found.point for found in advise(TABLE, TARGET, COSTS, prediction).points[:1]]
    again = Point(points[0].model, points[0].examples + 1)  # as good as the same
    for dear, cheap in ((points[0], again), (again, points[0])):
        found = advise(TABLE, TARGET, {dear: 2.0, cheap: 1.0}, prediction)
        assert [next_point.point for next_point in found.points] == [cheap, dear]


@settings(max_examples=5)
@given(st.permutations(range(len(MODELS))))
def test_the_order_of_models_does_not_matter(by_default, order):
    found = advise(TABLE.select(order), TARGET, dict(reversed(COSTS.items())))
    assert found.choice == by_default.choice
    expected = {next_point.point: next_point.drop for next_point in by_default.points}
    assert {next_point.point for next_point in found.points} == set(expected)
    for next_point in found.points:
        # Every order of the models has draws of its own.
        assert next_point.drop == pytest.approx(expected[next_point.point], rel=0.3, abs=found.regret_error)


def test_without_points_there_is_the_choice_alone(prediction, advice):
    found = advise(TABLE, TARGET, {}, prediction)
    assert found.points == ()
    assert (found.choice, found.regret, found.regret_error) == (advice.choice, advice.regret, advice.regret_error)


def test_a_model_that_may_not_be_chosen_is_neither_the_choice_nor_measured_further(posterior, prediction, advice):
    loss = np.append(TABLE.loss, np.full((1, len(TABLE.sizes)), np.nan), axis=0)
    table = TABLE.barring({advice.choice: "it is too large"})
    costs = relative_costs(table, candidate_points(table, RUNGS))
    assert {point.model for point in costs} == set(MODELS) - {advice.choice}
    found = advise(table, TARGET, costs, replace(prediction, eligible=table.eligible))
    assert found.choice != advice.choice
    losses = posterior.sample(TARGET)[:, table.eligible]
    chosen = [model for model in MODELS if model != advice.choice].index(found.choice)
    assert found.regret == pytest.approx((losses[:, chosen] - losses.min(axis=1)).mean())
    assert all(0 <= next_point.drop <= found.regret + 5 * found.regret_error for next_point in found.points)
    unmeasured = curve_table([*MODELS, "new"], TABLE.sizes, loss).barring({"new": "it cannot write"})
    points = candidate_points(unmeasured, RUNGS)
    assert all(
        next_point.drop is not None for next_point in advise(unmeasured, TARGET, dict.fromkeys(points, 1.0)).points
    )


# By a metric, and within a margin ------------------------------------------------------------------------------


def test_the_choice_of_advice_is_that_of_the_preference():
    rng = np.random.default_rng(0)
    cost = np.array([3.0, 1.0, np.nan, 1.0, 2.0])
    table = replace(TABLE.select(range(5)), parameters=cost)
    for margin in (0.01, 0.3):
        prefer = Preference(margin)
        worth = worth_of(table, TARGET, Prediction(np.ones(5)), None, prefer, {"parameters": cost})
        for scale, values in zip((0.1, 1.0, 7.0) * 10, rng.uniform(1, 1.5, (30, 5)), strict=True):
            right = prefer.among(Prediction(values), {"parameters": cost}).choice
            scaled = scale * values
            assert int(choose(worth, scaled, scale)) == right
            short = [float(shortfall(worth, scaled, scale, i)) / scale for i in range(5)]
            assert short[right] == 0
            assert min(short) >= 0
            for i in range(5):
                if cost[right] < cost[i]:
                    assert short[i] == pytest.approx(values[i] + margin - values[right], rel=1e-4)


def test_measuring_stops_where_the_smallest_is_within_the_margin_whatever_comes(prediction, advice):
    found = advise(TABLE, TARGET, COSTS, prediction, Preference(100.0))
    assert found.choice == MODELS[int(np.argmin(TABLE.parameters))]
    assert (found.regret, max(one.drop for one in found.points)) == (0, 0)
    narrow = advise(TABLE, TARGET, COSTS, prediction, Preference(1e-9))
    for one, same in zip(narrow.points, advice.points, strict=True):
        assert one.drop == pytest.approx(same.drop, rel=1e-3, abs=1e-7)


def test_a_metric_has_points_of_its_own(prediction, advice):
    def with_link(slope):
        value = 1 / (1 + np.exp(-(OFFSETS[:, None] - slope * np.log(TABLE.loss / TABLE.loss.mean()))))
        return replace(TABLE, metrics={"exact_match": Shares(value, np.sqrt(value * (1 - value) / 2000))})

    metric = METRICS["exact_match"]
    table = with_link(2.5)
    found = advise(table, TARGET, COSTS, prediction, metric=metric)
    linked = predict_metric(table, TARGET, metric, prediction)
    assert found.choice == MODELS[int(linked.wrong.order[0])] != advice.choice
    assert (found.unit, found.remark) == ("of exact match", "")
    assert found.regret == pytest.approx(np.nanmin(linked.wrong.expected_regret))
    assert 0 < max(one.drop for one in found.points) < found.regret + 3 * found.regret_error
    unlinked = advise(with_link(0.0), TARGET, COSTS, prediction, metric=metric)
    assert "Exact match cannot be told from the loss" in unlinked.remark
    assert unlinked.remark.endswith("The loss decides.")
    assert (unlinked.choice, unlinked.points) == (advice.choice, advice.points)
    # What is expected of Gaussian log losses is the mean over draws of them.
    worth = worth_of(table, TARGET, prediction, linked, None, {})
    mean, sd = np.log(prediction.score), np.full(len(MODELS), 0.1)
    draws = mean + sd * np.random.default_rng(0).standard_normal((20_000, len(MODELS)))
    rows = np.arange(20_000) % len(linked.link.a)
    wrong = 1 - linked.link.expected(np.exp(draws), rows).mean(axis=0)
    np.testing.assert_allclose(expected_of(worth, mean, sd**2), wrong, atol=2e-3)


# Which points there are ----------------------------------------------------------------------------------------


def test_candidates_are_what_was_not_measured():
    points = candidate_points(TABLE, [0, *RUNGS, 1600])
    assert len(points) == len(set(points)) == len(MODELS) * 4
    assert {point.examples for point in points} == set(RUNGS[4:])
    loss = TABLE.loss.copy()
    loss[2, 3] = np.nan
    assert Point(MODELS[2], 800) in candidate_points(replace(TABLE, loss=loss), RUNGS)


def test_costs_are_flops_where_sizes_are_known():
    point = Point(MODELS[1], 400)
    assert relative_costs(TABLE, [point]) == {point: 6 * TABLE.parameters[1] * 400}
    unknown = replace(TABLE, parameters=np.append(TABLE.parameters[:-1], np.nan))
    assert relative_costs(unknown, [point]) == {point: 400}


def test_points_that_the_fit_needs_come_first_and_alone():
    loss = TABLE.loss.copy()
    loss[1, 1:] = np.nan  # the first size above 0 and later
    loss[4, 2:] = np.nan
    table = replace(TABLE, loss=loss)
    points = candidate_points(table, RUNGS)
    costs = {point: float(point.examples * (3 if point.model == MODELS[4] else 1)) for point in points}
    found = advise(table, TARGET, costs)
    assert [(next_point.point, next_point.drop) for next_point in found.points] == [
        (Point(MODELS[1], 200), None),
        (Point(MODELS[1], 400), None),
        (Point(MODELS[4], 400), None),
    ]
    assert found.choice is found.regret is found.points[0].drop is None
    assert found.batch(0.0) == found.points


def test_a_batch_has_one_point_of_a_model_and_keeps_to_its_cost():
    points = tuple(NextPoint(Point(model, 200), 2.0, 0.1) for model in "aabcd")
    found = Advice(points, "a", 0.1, 0.0)
    assert [next_point.point.model for next_point in found.batch(6.0)] == ["a", "b", "c"]
    assert [next_point.point.model for next_point in found.batch(0.1)] == ["a"]
    assert [next_point.point.model for next_point in found.batch(100.0)] == list("abcd")


BAD = {
    "one model": (TABLE.select([0]), {}, "1 model"),
    "unknown": (TABLE, {Point("nobody", 400): 1.0}, "nobody"),
    "beyond": (TABLE, {Point(MODELS[0], TARGET + 1): 1.0}, str(TARGET + 1)),
    "no examples": (TABLE, {Point(MODELS[0], 0): 1.0}, "at 0 examples"),
    "free": (TABLE, {Point(MODELS[0], 3200): 0.0}, "costs 0.0"),
    "too short": (curve_table("ab", [200, 400], [[3, 2], [3, np.nan]]), {}, "leave b with"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_sentence(kind):
    table, costs, message = BAD[kind]
    with pytest.raises(InputError, match=message) as error:
        advise(table, TARGET, costs)
    assert str(error.value).count(". ") == 0
