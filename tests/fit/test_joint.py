from dataclasses import fields, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensjax.core.errors import InputError
from lensjax.curves.simulated import simulated
from lensjax.curves.table import curve_table
from lensjax.fit.joint import fitting as joint
from lensjax.fit.joint.fitting import JointSettings, fit_joint
from lensjax.fit.joint.hierarchy import Conditional
from lensjax.fit.joint.observing import observe
from lensjax.fit.joint.slopes import NOISE

jax.tree_util.register_dataclass(Conditional, [field.name for field in fields(Conditional)], [])  # for comparisons

SIZES = 200 * 2 ** np.arange(10)
HORIZON = 102_400


def log_gap(found, expected):
    """Largest difference of medians in log loss."""
    return np.abs(np.log(found.loss / expected.loss)).max()


def assert_same(found, expected, atol=1e-6):
    """Same medians and intervals, in log loss."""
    for name in ("loss", "lower", "upper"):
        one, other = np.log(getattr(found, name)), np.log(getattr(expected, name))
        np.testing.assert_allclose(one, other, rtol=0, atol=atol, err_msg=name)


def assert_sensible(losses, table, least=0.3):
    """Finite, ordered, not far above the measured losses, and not below a share of the least of them."""
    assert np.isfinite([losses.loss, losses.lower, losses.upper]).all()
    assert np.all(losses.lower <= losses.loss)
    assert np.all(losses.loss <= losses.upper)
    known = table.loss[:, table.sizes > 0]
    assert np.all(losses.loss < 1.3 * np.nanmax(known, axis=1)[:, None])
    assert np.all(losses.loss > least * np.nanmin(known, axis=1)[:, None])


def log_rmse(predicted, true):
    return np.sqrt(np.mean(np.log(predicted / true) ** 2))


def many(loss, sizes=SIZES, **known):
    return curve_table([f"model{i}" for i in range(len(loss))], sizes[: loss.shape[1]], loss, **known)


def evidence(posterior):
    return np.asarray(posterior.fitted.given.evidence).sum()


@pytest.fixture(scope="module")
def predicted(posterior):
    return posterior.predict(SIZES)


# Recovery -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_horizon_is_predicted_well_below_the_error_of_sub_tuning(simulate, seed):
    task = simulate(seed)
    losses = fit_joint(task.table, HORIZON).predict(HORIZON)
    assert_sensible(losses, task.table)
    true = task.measured[:, -1]
    error = log_rmse(losses.loss[:, 0], true)
    assert error < 0.25 * log_rmse(task.table.loss[:, -1], true)
    assert error < 0.05


def test_measured_losses_are_reproduced(task, predicted):
    kept = task.sizes <= task.table.sizes[-1]
    assert log_rmse(predicted.loss[:, kept], task.measured[:, kept]) < 0.006


@pytest.mark.parametrize("points", [6, 8])
def test_exact_power_laws_are_continued(points):
    rng = np.random.default_rng(0)
    exponent, level = rng.uniform(0.04, 0.2, (8, 1)), np.exp(rng.standard_normal((8, 1)))
    loss = level * SIZES**-exponent
    found = fit_joint(many(loss[:, :points]), HORIZON).predict(HORIZON).loss
    np.testing.assert_allclose(found[:, 0], loss[:, -1], rtol=0.02)


def test_exact_rectified_laws_are_continued(simulate):
    task = simulate(5, noise=0.0, jump=0.0)
    found = fit_joint(task.table, HORIZON).predict(HORIZON).loss
    np.testing.assert_allclose(found[:, 0], task.truth[:, -1], rtol=0.03)


@pytest.mark.parametrize("fall", [0.0, 0.05])
def test_equal_curves_have_equal_predictions(fall):
    loss = np.tile(2 * np.exp(-fall * np.arange(8)), (8, 1))
    table = many(loss, parameters=np.full(8, 1e8), families=["one"] * 8)
    found = fit_joint(table, HORIZON).predict(HORIZON)
    np.testing.assert_allclose(found.loss, 2 * np.exp(-9 * fall), rtol=3e-2)
    np.testing.assert_allclose(found.loss, found.loss[0, 0], rtol=3e-3)  # each has draws of its own
    assert np.all(np.isfinite(found.upper) & (found.upper > found.lower))


