import os
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lensjax.core.errors import InputError
from lensjax.curves.laws import LAWS
from lensjax.curves.simulated import simulated
from lensjax.curves.table import curve_table
from lensjax.fit.joint.fitting import fit_joint
from lensjax.fit.posterior import DRAWS, chances_and_regrets, curve_sizes, draws_for
from lensjax.fit.stacked.weights import stack

SIZES = 200 * 2 ** np.arange(10)
BUDGET, HORIZON = 25_600, 102_400


@pytest.fixture(scope="module")
def predicted(posterior):
    return posterior.predict(SIZES)


@pytest.fixture(scope="module")
def sampled(posterior):
    return posterior.sample(HORIZON)


# Predictions --------------------------------------------------------------------------------------------------


def test_intervals_are_ordered_around_the_median(posterior, predicted):
    assert predicted.loss.shape == predicted.lower.shape == predicted.upper.shape == (8, 10)
    assert np.all((predicted.lower > 0) & (predicted.lower < predicted.loss) & (predicted.loss < predicted.upper))


def test_intervals_widen_with_distance(posterior):
    ahead = posterior.predict(np.geomspace(BUDGET, HORIZON, 20))
    width = np.log(ahead.upper / ahead.lower)
    assert np.all(np.diff(width, axis=1) > 0)
    assert np.all(width[:, -1] > 2 * width[:, 0])


def test_intervals_of_a_longer_curve_are_narrower(task, posterior):
    shorter = fit_joint(task.table.up_to(1600), HORIZON)
    width, full = (np.log(p.predict(HORIZON).upper / p.predict(HORIZON).lower) for p in (shorter, posterior))
    assert np.all(width > 1.5 * full)


@pytest.mark.parametrize("count", [1, 31, 32, 33, 70])
def test_sizes_are_asked_about_in_any_number_and_order(posterior, count):
    sizes = np.random.default_rng(count).permutation(np.geomspace(200, HORIZON, count) if count > 1 else [777.0])
    found = posterior.predict(sizes)
    assert found.loss.shape == (8, count)
    for position in {0, count // 2, count - 1}:
        alone = posterior.predict(sizes[position])
        for name in ("loss", "lower", "upper"):
            np.testing.assert_allclose(
                getattr(found, name)[:, [position]], getattr(alone, name), rtol=1e-9, err_msg=name
            )


def test_a_single_size_may_be_of_any_kind_of_number(posterior, predicted):
    for size in (HORIZON, float(HORIZON), np.int64(HORIZON), [HORIZON], np.array([HORIZON])):
        np.testing.assert_allclose(posterior.predict(size).loss, predicted.loss[:, [-1]], rtol=1e-12)


def test_between_sizes_predictions_lie_between(posterior):
    found = posterior.predict(np.array([25_600, 36_204, 51_200])).loss
    assert np.all((found[:, 0] > found[:, 1]) & (found[:, 1] > found[:, 2]))
    np.testing.assert_allclose(found[:, 1] ** 2, found[:, 0] * found[:, 2], rtol=1e-2)


def test_intervals_cover_what_happens(simulate):
    covered = []
    for seed in range(8):
        task = simulate(seed)
        found = fit_joint(task.table, HORIZON).predict(np.array([2 * BUDGET, HORIZON]))
        true = task.measured[:, -2:]
        covered.append((found.lower <= true) & (true <= found.upper))
    assert 0.75 <= np.mean(covered) <= 1.0
    assert np.mean(covered, axis=(1, 2)).min() >= 0.4


def test_intervals_cover_noise_of_runs_to_come(simulate):
    # Within the data the curve is well known, and a new run's loss uncertain by its own noise.
    covered = []
    for seed in range(4):
        task = simulate(seed, noise=0.02, jump=0.0)
        found = fit_joint(task.table, HORIZON).predict(SIZES[:8])
        again = task.truth[:, :8] * np.exp(0.02 * np.random.default_rng(seed).standard_normal((8, 8)))
        covered.append((found.lower <= again) & (again <= found.upper))
    assert np.mean(covered) > 0.8


# Draws --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [800, HORIZON])
def test_predictions_are_quantiles_of_the_draws(posterior, size):
    draws, predicted = posterior.sample(size), posterior.predict(size)
    assert draws.shape == (DRAWS, 8)
    assert np.all(draws > 0)
    for quantile, expected in zip((0.5, 0.05, 0.95), predicted.parts, strict=True):
        share = np.mean(draws < expected[:, 0], axis=0)
        np.testing.assert_allclose(share, quantile, atol=4 * np.sqrt(quantile * (1 - quantile) / DRAWS))


def test_predictions_of_unlike_priors_are_quantiles_not_moments():
    """One sudden drop among smooth curves: the priors disagree on how far it goes on."""
    loss = [[3.2, 3.1, 3.0, 2.4, 1.6], [3.1, 2.8, 2.5, 2.2, 2.0], [3.0, 2.7, 2.5, 2.35, 2.2]]
    for losses in (loss, [[5, 5, 5, 1, 1], [4, 3.8, 3.6, 3.4, 3.2]]):
        posterior = fit_joint(curve_table("abc"[: len(losses)], SIZES[:5], losses), 51_200)
        draws, predicted = posterior.sample(51_200), posterior.predict(51_200)
        for quantile, expected in zip((0.5, 0.05, 0.95), predicted.parts, strict=True):
            np.testing.assert_allclose(np.mean(draws < expected[:, 0], axis=0), quantile, atol=1e-3)


def test_draws_are_of_every_prior_by_its_weight(posterior):
    ((_, by_prior),) = posterior._by_prior(posterior._octaves(HORIZON), DRAWS, 0)
    by_prior = by_prior[:, :, 0] + posterior.centre
    weights = posterior.prior_weights
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)
    expected = np.einsum("p,pms->m", weights, by_prior) / by_prior.shape[2]
    sd = by_prior.std(axis=(0, 2))
    assert np.all(np.abs(np.log(posterior.sample(HORIZON)).mean(axis=0) - expected) < 0.05 * sd)


