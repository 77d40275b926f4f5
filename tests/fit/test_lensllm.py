"""Fits share one shape of table, that of `simulate`, since every other one takes seconds to compile."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from lensjax.core.errors import InputError
from lensjax.curves import public as datasets
from lensjax.curves.table import CurveTable, curve_table
from lensjax.fit.lensllm import fitting as lensllm
from lensjax.fit.lensllm.fitting import VARIANTS, fit_lensllm
from lensjax.fit.linalg import float64_on_cpu
from lensjax.fit.per_model import fit_per_model
from lensjax.fit.residuals import Residuals, candidate_times, stack_residuals
from lensjax.selection.metrics import log_rmse

MODELS, RUNGS = 20, 7
SIZES = 200 * 2 ** np.arange(RUNGS + 3)
HORIZON = int(SIZES[-1])
A, B, T = 0.5, 1.0, 3.0


@dataclass(frozen=True)
class Task:
    """Simulated curves: what was measured, what would be later, and the truth."""

    table: CurveTable
    residuals: Residuals
    later: np.ndarray
    d_l: np.ndarray


def simulate(seed, *, b=B, noise=0.005):
    """The LensLLM law, its D_l within 10 % of what F(T) says."""
    rng = np.random.default_rng(seed)
    rates, weights = np.exp(rng.uniform(-5, 1, (MODELS, 6))), np.exp(rng.standard_normal((MODELS, 6)))
    residuals = stack_residuals(list(zip(rates, weights, strict=True)))
    with float64_on_cpu():
        log_f = np.asarray(residuals.log_f(T))
    d_l = np.exp(A + b * log_f + 0.1 * rng.standard_normal(MODELS))
    beta = 0.3 * np.exp(0.15 * rng.standard_normal(MODELS))
    level = 2 * np.exp(0.2 * rng.standard_normal(MODELS))
    rho = 1 / (1 + np.exp(0.7 - 0.3 * rng.standard_normal(MODELS)))
    scale = (1 - rho) * level * (d_l + SIZES[RUNGS // 2] ** beta)
    truth = scale[:, None] / (d_l[:, None] + SIZES ** beta[:, None]) + (rho * level)[:, None]
    measured = truth * np.exp(noise * rng.standard_t(3, truth.shape))
    names = [f"model{i}" for i in range(MODELS)]
    table = curve_table(names, [0, *SIZES[:RUNGS]], np.column_stack([3 * level, measured[:, :RUNGS]]))
    return Task(table, residuals, measured[:, RUNGS:], d_l)


def holds(estimate, value):
    return (estimate.lower <= value) & (value <= estimate.upper)


def covered(posterior, later):
    found = posterior.predict(SIZES[RUNGS:])
    return np.mean((found.lower <= later) & (later <= found.upper))


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Fewer times and populations, and as many draws."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lensllm, "TIMES", 8)
        patch.setattr(lensllm, "POPULATIONS", 50)
        yield


@pytest.fixture(scope="module")
def task():
    return simulate(0)


@pytest.fixture(scope="module")
def tied(task):
    return fit_lensllm(task.table, HORIZON, task.residuals)


@pytest.fixture(scope="module")
def hierarchical(task):
    return fit_lensllm(task.table, HORIZON, variant="hierarchical")


# Recovery -----------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_b_and_t_are_recovered(tied):
    assert holds(tied.a, A)
    assert holds(tied.b, B)
    assert holds(tied.time, T)
    assert abs(tied.b.value - B) < 0.4
    assert tied.b.lower > 0.3
    assert abs(np.log(tied.time.value / T)) < 1
    assert tied.time.upper < 20 * tied.time.lower


def test_parameters_of_models_are_recovered(task, tied):
    assert set(tied.parameters) == {"B", "D_l", "beta", "E"}
    assert np.mean(holds(tied.parameters["D_l"], task.d_l)) > 0.8
    assert np.corrcoef(np.log(tied.parameters["D_l"].value), np.log(task.d_l))[0, 1] > 0.9


def test_kernels_that_say_something_raise_the_evidence(tied, hierarchical):
    assert tied.evidence > hierarchical.evidence + 3


def test_kernels_that_say_nothing_have_no_slope():
    task = simulate(1, b=0.0)
    posterior = fit_lensllm(task.table, HORIZON, task.residuals)
    assert holds(posterior.b, 0.0)
    assert posterior.evidence < fit_lensllm(task.table, HORIZON, variant="hierarchical").evidence + 1


def test_intervals_cover_what_happens(task, tied, hierarchical):
    found = [covered(tied, task.later), covered(hierarchical, task.later)]
    for seed in range(1, 4):
        other = simulate(seed)
        found += [covered(fit_lensllm(other.table, HORIZON, variant="hierarchical"), other.later)]
    assert 0.8 <= np.mean(found) <= 0.97
    assert min(found) > 0.6


# Variants -----------------------------------------------------------------------------------------------------


def test_equal_kernels_say_nothing(task, hierarchical):
    equal = stack_residuals([(np.array([1.0, 0.1]), np.array([1.0, 2.0]))] * MODELS)
    posterior = fit_lensllm(task.table, HORIZON, equal)
    assert posterior.evidence == pytest.approx(hierarchical.evidence, abs=1e-2)
    found, expected = (np.log(p.predict(HORIZON).loss) for p in (posterior, hierarchical))
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_published_is_the_law_with_f_for_d_l(task):
    posterior = fit_lensllm(task.table, HORIZON, task.residuals, "published")
    np.testing.assert_array_equal(posterior.slope, 1)
    np.testing.assert_allclose(posterior.intercept, 0, atol=1e-9)
    for row in (0, len(posterior.times) // 2, -1):
        with float64_on_cpu():
            f = np.exp(task.residuals.log_f(posterior.times[row]))
        np.testing.assert_allclose(posterior.law["D_l"][row], f, rtol=1e-4)


def test_what_uses_no_kernels_has_no_time(task, hierarchical):
    free = fit_lensllm(task.table, HORIZON, task.residuals, "free")
    for posterior in (free, hierarchical):
        assert posterior.time is None
        np.testing.assert_array_equal(posterior.slope, 0)
    np.testing.assert_array_equal(free.intercept, free.intercept[0])
    assert hierarchical.a.upper > hierarchical.a.lower + 0.1


# Invariances and odd tables -----------------------------------------------------------------------------------


def test_order_of_models_changes_nothing_else(task, tied):
    order = np.random.default_rng(1).permutation(MODELS)
    residuals = Residuals(task.residuals.rates[order], task.residuals.weights[order])
    found = fit_lensllm(task.table.select(order), HORIZON, residuals)
    assert found.evidence == pytest.approx(tied.evidence, abs=1e-2)
    np.testing.assert_allclose(found.time, tied.time)
    np.testing.assert_allclose(found.b.value, tied.b.value, atol=1e-2)
    # Draws are of other random numbers.
    one, other = found.predict(HORIZON), tied.predict(HORIZON)
    width = np.log(other.upper / other.lower)[order]
    assert np.all(np.abs(np.log(one.loss / other.loss[order])) < 0.1 * width)


def test_pretrained_losses_and_needless_residuals_are_not_used(task, hierarchical):
    loss = task.table.loss.copy()
    loss[:, 0] = np.nan
    found = fit_lensllm(replace(task.table, loss=loss), HORIZON, task.residuals, "hierarchical")
    np.testing.assert_array_equal(found.predict(SIZES).loss, hierarchical.predict(SIZES).loss)


def test_the_unit_of_losses_scales_b_and_e_alone(task, hierarchical):
    found = fit_lensllm(replace(task.table, loss=task.table.loss / np.log(2)), HORIZON, variant="hierarchical")
    for name, values in found.law_parameters().items():
        expected = hierarchical.law_parameters()[name] / (np.log(2) if name in ("B", "E") else 1)
        np.testing.assert_allclose(values, expected, rtol=1e-4, err_msg=name)


def test_missing_points_and_kernels(task, tied):
    loss = task.table.loss.copy()
    missing = np.random.default_rng(2).random(loss.shape) < 0.3
    missing[:, 2:4] = False
    loss[missing] = np.nan
    weights = task.residuals.weights.copy()
    weights[:5] = np.nan
    posterior = fit_lensllm(replace(task.table, loss=loss), HORIZON, Residuals(task.residuals.rates, weights))
    found = posterior.predict(SIZES)
    assert np.isfinite([found.loss, found.lower, found.upper]).all()
    assert np.all((found.lower < found.loss) & (found.loss < found.upper))
    assert log_rmse(found.loss[:, RUNGS:], task.later) < 0.06
    # Less is known of D_l without a kernel.
    width, full = (np.log(p.parameters["D_l"].upper / p.parameters["D_l"].lower) for p in (posterior, tied))
    assert np.mean(width[:5] / full[:5]) > np.mean(width[5:] / full[5:])


def test_one_outlier_barely_moves_the_others(task, hierarchical):
    loss = task.table.loss.copy()
    loss[2, 4] *= 1.3
    found = fit_lensllm(replace(task.table, loss=loss), HORIZON, variant="hierarchical").predict(HORIZON)
    moved = np.abs(np.log(found.loss / hierarchical.predict(HORIZON).loss))[:, 0]
    assert np.all(np.delete(moved, 2) < 0.02)
    assert moved[2] < 0.1


def test_wrong_inputs_are_named(task):
    table, residuals = task.table, task.residuals
    short = table.loss.copy()
    short[4, 2:] = np.nan
    with pytest.raises(InputError, match=r"two sizes above 0.*model4"):
        fit_lensllm(replace(table, loss=short), HORIZON, residuals)
    with pytest.raises(InputError, match="two sizes above 0"):
        fit_lensllm(table.select([]), HORIZON, residuals)
    with pytest.raises(InputError, match=r"horizon of 12799 .* below the measured 12800"):
        fit_lensllm(table, 12_799, residuals)
    with pytest.raises(InputError, match=r"no variant 'ntk' .* tied"):
        fit_lensllm(table, HORIZON, residuals, "ntk")
    with pytest.raises(InputError, match="'tied' needs the residuals"):
        fit_lensllm(table, HORIZON)
    with pytest.raises(InputError, match="of 2 models, the table has 20"):
        fit_lensllm(table, HORIZON, stack_residuals([(np.ones(2), np.ones(2))] * 2))
    with pytest.raises(InputError, match="Kernels are known of 1 model"):
        fit_lensllm(table, HORIZON, stack_residuals([(np.ones(2), np.ones(2))] + [None] * (MODELS - 1)))


# The posterior ------------------------------------------------------------------------------------------------


def test_draws_agree_with_predictions(tied):
    losses, found = tied.sample(HORIZON), tied.predict(HORIZON)
    assert losses.shape == (4000, MODELS)
    width = np.log(found.upper / found.lower)[:, 0]
    for quantile, expected in ((0.05, found.lower), (0.5, found.loss), (0.95, found.upper)):
        off = np.log(np.quantile(losses, quantile, axis=0) / expected[:, 0])
        assert np.all(np.abs(off) < 0.1 * width)
    np.testing.assert_array_equal(tied.sample(HORIZON, seed=0), losses)
    assert np.all(tied.sample(HORIZON, seed=1) != losses)
    assert tied.sample(HORIZON, draws=5000).shape == (5000, MODELS)


def test_choices_are_those_of_the_draws(tied):
    losses = tied.sample(HORIZON)
    best = np.argmin(losses, axis=1)
    expected = [np.mean(best == i) for i in range(MODELS)]
    np.testing.assert_allclose(tied.probability_best(HORIZON), expected, rtol=1e-12)
    regret = (losses - losses.min(axis=1)[:, None]).mean(axis=0)
    np.testing.assert_allclose(tied.expected_regret(HORIZON), regret, rtol=1e-12)


def test_density_integrates_to_one_and_is_highest_near_the_median(task, hierarchical):
    grid = np.linspace(-0.3, 0.3, 121)
    middle = hierarchical.predict(HORIZON).loss
    densities = []
    for shift in grid:
        table = curve_table(task.table.models, [HORIZON], middle * np.exp(shift))
        densities.append(hierarchical.log_density(table)[:, 0])
    density = np.exp(densities)
    np.testing.assert_allclose(density.sum(axis=0) * (grid[1] - grid[0]), 1, atol=0.02)
    width = np.log(hierarchical.predict(HORIZON).upper / hierarchical.predict(HORIZON).lower)[:, 0]
    assert np.all(np.abs(grid[np.argmax(density, axis=0)]) < 0.3 * width)
    nothing = replace(task.table, loss=np.full(task.table.loss.shape, np.nan))
    assert np.isnan(hierarchical.log_density(nothing)).all()


@pytest.mark.parametrize("size", [0, 199, HORIZON + 1, np.nan])
def test_sizes_outside_the_fitted_range_are_refused(hierarchical, size):
    for ask in (hierarchical.predict, hierarchical.sample):
        with pytest.raises(InputError, match=f"outside the fitted range 200 to {HORIZON}"):
            ask(size)


def test_times_are_those_of_the_grid(task, tied):
    assert set(tied.times) <= set(candidate_times(task.residuals, lensllm.TIMES))
    assert VARIANTS == ("tied", "published", "hierarchical", "free")


# Real curves --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not {"flan", "gigaword"} <= set(datasets.available()), reason="set LENSJAX_BENCHMARKS to the public curves"
)
@pytest.mark.long
def test_sharing_helps_on_public_curves():
    errors = []
    for name in ("flan", "gigaword"):
        table = datasets.rectified(name)
        target = 1_638_400
        for ratio in (64, 256):
            seen = table.up_to(target // ratio)
            shared = fit_lensllm(seen, target, variant="hierarchical").predict(target).loss[:, 0]
            alone = fit_per_model(seen).predict(target)
            errors.append([log_rmse(found, table.column(target)) for found in (shared, alone)])
    shared, alone = np.mean(errors, axis=0)
    assert shared <= alone