def test_intervals_of_exact_curves_are_numbers():
    table = many(2 * SIZES[:8] ** -np.linspace(0.05, 0.12, 8)[:, None])
    posterior = fit_joint(table, HORIZON)
    assert_sensible(posterior.predict(SIZES), table)
    assert np.isfinite([posterior.sample(size) for size in SIZES]).all()


# Invariances --------------------------------------------------------------------------------------------------


def test_the_same_table_gives_the_same_result_to_the_bit(task, posterior, predicted):
    again = fit_joint(task.table, HORIZON)
    jax.tree.map(np.testing.assert_array_equal, again.fitted, posterior.fitted)
    np.testing.assert_array_equal(again.predict(SIZES).loss, predicted.loss)
    np.testing.assert_array_equal(again.predict(SIZES).upper, predicted.upper)


@pytest.mark.parametrize("double", [False, True])
def test_precision_of_the_caller_matters_not(task, posterior, predicted, double):
    with jax.enable_x64(double):
        again = fit_joint(task.table, HORIZON)
        np.testing.assert_array_equal(again.predict(SIZES).loss, predicted.loss)
        assert jnp.ones(1).dtype == (jnp.float64 if double else jnp.float32)
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(posterior.fitted))


def test_order_of_models_changes_nothing_else(task, predicted):
    order = np.random.default_rng(1).permutation(8)
    found = fit_joint(task.table.select(order), HORIZON).predict(SIZES)
    back = np.argsort(order)
    again = replace(found, loss=found.loss[back], lower=found.lower[back], upper=found.upper[back])
    assert_same(again, predicted, atol=0.02)  # each has draws of its own


def test_names_of_models_and_families_mean_nothing(task, predicted):
    renamed = replace(
        task.table,
        models=tuple(f"other{i}" for i in range(8)),
        families=tuple({"family0": "z", "family1": "a b", "family2": "ß"}[f] for f in task.table.families),
    )
    assert_same(fit_joint(renamed, HORIZON).predict(SIZES), predicted, atol=1e-12)


def test_unit_of_loss_carries_over(task, posterior, predicted):
    in_bits = fit_joint(replace(task.table, loss=task.table.loss / np.log(2)), HORIZON)
    law = posterior.law_parameters()
    for name, values in in_bits.law_parameters().items():
        expected = law[name] / (np.log(2) if name in ("B", "E") else 1)
        np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-9, err_msg=name)
    found = in_bits.predict(SIZES)
    in_nats = replace(found, **{name: getattr(found, name) * np.log(2) for name in ("loss", "lower", "upper")})
    assert_same(in_nats, predicted)


def test_unit_of_size_carries_over(task, predicted):
    tenfold = fit_joint(replace(task.table, sizes=10 * task.table.sizes), 10 * HORIZON)
    assert_same(tenfold.predict(10 * SIZES), predicted)


def test_pretrained_losses_are_not_used(task, predicted):
    loss = task.table.loss.copy()
    loss[:, 0] = np.nan
    loss[3, 0] = 1e6
    assert_same(fit_joint(replace(task.table, loss=loss), HORIZON).predict(SIZES), predicted, atol=0)


def test_sizes_that_nobody_measured_are_not_used(task, predicted):
    empty = np.full((8, 2), np.nan)
    sizes = np.concatenate([[0, 100], task.table.sizes[1:], [HORIZON * 4]])
    loss = np.concatenate([task.table.loss[:, :1], empty[:, :1], task.table.loss[:, 1:], empty[:, 1:]], axis=1)
    table = curve_table(task.table.models, sizes, loss, parameters=task.table.parameters, families=task.table.families)
    assert_same(fit_joint(table, HORIZON).predict(SIZES), predicted, atol=1e-9)


# Incomplete and odd tables ------------------------------------------------------------------------------------