def test_draws_are_joint_over_models(task, posterior):
    # Models share slopes, so that their losses are not independent.
    draws = np.log(posterior.sample(HORIZON, draws=20_000))
    correlation = np.corrcoef(draws.T)[np.triu_indices(8, 1)]
    assert correlation.mean() > 5 / np.sqrt(20_000)


def test_draws_follow_their_seed(posterior, sampled):
    np.testing.assert_array_equal(posterior.sample(HORIZON, seed=0), sampled)
    assert np.all(posterior.sample(HORIZON, seed=1) != sampled)
    np.testing.assert_array_equal(posterior.sample(HORIZON, seed=1), posterior.sample(HORIZON, seed=1))


@pytest.mark.parametrize("draws", [1, 3, 128, 129])
def test_any_number_of_draws(posterior, sampled, draws):
    found = posterior.sample(HORIZON, draws=draws)
    assert found.shape == (draws, 8)
    low, high = sampled.min(axis=0), sampled.max(axis=0)
    assert np.all((found >= low - (high - low) / 2) & (found <= high + (high - low) / 2))


# No rise ------------------------------------------------------------------------------------------------------


ENDING_IN_A_FALL = [[0.0] * 7] * 6 + [[0.5, 0.25] + [0.0] * 5, [0.0] * 4 + [0.5, 0.0, 0.0]]


def with_falls(falls, noise, points):
    """A table of curves that fall so in each octave."""
    path = np.pad(-np.cumsum(falls, axis=1), ((0, 0), (1, 0)))[:, :points]
    loss = 3 * np.exp(path + noise * np.random.default_rng(0).standard_normal(path.shape))
    return curve_table([f"m{i}" for i in range(len(loss))], SIZES[:points], loss)


