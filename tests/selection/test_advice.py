from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensjax.core.errors import InputError
from lensjax.curves.simulated import simulated
from lensjax.curves.table import curve_table
from lensjax.fit.joint import hierarchy
from lensjax.fit.joint.fitting import fit_joint
from lensjax.fit.joint.posterior import JointMoments
from lensjax.fit.linalg import float64_on_cpu
from lensjax.selection.advice import Advice, Cell, NextCell, _drops, advise, candidate_cells, relative_costs

TARGET = 51_200
RUNGS = [200 * 2**k for k in range(8)]
TABLE = simulated(seed=1, models=6, sizes=[0, *RUNGS[:4]])
MODELS = TABLE.models
COSTS = relative_costs(TABLE, candidate_cells(TABLE, RUNGS))


@pytest.fixture(scope="module")
def posterior():
    return fit_joint(TABLE, TARGET)


@pytest.fixture(scope="module")
def advice(posterior):
    return advise(TABLE, TARGET, COSTS, posterior)


# Against exact conditioning -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def refit(posterior):
    """Log evidence, and means and variances at the target, under each prior after a cell was measured to have z."""

    @jax.jit
    def one(fitted, row, x, z):
        obs, dof = posterior.observations, posterior.dof
        at = jnp.sum(obs.present[row] & (obs.x[row] < x))
        new = jnp.sum(obs.present[row]) == at  # beyond the last size; within, it shares the jump that it splits

        def insert(values, value):
            line = values[row]
            shifted = jnp.where(jnp.arange(len(line)) < at, line, jnp.roll(line, 1))
            return values.at[row].set(shifted.at[at].set(value))

        measured = obs._replace(
            x=insert(obs.x, x),
            y=insert(obs.y, z),
            present=insert(obs.present, True),
            noise=insert(obs.noise, 1.0),
        )
        # What has not happened yet has Student's variance.
        to_come = (dof - 2) / dof
        weights = hierarchy.Weights(
            noise=insert(fitted.weights.noise, to_come),
            jump=insert(fitted.weights.jump, jnp.where(new, to_come, fitted.weights.jump[row, at])),
        )
        given = hierarchy.condition(measured, weights, fitted.scales, fitted.slopes)
        x_target = jnp.log2(jnp.asarray([TARGET / posterior.unit]))
        ahead = hierarchy.extrapolate(measured, fitted.scales, fitted.slopes, given, x_target, dof)
        shared, covariance = hierarchy.shared_moments(measured, given)
        gain = ahead.gain[:, 0]
        mean = ahead.offset[:, 0] + jnp.einsum("mq,mq->m", gain, shared)
        variance = ahead.covariance[:, 0, 0] + jnp.einsum("mq,mqr,mr->m", gain, covariance, gain)
        variance += fitted.scales.noise**2 * dof / (dof - 2)
        return given.evidence - fitted.given.evidence, mean, variance

    over_draws = jax.jit(jax.vmap(jax.vmap(one, (None, None, None, 0)), (0, None, None, None)))

    def run(cell, z):
        with float64_on_cpu():
            x = np.log2(cell.examples / posterior.unit)
            found = over_draws(posterior.fitted, MODELS.index(cell.model), x, jnp.asarray(z))
            return [np.asarray(part) for part in found]

    return run


def moments_of(posterior, cells):
    rows = np.array([MODELS.index(cell.model) for cell in cells])
    found = posterior.moments(TARGET, rows, np.array([cell.examples for cell in cells]))
    return JointMoments(*(np.asarray(part) for part in found))


CELLS = [Cell(MODELS[0], 3200), Cell(MODELS[3], 25_600), Cell(MODELS[5], 500)]  # the last between two sizes