def test_unequal_lengths(task, predicted):
    loss = task.table.loss.copy()
    for i, points in enumerate([8, 7, 6, 5, 4, 3, 2, 8]):
        loss[i, 1 + points :] = np.nan
    found = fit_joint(replace(task.table, loss=loss), HORIZON).predict(SIZES)
    assert_sensible(found, replace(task.table, loss=loss))
    assert log_rmse(found.loss[:, -1], task.measured[:, -1]) < 0.15
    # Less is known of shorter curves.
    width, full = (np.log(losses.upper / losses.lower)[:, -1] for losses in (found, predicted))
    assert np.all(width[2:7] > full[2:7])


def test_missing_points(task):
    loss = task.table.loss.copy()
    missing = np.random.default_rng(2).random(loss.shape) < 0.4
    missing[:, 2:4] = False
    missing[0, 1] = True  # a curve that begins later than others
    loss[missing] = np.nan
    table = replace(task.table, loss=loss)
    found = fit_joint(table, HORIZON).predict(SIZES)
    assert_sensible(found, table)
    assert log_rmse(found.loss[:, -1], task.measured[:, -1]) < 0.08
    # Gaps are filled in.
    assert np.abs(np.log(found.loss[:, :8] / task.measured[:, :8]))[missing[:, 1:]].max() < 0.08


def test_two_points_each(task, predicted):
    table = task.table.up_to(400)
    found = fit_joint(table, HORIZON).predict(SIZES)
    assert_sensible(found, table, least=0.2)
    assert log_rmse(found.loss[:, -1], task.measured[:, -1]) < 0.5 * log_rmse(table.loss[:, -1], task.measured[:, -1])
    assert np.all(found.upper / found.lower > predicted.upper / predicted.lower)


def test_one_model(task):
    table = task.table.select([0])
    posterior = fit_joint(table, HORIZON)
    found = posterior.predict(SIZES)
    assert found.loss.shape == (1, 10)
    assert_sensible(found, table)
    np.testing.assert_allclose(found.loss[:, -1], task.measured[:1, -1], rtol=0.1)


def test_unknown_sizes_and_families(task):
    some = replace(
        task.table,
        parameters=np.where(np.arange(8) < 4, np.nan, task.table.parameters),
        families=("", "", *task.table.families[2:]),
    )
    none = replace(task.table, parameters=np.full(8, np.nan), families=("",) * 8)
    for table in (some, none):
        found = fit_joint(table, HORIZON).predict(SIZES)
        assert_sensible(found, table)
        assert log_rmse(found.loss[:, -1], task.measured[:, -1]) < 0.05


def test_models_of_unknown_family_are_families_of_their_own(task):
    found = [
        fit_joint(replace(task.table, families=families), HORIZON).predict(SIZES)
        for families in (("",) * 8, tuple("abcdefgh"))
    ]
    assert_same(*found, atol=1e-12)


def test_sizes_off_the_doubling_grid(simulate):
    sizes = np.array([200, 333, 700, 999, 2500, 6000, 17_000, 20_001])
    exponent = np.linspace(0.06, 0.14, 8)[:, None]
    rng = np.random.default_rng(0)
    loss = 3 * sizes**-exponent * np.exp(0.004 * rng.standard_normal((8, 8)))
    posterior = fit_joint(many(loss, sizes), 100_000)
    for size in (200, 1234, 20_001, 77_777, 100_000):
        found = posterior.predict(size)
        assert_sensible(found, many(loss, sizes))
        assert log_rmse(found.loss, 3.0 * size**-exponent) < 0.02


def test_horizon_at_the_largest_measured_size(task):
    kept = np.array([0, 1, 2, 3, 4, 6, 8, 9])
    table = curve_table(task.table.models, SIZES[kept], task.measured[:, kept])
    found = fit_joint(table, HORIZON).predict(HORIZON)
    assert_sensible(found, table)
    assert log_rmse(found.loss[:, 0], task.measured[:, -1]) < 0.01


def test_more_seeds_are_more_precise(task, predicted):
    seeds = task.table.seeds.copy()
    seeds[3] = 16
    found = fit_joint(replace(task.table, seeds=seeds), HORIZON).predict(SIZES)
    width, before = (np.log(losses.upper / losses.lower)[:, :8] for losses in (found, predicted))
    others = np.arange(8) != 3
    assert np.all(width[3] < width[others])
    assert np.all(width[3] < 0.9 * before[3])
    measured = task.measured[3, :8]
    assert np.abs(np.log(found.loss[3, :8] / measured)).max() < np.abs(np.log(predicted.loss[3, :8] / measured)).max()