@settings(max_examples=int(os.environ.get("LENSJAX_EXAMPLES", "6")))
@given(
    st.lists(st.lists(st.floats(-0.2, 0.5), min_size=7, max_size=7), min_size=1, max_size=8),
    st.sampled_from([0.0, 0.003, 0.03]),
    st.integers(2, 8),
)
@example(ENDING_IN_A_FALL, 0.03, 6)
def test_medians_do_not_rise_beyond_the_data_and_are_those_of_the_draws(falls, noise, points):
    """Of any curves, also where the data rise: then the last losses are noise or a jump."""
    table = with_falls(falls, noise, points)
    loss, posterior = table.loss, fit_joint(table, HORIZON)
    ahead = posterior.predict(SIZES[table.sizes[-1] <= SIZES])
    for part in ahead.parts:
        assert np.isfinite(part).all()
    assert np.all(np.diff(ahead.loss, axis=1) <= 1e-12)
    draws = posterior.sample(HORIZON)
    np.testing.assert_allclose(np.quantile(draws, 0.5, axis=0), ahead.loss[:, -1], rtol=1e-3)
    # A hopeless model has no chance of becoming the best by an interval without bounds.
    assert np.all(ahead.upper[:, -1] < 2 * loss.max(axis=1))


def test_moments_are_those_of_draws_where_a_median_stays():
    table, model, size = with_falls(ENDING_IN_A_FALL, 0.03, 6), np.array([7]), SIZES[6:7]
    joint = fit_joint(table, HORIZON)
    assert joint._known(joint._octaves(size)).lowered[7, 0] < -0.01
    for posterior in (joint, stack(table, joint, HORIZON)):
        drawn = np.log(posterior.sample(int(size[0]), 4000))[:, 7] - joint.centre
        found = posterior.moments(HORIZON, model, size)
        np.testing.assert_allclose(found.shares @ found.point_mean[:, 0], drawn.mean(), atol=0.015)
        found = posterior.together(model, size)
        np.testing.assert_allclose(found.shares @ found.mean[:, 0], drawn.mean(), atol=0.015)


@pytest.mark.parametrize(("b", "beta", "e"), [(20, 0.4, 1.0), (10, 0.3, 0.8)])
def test_laws_with_a_floor_are_continued_without_rise(b, beta, e):
    sizes, far = SIZES[:5], np.array([3200, 51_200, 204_800, 1_638_400, 1e8, 1e12])
    posterior = fit_joint(curve_table(["a"], sizes, [b / sizes**beta + e]), 10**12)
    found = posterior.predict(far)
    assert np.all(np.diff(found.loss) <= 0)
    true = b / far**beta + e
    assert np.all((found.lower[0] < true) & (true < found.upper[0]))
    np.testing.assert_allclose(np.log(found.loss[0] / true)[:4], 0, atol=0.3)
    assert np.isfinite(posterior.examples_needed(1.2)[0, :2]).all()


def test_of_equal_losses_the_one_of_least_regret_is_the_best():
    losses = np.array([[0.0, 0.0, 9.0], [0.5, 0.0, 9.0], [0.0, 0.0, 9.0], [0.2, 0.2, 0.0]])
    chances, regrets = chances_and_regrets(losses, np.array([True, True, False]))
    np.testing.assert_array_equal(chances, [0, 1, np.nan])
    np.testing.assert_allclose(regrets, [0.125, 0, np.nan])
    twins, _ = chances_and_regrets(losses[:, [1, 1]], np.array([True, True]))
    np.testing.assert_array_equal(twins, [1, 0])


# Choices ------------------------------------------------------------------------------------------------------


def test_probability_best_is_how_often_a_model_is(posterior, predicted, sampled):
    probability = posterior.probability_best(HORIZON)
    assert probability.shape == (8,)
    np.testing.assert_allclose(probability.sum(), 1, rtol=1e-12)
    assert np.all(probability >= 0)
    assert np.argmax(probability) == np.argmin(predicted.loss[:, -1])
    best = np.argmin(sampled, axis=1)
    np.testing.assert_allclose(probability, [np.mean(best == i) for i in range(8)], rtol=1e-12)


