import numpy as np
import pytest

from lensjax.core.errors import InputError
from lensjax.fit.joint.shapes import (
    CENTRE,
    SHAPES,
    SOFTNESS,
    USUAL_LEVEL,
    USUAL_SLOPE,
    damped_path,
    soft_slope,
    wiener_path,
)
from lensjax.fit.joint.shapes.floor import floor_slope
from lensjax.fit.joint.slopes import PRIORS, UNUSED, linearised, slope_priors, slopes_of


def slopes(prior, coefficients):
    """Of one prior alone."""
    return slopes_of(prior, np.asarray(coefficients)[None])[0]


def prior_of(name, octaves=9, covariates=3):
    return slope_priors(octaves, covariates, [name])


def coefficients(prior, spread=1.0, seed=0):
    count = prior.centre.shape[1] + prior.path.shape[-1]
    return spread * np.random.default_rng(seed).standard_normal((5, count))


# Slopes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES.names)
def test_slopes_are_positive_and_usual_for_a_usual_model(name):
    prior = prior_of(name)
    for c in coefficients(prior, 2.0):
        assert np.all(slopes(prior, c) > 0)
    usual = slopes(prior, 0 * coefficients(prior)[0])
    assert USUAL_SLOPE / 2 < usual.min() <= usual.max() < 2 * USUAL_SLOPE
    np.testing.assert_allclose(usual[5:7].mean(), USUAL_SLOPE, rtol=0.01)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", SHAPES.names)
def test_slopes_of_any_coefficients_are_finite(name):
    prior = prior_of(name)
    for spread in (1e2, 1e4, 1e8):
        found = linearised(prior, coefficients(prior, spread)[None])
        assert np.isfinite(found.mean).all()
        assert np.isfinite(found.basis).all()


@pytest.mark.parametrize("name", SHAPES.names)
def test_slopes_are_linearised_about_any_coefficients(name):
    prior, step = prior_of(name), 1e-5
    at = coefficients(prior)
    found = linearised(prior, at[None])
    for i, c in enumerate(at):
        np.testing.assert_allclose(found.mean[0, i] + found.basis[0, i] @ c, slopes(prior, c), rtol=1e-12)
        for column, direction in enumerate(step * np.eye(len(c))):
            rise = (slopes(prior, c + direction) - slopes(prior, c - direction)) / (2 * step)
            np.testing.assert_allclose(found.basis[0, i, :, column], rise, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("p", "rho"), [(0.08, 0.3), (0.25, 0.02), (0.15, 0.9)])
def test_the_floor_is_that_of_a_power_law(p, rho):
    x = np.arange(0, 12, 1e-3)
    log_loss = np.log(rho + (1 - rho) * np.exp(-p * (x - CENTRE)))  # of L = A D^-β + E, less that at the centre
    falls = -np.gradient(log_loss, x)
    numbers = np.array([np.log(p * (1 - rho)), np.log(rho / (1 - rho))])[:, None]
    found = floor_slope(numbers, np.zeros(12))
    np.testing.assert_allclose(found, np.interp(np.arange(12) + 0.5, x, falls), rtol=1e-3)


def test_soft_slopes_are_linear_where_steep_and_shrink_by_a_factor_where_flat():
    u = np.array([USUAL_LEVEL, 10.0, 11.0, -10.0, -11.0])
    usual, steep, steeper, flat, flatter = soft_slope(u) / USUAL_SLOPE
    np.testing.assert_allclose([usual, steeper - steep, flatter / flat], [1, 1, np.exp(-1 / SOFTNESS)], rtol=1e-3)


# Paths --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("octaves", [1, 9, 40])
def test_paths_are_a_wiener_process_and_an_integrated_ornstein_uhlenbeck_process(octaves):
    x = np.arange(octaves) + 0.5
    step = 0.5 / 40
    grid = np.arange(0, octaves, step) + step / 2
    inside = grid < x[:, None]
    damped = step**2 * inside @ np.exp(-np.abs(grid[:, None] - grid) / 3) @ inside.T
    one = damped_path(4)
    np.testing.assert_allclose((one @ one.T)[-1, -1], 1, rtol=1e-6)
    for path, covariance in ((wiener_path(octaves), np.minimum(x[:, None], x) / 4), (damped_path(octaves), damped)):
        np.testing.assert_array_equal(path, np.tril(path))
        found = path @ path.T
        np.testing.assert_allclose(found / found[0, 0], covariance / covariance[0, 0], rtol=2e-3)


@pytest.mark.parametrize("path", [wiener_path, damped_path])
def test_a_longer_path_begins_as_a_shorter_one(path):
    np.testing.assert_allclose(path(16)[:9, :9], path(9), rtol=1e-9, atol=1e-9)


# Priors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("octaves", [1, 40])
@pytest.mark.parametrize("covariates", [1, 5])
def test_shapes_of_priors(octaves, covariates):
    prior = slope_priors(octaves, covariates)
    count = len(PRIORS)
    assert prior.path.shape == (count, octaves, octaves)
    assert prior.amplitudes.shape == (count, 2 + covariates, 2 + 1)
    assert prior.centre.shape == (count, 2)
    for leaf in (prior.path, prior.amplitudes, prior.centre):
        assert np.isfinite(leaf).all()
        assert leaf.dtype == np.float64
    assert np.all(prior.amplitudes >= UNUSED)


def test_priors_come_in_the_order_of_their_names():
    names = ["damped", "floor", "damped", "lasting"]
    chosen = slope_priors(7, 2, names)
    for position, name in enumerate(names):
        alone = prior_of(name, 7, 2)
        np.testing.assert_array_equal(chosen.path[position], alone.path[0])
        used = alone.amplitudes.shape[2] - 1
        np.testing.assert_array_equal(chosen.amplitudes[position, :, :used], alone.amplitudes[0, :, :used])
        np.testing.assert_array_equal(chosen.amplitudes[position, :, used:-1], UNUSED)
        np.testing.assert_array_equal(chosen.amplitudes[position, :, -1], alone.amplitudes[0, :, -1])
        c = coefficients(alone)[0]
        together = np.concatenate([c[:used], np.ones(2 - used), c[used:]])
        of_all = slopes_of(chosen, np.broadcast_to(together, (len(names), len(together))))
        np.testing.assert_allclose(of_all[position], slopes(alone, c), rtol=1e-14)
    assert chosen.names == tuple(names)
    assert slope_priors(7, 2).names == PRIORS


def test_an_unknown_prior_is_named():
    with pytest.raises(InputError, match="no slope prior 'dampd'; did you mean damped"):
        slope_priors(7, 2, ["dampd"])


def test_amplitudes_are_of_models_families_what_is_shared_and_covariates():
    for name in SHAPES.names:
        model, family, shared, *others = prior_of(name, covariates=4).amplitudes[0]
        used = model > UNUSED
        assert used[0]
        assert used[-1]
        assert np.all(family[used] < model[used])
        assert np.all(shared[-1] > model[-1])
        for covariate in others:
            np.testing.assert_array_equal(covariate, others[0])
            assert np.all(covariate[used] < family[used])