def test_wrong_inputs_are_named(task):
    table = task.table
    short = table.loss.copy()
    short[4, 2:] = np.nan
    with pytest.raises(InputError, match=r"two sizes above 0.*model4"):
        fit_joint(replace(table, loss=short), HORIZON)
    with pytest.raises(InputError, match="two sizes above 0"):
        fit_joint(table.up_to(0), HORIZON)
    with pytest.raises(InputError, match="two sizes above 0"):
        fit_joint(table.select([]), HORIZON)
    with pytest.raises(InputError, match=r"horizon of 25599 .* below the measured 25600"):
        fit_joint(table, 25_599)


# Covariates ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def explained():
    """Straight lines whose slopes a covariate explains, the last two known from two points alone."""
    rng = np.random.default_rng(3)
    covariate = rng.permutation(np.linspace(-1.5, 1.5, 8))
    covariate[[6, 7]] = [1.4, -1.4]
    line = np.log(rng.uniform(1.5, 3, (8, 1))) - 0.06 * (1 + 0.5 * covariate[:, None]) * np.arange(10)
    loss = np.exp(line + 0.006 * rng.standard_normal(line.shape))
    known = loss[:, :8].copy()
    known[6:, 2:] = np.nan
    return many(known), covariate, np.exp(line[:, -1])


def test_an_informative_covariate_raises_the_evidence_and_lowers_the_error(explained):
    table, covariate, true = explained
    informed = fit_joint(table, HORIZON, {"ntk": covariate})
    misinformed = fit_joint(table, HORIZON, {"ntk": np.random.default_rng(1).permutation(covariate)})
    without = fit_joint(table, HORIZON)
    assert evidence(informed) > evidence(without) + 3
    assert evidence(informed) > evidence(misinformed) + 3
    error, other = (log_rmse(p.predict(HORIZON).loss[6:, 0], true[6:]) for p in (informed, without))
    assert error < 0.7 * other


def test_unit_of_a_covariate_matters_not(explained):
    table, covariate, _ = explained
    found = [fit_joint(table, HORIZON, {"ntk": z}).predict(SIZES) for z in (covariate, 1e4 * covariate - 7e5)]
    assert_same(*found)


def test_a_small_unit_of_a_covariate_matters_not(explained):
    table, covariate, _ = explained
    found = [fit_joint(table, HORIZON, {"ntk": z}).predict(SIZES) for z in (covariate, 1e-12 * covariate)]
    assert_same(*found)


def test_unknown_and_constant_covariates(explained):
    table, covariate, _ = explained
    without = fit_joint(table, HORIZON).predict(SIZES)
    one = np.where(np.arange(8) == 2, covariate, np.nan)
    for nothing in (np.full(8, np.nan), np.full(8, 3.7), np.where(np.arange(8) < 3, np.nan, 3.7), one):
        assert_same(fit_joint(table, HORIZON, {"ntk": nothing}).predict(SIZES), without)
    partly = fit_joint(table, HORIZON, {"ntk": np.where(np.arange(8) == 1, np.nan, covariate)})
    assert_sensible(partly.predict(SIZES), table)
    assert evidence(partly) > evidence(fit_joint(table, HORIZON))


def test_covariates_may_be_lists_and_integers(explained):
    table, *_ = explained
    ranks = [3, 1, 4, 1, 5, 9, 2, 6]
    found = [
        fit_joint(table, HORIZON, {"rank": z}).predict(SIZES)
        for z in (ranks, np.array(ranks, np.int32), jnp.array(ranks, jnp.float32))
    ]
    assert_same(found[0], found[1], atol=0)
    assert_same(found[0], found[2], atol=0)


@pytest.mark.parametrize(
    "values", [np.zeros(7), np.zeros((8, 1)), 1.0, [], [np.inf] * 8, [-np.inf] + [0.0] * 7], ids=str
)
def test_wrong_covariates_are_named(task, values):
    with pytest.raises(InputError, match=r"covariate 'ntk' needs one finite number .* 8 models"):
        fit_joint(task.table, HORIZON, {"ntk": values})


