"""The nested Laplace approximation against the law itself, finite differences and plain sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import t as student

from lensjax.curves.laws import rectified
from lensjax.fit.lensllm.law_hierarchy import (
    COORDINATES,
    DOF,
    NUMBERS,
    Feature,
    PaddedCurves,
    Population,
    Prior,
    draw_coordinates,
    evidence,
    find_mode,
    log_loss,
    natural,
    prior_mode,
)
from lensjax.fit.linalg import float64_on_cpu

# One shape for all cases, so that each function is compiled once.
M, N = 4, 8
SIZES = 200 * 2 ** np.arange(N)
MIDDLE = float(np.log(SIZES).mean())
LAST_IS_PADDING = np.arange(M) < M - 1

evaluated = jax.jit(lambda curves, feature, of: evidence(curves, feature, of, jnp.zeros((M, COORDINATES)))[0])
differentiated = jax.jit(jax.grad(lambda of, curves, feature: evaluated(curves, feature, of)))


@pytest.fixture(autouse=True)
def double_precision():
    with float64_on_cpu():
        yield


@pytest.fixture
def population():
    return Population(
        mean=jnp.array([0.1, np.log(0.25), 1.5, -0.5]),
        spread=jnp.array([0.3, 0.3, 0.5, 0.4]),
        b=jnp.asarray(0.8),
        noise=jnp.asarray(0.01),
    )


@pytest.fixture
def feature():
    """Known of all models but the second."""
    return Feature(jnp.array([0.5, 0.0, -0.5, 0.0]), jnp.array([0.0, 0.4, 0.0, 0.0]))


@pytest.fixture
def curves(population, feature):
    """Three curves of the population, one with gaps and two runs to a point, and one of padding."""
    rng = np.random.default_rng(0)
    mean = population.mean + jnp.zeros((M, 1)).at[:, 0].set(0) + population.b * np.outer(feature.mean, [0, 0, 1, 0])
    theta = mean + population.spread * rng.standard_normal((M, COORDINATES))
    log_d = np.broadcast_to(np.log(SIZES), (M, N))
    present = np.ones((M, N), bool) & LAST_IS_PADDING[:, None]
    present[1, [0, 3]] = False
    y = log_loss(theta[:, None], log_d, MIDDLE) + 0.01 * rng.standard_t(DOF, (M, N))
    seeds = np.where(np.arange(M) == 2, 2.0, 1.0)[:, None] * np.ones(N)
    return PaddedCurves(
        jnp.asarray(log_d), jnp.asarray(y), jnp.asarray(present), jnp.asarray(seeds), jnp.asarray(MIDDLE)
    )


def test_coordinates_are_those_of_the_rectified_law():
    theta = np.random.default_rng(0).standard_normal((5, 1, COORDINATES))
    found = log_loss(theta, np.log(SIZES), MIDDLE)
    law = {name: np.log(value) for name, value in natural(theta, MIDDLE).items()}
    expected = rectified(np.log(SIZES), log_b=law["B"], log_d_l=law["D_l"], beta=np.exp(law["beta"]), log_e=law["E"])
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    # The first is the log loss at the middle, the last the logit of what is irreducible of it.
    at_middle = log_loss(theta, np.full(1, MIDDLE), MIDDLE)
    np.testing.assert_allclose(at_middle, theta[..., 0], atol=1e-12)
    share = np.exp(law["E"] - theta[..., 0])
    np.testing.assert_allclose(np.log(share / (1 - share)), theta[..., 3], rtol=1e-9)


def test_evidence_is_within_half_a_nat_a_curve_of_plain_sampling(curves, feature, population):
    wide = population._replace(noise=jnp.asarray(0.1))  # few draws of so many then lie near the curves
    rng = np.random.default_rng(1)
    total = 0.0
    for i in np.flatnonzero(LAST_IS_PADDING):
        z = rng.standard_normal((100_000, COORDINATES))
        mean = wide.mean + np.array([0, 0, wide.b * feature.mean[i], 0])
        spread = np.hypot(wide.spread, [0, 0, wide.b * feature.spread[i], 0])
        known = np.asarray(curves.present[i])
        fitted = log_loss(jnp.asarray(mean + spread * z)[:, None], curves.log_d[i], MIDDLE)
        scale = 0.1 / np.sqrt(curves.seeds[i])
        likelihood = student.logpdf(curves.y[i], DOF, fitted, scale)[:, known].sum(axis=1)
        total += logsumexp(likelihood) - np.log(len(z))
    assert float(evaluated(curves, feature, wide)) == pytest.approx(total, abs=0.5 * LAST_IS_PADDING.sum())


def test_evidence_ignores_padding(curves, feature, population):
    other = curves._replace(
        y=jnp.where(curves.present, curves.y, 77.0), log_d=jnp.where(curves.present, curves.log_d, 3)
    )
    found = evaluated(other, feature, population)
    assert float(found) == pytest.approx(float(evaluated(curves, feature, population)), abs=1e-9)


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_gradients_are_those_of_finite_differences(curves, feature, population, spread):
    of = population._replace(spread=population.spread * jnp.array([1, 1, spread, 1]))
    gradient = differentiated(of, curves, feature)
    assert all(np.isfinite(leaf).all() for leaf in gradient)
    step = 1e-5
    for name, at in (("mean", 1), ("mean", 2), ("spread", 0), ("b", ()), ("noise", ())):
        unit = np.zeros_like(getattr(of, name))
        unit[at] = step * (0.01 if name == "noise" else 1)
        up, down = (of._replace(**{name: getattr(of, name) + sign * unit}) for sign in (1, -1))
        difference = (evaluated(curves, feature, up) - evaluated(curves, feature, down)) / (2 * unit[at])
        np.testing.assert_allclose(getattr(gradient, name)[at], difference, rtol=1e-3, atol=1e-2, err_msg=name)


@pytest.mark.long
def test_what_has_no_prior_spread_is_held_at_the_mode_and_the_rest_has_no_gradient(curves, feature):
    centre = np.array([0, np.log(0.2), 1.0, -0.7, *np.log([0.3, 0.3, 0.5, 0.5]), 1.0, np.log(0.01)])
    sd = np.array([1, 1, 0, 1, 1, 0.8, 0, 0.8, 0, 0.8])
    centre[6] = -np.inf  # no model departs from a + b log F
    prior = Prior(jnp.asarray(centre), jnp.asarray(sd))
    mode = find_mode(curves, feature, prior, prior_mode(M))
    held = sd == 0
    np.testing.assert_array_equal(mode.u[held], 0)
    of = prior.population(mode.u)
    assert (float(of.mean[2]), float(of.spread[2]), float(of.b)) == (1.0, 0.0, 1.0)

    def energy(u):
        return u @ u / 2 - evaluated(curves, feature, prior.population(u))

    assert float(mode.energy) == pytest.approx(float(energy(mode.u)), abs=1e-6)
    for k in np.flatnonzero(~held):
        unit = np.zeros(NUMBERS)
        unit[k] = 1e-4
        slope = (energy(mode.u + unit) - energy(mode.u - unit)) / 2e-4
        assert abs(float(slope)) < 0.02, k
    # Held numbers keep their prior, and nothing that is not held leaves the Hessian indefinite.
    np.testing.assert_allclose(mode.hessian[held][:, held], np.eye(held.sum()), atol=1e-6)
    # A model of which the feature is known has the D_l that it says; of the others it is as uncertain as the feature.
    noise = np.random.default_rng(0).standard_normal((1, 2000, M, COORDINATES))
    stacked = jax.tree.map(lambda leaf: leaf[None], (feature, of, mode.models))
    log_d_l = np.asarray(draw_coordinates(curves, *stacked, jnp.asarray(noise)))[0, :, :, 2]
    np.testing.assert_allclose(log_d_l[:, [0, 2]], [[1.5, 0.5]] * 2000, atol=1e-4)
    assert 0.05 < log_d_l[:, 1].std() < 0.45