@pytest.mark.parametrize("number", range(3))
def test_moments_are_those_of_exact_conditioning(posterior, refit, number):
    found = moments_of(posterior, CELLS)
    cell_mean, cell_variance = found.cell_mean[:, number, None], found.cell_variance[:, number, None]
    z = np.mean(cell_mean) + np.array([-0.05, 0.0, 0.02])
    evidence, mean, variance = refit(CELLS[number], z)
    density = -((z - cell_mean) ** 2) / (2 * cell_variance) - np.log(2 * np.pi * cell_variance) / 2
    np.testing.assert_allclose(evidence, density, rtol=1e-6)
    gain = found.covariance[:, number] / cell_variance  # of every model, under each prior
    expected = found.target_mean[:, None] + gain[:, None] * (z - cell_mean)[:, :, None]
    np.testing.assert_allclose(mean, expected, atol=1e-9)
    left = found.target_variance - found.covariance[:, number] * gain
    np.testing.assert_allclose(variance, np.broadcast_to(left[:, None], variance.shape), rtol=1e-6)


def test_drops_agree_with_fantasised_measurements(posterior, refit, advice):
    drops = {found.cell: found.drop for found in advice.cells}
    compared = 0
    for cell in (Cell(model, 12_800) for model in MODELS):
        found = moments_of(posterior, [cell])
        mean, reach = found.cell_mean.mean(), 9 * np.sqrt(found.cell_variance.max())
        z, step = np.linspace(mean - reach, mean + reach, 1001, retstep=True)
        evidence, mean, variance = refit(cell, z)
        after = np.mean(np.exp(evidence)[..., None] * np.exp(mean + variance / 2 + posterior.centre), axis=0)
        fantasised = np.sum(after[:, MODELS.index(advice.choice)] - after.min(axis=1)) * step
        assert drops[cell] == pytest.approx(fantasised, rel=0.01, abs=1e-12), cell
        compared += drops[cell] > 1e-6
    assert compared >= 4


def test_drops_agree_with_draws_of_a_mixture():
    rng = np.random.default_rng(1)
    target, cell = rng.normal(0, 0.1, (3, 4)), rng.normal(0, 0.05, (3, 1))
    roots = rng.normal(0, 0.1, (3, 5, 5))
    covariance = roots @ roots.swapaxes(1, 2)
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    moments = JointMoments(target, variance[:, :4], cell, variance[:, 4:], covariance[:, 4:, :4])
    with float64_on_cpu():
        expected, drops = (np.asarray(found) for found in _drops(moments, 0.5))
    draws = [rng.multivariate_normal(np.append(target[p], cell[p]), covariance[p], 100_000) for p in range(3)]
    samples = np.concatenate(draws)
    losses, z = np.exp(samples[:, :4] + 0.5), samples[:, 4]
    np.testing.assert_allclose(expected, losses.mean(axis=0), rtol=5e-3)
    # What is expected at each of many narrow ranges of z; the least of them is a little too low.
    bins = np.array_split(losses[np.argsort(z)], 300)
    after = np.mean([found.mean(axis=0).min() for found in bins])
    assert drops[0] == pytest.approx(losses.mean(axis=0).min() - after, rel=0.05)


# What drops are like ------------------------------------------------------------------------------------------


def one_prior(covariance, gap=0.05, sd=0.05):
    """Two models and one cell, under one prior."""
    single = np.ones((1, 1))
    target = np.array([[0.0, gap]]), np.array([[0.01, 0.01]])
    return JointMoments(*target, 0 * single, sd**2 * single, np.array([[covariance]]))


def drops_of(moments):
    with float64_on_cpu():
        return np.asarray(_drops(moments, 0.0)[1])


def test_a_cell_that_says_nothing_of_the_target_is_worth_nothing():
    assert drops_of(one_prior([0.0, 0.0])) == 0


def test_a_cell_that_moves_all_models_alike_is_worth_nothing():
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
    drops = [found.drop for found in advice.cells]
    assert min(drops) >= 0
    assert 0 < max(drops) < advice.regret + 3 * advice.regret_error
    per_cost = [found.drop_per_cost for found in advice.cells]
    assert per_cost == sorted(per_cost, reverse=True)


def test_the_choice_has_the_least_expected_regret(posterior, advice):
    regret = posterior.expected_regret(TARGET)
    assert advice.regret == pytest.approx(regret[MODELS.index(advice.choice)])
    assert advice.regret < regret.min() + 3 * advice.regret_error