# Robustness ---------------------------------------------------------------------------------------------------


def disturbed(table, kind):
    loss = table.loss.copy()
    loss[2, 5 if kind == "outlier" else slice(5, None)] *= 1.3
    return replace(table, loss=loss)


@pytest.mark.parametrize("kind", ["outlier", "jump"])
def test_one_bad_step_barely_moves_other_models(task, predicted, kind):
    found = fit_joint(disturbed(task.table, kind), HORIZON).predict(SIZES)
    moved = np.log(found.loss / predicted.loss)
    others = np.arange(8) != 2
    assert np.abs(moved[others]).max() < 0.01
    # Nor does it bend its own model's curve: an outlier leaves no trace, a jump stays a jump.
    np.testing.assert_allclose(moved[2, -1], 0 if kind == "outlier" else np.log(1.3), atol=0.03)


# One prior alone, Gaussian, without level and jumps, all amplitudes held to their medians.
PLAIN = JointSettings(priors=("damped",), dof=1e6, level=False, jumps=False, amplitude_sd=1e-4)


def test_robustness_is_that_of_jumps_and_student_s_t(task, predicted):
    before, after = (
        fit_joint(table, HORIZON, settings=PLAIN).predict(SIZES)
        for table in (task.table, disturbed(task.table, "outlier"))
    )
    robust = fit_joint(disturbed(task.table, "outlier"), HORIZON).predict(SIZES)
    assert log_gap(robust, predicted) < 0.3 * log_gap(after, before)


# Widening -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def surprised(task):
    """A fit of curves that leave their ways at the largest size."""
    loss = task.table.loss.copy()
    loss[:, -1] *= np.exp(0.3 * (-1.0) ** np.arange(8))
    return fit_joint(replace(task.table, loss=loss), HORIZON)


def test_intervals_widen_by_what_was_not_foreseen_at_the_largest_sizes(posterior, surprised):
    assert posterior.widening == 1.0  # simulated as modelled
    assert surprised.widening > 1.5
    modelled = replace(surprised, widening=1.0, own_widening=None)
    wide, narrow = surprised.predict(HORIZON), modelled.predict(HORIZON)
    assert np.all(wide.upper / wide.lower > narrow.upper / narrow.lower)
    cells = np.arange(8), np.full(8, 51_200)
    wide, narrow = (one.moments(HORIZON, *cells) for one in (surprised, modelled))
    for name in ("target_variance", "point_variance"):
        assert np.all(np.asarray(getattr(wide, name)) > np.asarray(getattr(narrow, name)))


def test_one_model_that_surprises_widens_its_own_intervals_alone(task, posterior):
    loss = task.table.loss.copy()
    loss[2, -1] *= np.exp(0.3)
    found = fit_joint(replace(task.table, loss=loss), HORIZON)
    assert found.widening == 1.0
    np.testing.assert_array_equal(found.own_widening > 1, np.arange(8) == 2)
    assert [one.model for one in found.outliers()] == ["model2"]
    assert found.outliers()[0].examples == 25_600
    assert posterior.outliers() == []


def test_intervals_may_be_left_as_modelled(task, posterior, monkeypatch):
    monkeypatch.setattr(joint, "widenings", lambda errors, *_: (2.0, np.full(8, 2.0)))
    assert fit_joint(task.table, HORIZON).widening == 2.0
    assert fit_joint(task.table, HORIZON, settings=JointSettings(widen=False)).widening == 1.0
    assert fit_joint(task.table.up_to(400), HORIZON).widening == 1.0  # two sizes, of which none can be spared


# Settings -----------------------------------------------------------------------------------------------------


def test_without_most_ingredients(task, predicted):
    posterior = fit_joint(task.table, HORIZON, settings=PLAIN)
    assert posterior.observations.covariates.shape == (8, 2)
    np.testing.assert_array_equal(posterior.fitted.scales.jump, 0)
    np.testing.assert_allclose(posterior.fitted.scales.noise, NOISE, rtol=1e-2)
    for part in posterior.fitted.weights:
        np.testing.assert_allclose(part, 1.0, rtol=1e-3)
    found = posterior.predict(SIZES)
    assert_sensible(found, task.table)
    assert 1e-4 < log_gap(found, predicted) < 0.1