def test_expected_regret_is_that_of_the_draws(posterior, predicted, sampled):
    regret = posterior.expected_regret(HORIZON)
    assert regret.shape == (8,)
    assert np.all(regret >= 0)
    assert np.argmin(regret) == np.argmin(predicted.loss[:, -1])
    np.testing.assert_allclose(regret, (sampled - sampled.min(axis=1)[:, None]).mean(axis=0), rtol=1e-12)
    # Differences of regret are differences of expected loss.
    np.testing.assert_allclose(np.diff(regret), np.diff(sampled.mean(axis=0)), rtol=1e-9)


def test_a_model_far_better_than_others_is_best_for_sure(task):
    loss = task.table.loss.copy()
    loss[5] /= 10
    posterior = fit_joint(replace(task.table, loss=loss), HORIZON)
    np.testing.assert_array_equal(posterior.probability_best(HORIZON), np.arange(8) == 5)
    regret = posterior.expected_regret(HORIZON)
    assert regret[5] == 0
    assert np.all(regret[np.arange(8) != 5] > 0.1)


def test_like_models_are_best_alike(task):
    table = task.table.select([0] * 8)
    table = replace(table, models=task.table.models)
    probability = fit_joint(table, HORIZON).probability_best(HORIZON)
    np.testing.assert_allclose(probability, 1 / 8, atol=5 * np.sqrt(1 / 8 * 7 / 8 / DRAWS))


# Examples needed ----------------------------------------------------------------------------------------------


def test_examples_needed_inverts_predictions(posterior):
    for size in (51_200, 80_000, HORIZON):
        aim = posterior.predict(size)
        for model in range(8):
            for column, curve in enumerate((aim.loss, aim.lower, aim.upper)):
                needed = posterior.examples_needed(float(curve[model, 0]) * (1 + 1e-9))
                np.testing.assert_allclose(needed[model, column], size, rtol=2e-2 if size < HORIZON else 1e-3)


def test_examples_needed_are_ordered(posterior, predicted):
    for loss in np.geomspace(predicted.lower.min() / 2, predicted.upper.max() * 2, 9):
        median, optimistic, pessimistic = posterior.examples_needed(loss).T
        assert np.all(optimistic <= median)
        assert np.all(median <= pessimistic)


def test_examples_needed_where_a_loss_is_reached_already_or_never(posterior, predicted):
    np.testing.assert_allclose(posterior.examples_needed(2 * predicted.upper.max()), 200, rtol=1e-12)
    np.testing.assert_array_equal(posterior.examples_needed(predicted.lower.min() / 2), np.inf)
    # What the median does not reach, an optimist may.
    aim = np.sqrt(predicted.loss[0, -1] * predicted.lower[0, -1])
    median, optimistic, pessimistic = posterior.examples_needed(aim)[0]
    assert np.isinf([median, pessimistic]).all()
    assert optimistic < HORIZON


def test_lower_losses_need_more_examples(posterior, predicted):
    needed = np.stack([posterior.examples_needed(loss) for loss in np.geomspace(4, 0.5, 30)])
    assert np.all((needed[1:] >= needed[:-1]) | np.isinf(needed[1:]))


# Parameters ---------------------------------------------------------------------------------------------------


def law_curves(posterior):
    found = posterior.law_parameters()
    b, d_l, beta, e = (found[name][:, None] for name in ("B", "D_l", "beta", "E"))
    return b / (d_l + SIZES**beta) + e


def test_law_parameters_are_those_of_a_law(posterior):
    found = posterior.law_parameters()
    assert set(found) == set(LAWS["rectified"].parameters)
    assert all(values.shape == (8,) for values in found.values())
    assert all(np.all(np.isfinite(values) & (values >= 0)) for values in found.values())
    assert np.all(found["B"] > 0)
    assert np.all(found["beta"] > 0)