def test_of_two_equal_cells_the_cheaper_comes_first(posterior):
    cells = [found.cell for found in advise(TABLE, TARGET, COSTS, posterior).cells[:1]]
    again = Cell(cells[0].model, cells[0].examples + 1)  # as good as the same
    for dear, cheap in ((cells[0], again), (again, cells[0])):
        found = advise(TABLE, TARGET, {dear: 2.0, cheap: 1.0}, posterior, draws=64)
        assert [next_cell.cell for next_cell in found.cells] == [cheap, dear]


@settings(max_examples=5)
@given(st.permutations(range(len(MODELS))))
def test_the_order_of_models_does_not_matter(advice, order):
    found = advise(TABLE.select(order), TARGET, dict(reversed(COSTS.items())))
    assert found.choice == advice.choice
    expected = {next_cell.cell: next_cell.drop for next_cell in advice.cells}
    assert {next_cell.cell for next_cell in found.cells} == set(expected)
    for next_cell in found.cells:
        assert next_cell.drop == pytest.approx(expected[next_cell.cell], rel=1e-3, abs=1e-8)


def test_without_cells_there_is_the_choice_alone(posterior, advice):
    found = advise(TABLE, TARGET, {}, posterior)
    assert found.cells == ()
    assert (found.choice, found.regret, found.regret_error) == (advice.choice, advice.regret, advice.regret_error)


# Which cells there are ----------------------------------------------------------------------------------------


def test_candidates_are_what_was_not_measured():
    cells = candidate_cells(TABLE, [0, *RUNGS, 1600])
    assert len(cells) == len(set(cells)) == len(MODELS) * 4
    assert {cell.examples for cell in cells} == set(RUNGS[4:])
    loss = TABLE.loss.copy()
    loss[2, 3] = np.nan
    assert Cell(MODELS[2], 800) in candidate_cells(replace(TABLE, loss=loss), RUNGS)


def test_costs_are_flops_where_sizes_are_known():
    cell = Cell(MODELS[1], 400)
    assert relative_costs(TABLE, [cell]) == {cell: 6 * TABLE.parameters[1] * 400}
    unknown = replace(TABLE, parameters=np.append(TABLE.parameters[:-1], np.nan))
    assert relative_costs(unknown, [cell]) == {cell: 400}


def test_cells_that_the_fit_needs_come_first_and_alone():
    loss = TABLE.loss.copy()
    loss[1, 1:] = np.nan  # the first size above 0 and later
    loss[4, 2:] = np.nan
    table = replace(TABLE, loss=loss)
    costs = {
        cell: float(cell.examples * (3 if cell.model == MODELS[4] else 1)) for cell in candidate_cells(table, RUNGS)
    }
    found = advise(table, TARGET, costs)
    assert [(next_cell.cell, next_cell.drop) for next_cell in found.cells] == [
        (Cell(MODELS[1], 200), None),
        (Cell(MODELS[1], 400), None),
        (Cell(MODELS[4], 400), None),
    ]
    assert found.choice is found.regret is found.cells[0].drop_per_cost is None
    assert found.batch(0.0) == found.cells


def test_a_batch_has_one_cell_of_a_model_and_keeps_to_its_cost():
    cells = tuple(NextCell(Cell(model, 200), 2.0, 0.1) for model in "aabcd")
    found = Advice(cells, "a", 0.1, 0.0)
    assert [next_cell.cell.model for next_cell in found.batch(6.0)] == ["a", "b", "c"]
    assert [next_cell.cell.model for next_cell in found.batch(0.1)] == ["a"]
    assert [next_cell.cell.model for next_cell in found.batch(100.0)] == list("abcd")


BAD = {
    "one model": (TABLE.select([0]), {}, "1 model"),
    "unknown": (TABLE, {Cell("nobody", 400): 1.0}, "nobody"),
    "beyond": (TABLE, {Cell(MODELS[0], TARGET + 1): 1.0}, str(TARGET + 1)),
    "no examples": (TABLE, {Cell(MODELS[0], 0): 1.0}, "at 0 examples"),
    "free": (TABLE, {Cell(MODELS[0], 3200): 0.0}, "costs 0.0"),
    "too short": (curve_table("ab", [200, 400], [[3, 2], [3, np.nan]]), {}, "leave b with"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_sentence(kind):
    table, costs, message = BAD[kind]
    with pytest.raises(InputError, match=message) as error:
        advise(table, TARGET, costs)
    assert str(error.value).count(". ") == 0