def test_without_family_and_size_is_as_if_they_were_unknown(task, predicted):
    found = fit_joint(task.table, HORIZON, settings=JointSettings(family=False, size=False))
    assert found.observations.covariates.shape == (8, 2)
    np.testing.assert_array_equal(np.sort(found.observations.family), np.arange(8))
    unknown = replace(task.table, parameters=np.full(8, np.nan), families=("",) * 8)
    assert_same(found.predict(SIZES), fit_joint(unknown, HORIZON).predict(SIZES), atol=0.02)  # counts of draws differ
    assert log_gap(found.predict(SIZES), predicted) > 1e-4


def test_amplitudes_can_be_learned_from_some_of_the_models(task, predicted, monkeypatch):
    monkeypatch.setattr(joint, "LEARN_FROM", 6)
    few = fit_joint(task.table, HORIZON).predict(SIZES)
    assert log_gap(few, predicted) > 0
    assert log_gap(few, predicted) < 0.02
    width, full = (np.log(losses.upper / losses.lower) for losses in (few, predicted))
    np.testing.assert_allclose(width, full, rtol=0.4)


# Packing ------------------------------------------------------------------------------------------------------


def test_tables_are_packed_measured_points_first():
    nan = np.nan
    loss = np.array([[9.0, nan, 2.0, nan, 1.5], [8.0, 3.0, 2.5, 2.2, 2.0], [nan, nan, nan, 4.0, 3.5]])
    table = curve_table(
        ["a", "b", "c"], [0, 100, 200, 400, 1600], loss, parameters=[1e8, nan, 1e10], families=["f", "", "f"]
    )
    table = replace(table, seeds=np.array([[1, 0, 4, 0, 2], [1] * 5, [0, 0, 0, 1, 1]]))
    obs, centre = observe(table, 100, {"z": [1.0, nan, 3.0]}, level=False)
    points = np.array([2, 4, 2])
    np.testing.assert_array_equal(obs.present, np.arange(4) < points[:, None])
    np.testing.assert_allclose(obs.x, [[1, 4, 4, 4], [0, 1, 2, 4], [2, 4, 4, 4]])
    np.testing.assert_allclose(centre, np.log([2.0, 3.0, 4.0]).mean())
    np.testing.assert_allclose(obs.y[0, :2] + centre, np.log([2.0, 1.5]))
    np.testing.assert_allclose(obs.y[1, :4] + centre, np.log([3.0, 2.5, 2.2, 2.0]))
    np.testing.assert_allclose(obs.y[2, :2] + centre, np.log([4.0, 3.5]))
    np.testing.assert_allclose(obs.noise[0, :2], [0.25, 0.5])
    np.testing.assert_allclose(obs.covariates, [[1, -1, -1], [1, 0, 0], [1, 1, 1]])
    assert obs.family[0] == obs.family[2] != obs.family[1]
    assert np.all((obs.family >= 0) & (obs.family < 3))


def test_loss_level_is_that_at_the_smallest_size_whenever_a_curve_begins():
    # One straight line for all; a model measured later has the same level.
    line = 3 * SIZES[:8] ** -0.1 * np.array([1.0, 1.0, 1.2])[:, None]
    line[1, :3] = np.nan
    obs, _ = observe(many(line), 200, {}, size=False)
    np.testing.assert_allclose(obs.covariates[0], obs.covariates[1], rtol=1e-9)
    assert obs.covariates[2, 1] > obs.covariates[0, 1]


def test_models_a_few_at_a_time_give_the_same(monkeypatch):
    table = simulated(models=11, families=3, sizes=SIZES[:6].tolist())
    whole = fit_joint(table, HORIZON)
    monkeypatch.setattr("lensjax.fit.joint.blocks.BLOCK", 4)
    apart = fit_joint(table, HORIZON)
    np.testing.assert_allclose(apart.fitted.given.evidence, whole.fitted.given.evidence, rtol=1e-6)
    np.testing.assert_allclose(apart.predict(HORIZON).parts, whole.predict(HORIZON).parts, rtol=1e-4)