@pytest.mark.parametrize("noise", [0.0, 0.004])
@pytest.mark.parametrize("seed", [0, 3, 6])
def test_law_parameters_describe_the_predicted_curves(simulate, seed, noise):
    task = simulate(seed, noise=noise, jump=noise)
    posterior = fit_joint(task.table, HORIZON)
    np.testing.assert_allclose(law_curves(posterior), posterior.predict(SIZES).loss, rtol=0.02)


# Wrong questions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 199, -5, 102_401, 10**15, np.nan, np.inf])
@pytest.mark.parametrize("ask", ["predict", "sample", "probability_best", "expected_regret"])
def test_sizes_outside_the_fitted_range_are_refused(posterior, ask, size):
    with pytest.raises(InputError, match=r"outside the fitted range 200 to 102400"):
        getattr(posterior, ask)(size)


def test_one_size_outside_among_others_is_named(posterior):
    with pytest.raises(InputError, match="Losses at 150 examples"):
        posterior.predict(np.array([200.0, 400.0, 150.0]))


def test_ends_of_the_fitted_range_may_be_asked_about(task, posterior):
    assert np.isfinite(posterior.predict([200, HORIZON]).loss).all()
    odd = fit_joint(task.table, 99_999)  # not a whole number of octaves
    assert np.isfinite(odd.predict([99_999]).loss).all()
    with pytest.raises(InputError, match="outside"):
        odd.predict(100_000)


@pytest.mark.parametrize("loss", [0.0, -1.0, np.nan, np.inf])
def test_a_loss_to_reach_must_be_a_positive_number(posterior, loss):
    with pytest.raises(InputError, match="positive number"):
        posterior.examples_needed(loss)


def test_a_posterior_is_not_changed(posterior):
    with pytest.raises(FrozenInstanceError):
        posterior.unit = 100


def test_no_sizes_have_no_losses(posterior):
    assert posterior.predict(np.array([])).loss.shape == (8, 0)


# Exact curves -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [200, 1600, BUDGET, HORIZON])
def test_draws_of_exact_curves_are_numbers(size):
    exact = 2 * SIZES[:8] ** -np.linspace(0.05, 0.12, 8)[:, None]
    posterior = fit_joint(curve_table("abcdefgh", SIZES[:8], exact), HORIZON)
    draws = posterior.sample(size)
    assert np.isfinite(draws).all()
    np.testing.assert_allclose(draws, np.broadcast_to(2 * size ** -np.linspace(0.05, 0.12, 8), draws.shape), rtol=0.1)


def test_of_many_models_fewer_curves_are_drawn_and_all_agree():
    """Blocks of models, the sample and the quantiles are of the same draws."""
    assert [draws_for(models) for models in (1, 1000, 2000, 4000, 30_000)] == [4000, 4000, 2000, 1000, 1000]
    many = fit_joint(simulated(models=70, families=9, sizes=SIZES[:5]), 51_200)
    draws, predicted = many.sample(51_200), many.predict([800, 51_200])
    for quantile, expected in zip((0.5, 0.05, 0.95), predicted.parts, strict=True):
        np.testing.assert_allclose(np.mean(draws < expected[:, 1], axis=0), quantile, atol=1e-3)
    draws[:] = 0  # what a caller does to its sample is its own affair
    assert many.sample(51_200).min() > 0
    np.testing.assert_allclose(replace(many).predict(51_200).loss, predicted.loss[:, 1:], rtol=1e-12)  # not sampled
    assert many._octaves(SIZES[4])[0] in many._remembered, "last losses, asked for next, would take draws of their own"
    np.testing.assert_allclose(replace(many).predict(SIZES[4]).parts, many.predict(SIZES[4]).parts, rtol=1e-12)
    # Of few models only what is of them is computed.
    model, examples = np.array([69, 3, 3, 40]), np.array([51_200, 6400, 51_200, 6400])
    found = many.together(model, examples)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lensjax.fit.joint.posterior.FEW", 100)
        for part, expected in zip(found, replace(many).together(model, examples), strict=True):
            np.testing.assert_allclose(part, expected, rtol=1e-9)
    assert [len(curve_sizes(200, 10**6, models)) for models in (3000, 4000)] == [30, 12]
