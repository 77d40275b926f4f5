import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from lensjax.core.errors import InputError
from lensjax.curves.laws import rectified
from lensjax.fit.joint.shapes import CENTRE, SHAPES, USUAL_SLOPE
from lensjax.fit.joint.shapes.law import LAW_CENTRE, law_log_loss
from lensjax.fit.joint.slopes import PRIORS, UNUSED, population_slopes, slope_priors
from lensjax.fit.linalg import float64_on_cpu

UNIT = 200.0
OCTAVES = np.linspace(0, 20, 41)
slopes_of = jax.jit(population_slopes)
log_losses = jax.jit(jax.vmap(law_log_loss, in_axes=(0, None)))


@pytest.fixture(autouse=True)
def double_precision():
    with float64_on_cpu():
        yield


def shapes(count=50, spread=1.5, seed=0):
    """log v, logit s and logit ρ, much more various than the prior is."""
    return LAW_CENTRE + spread * np.random.default_rng(seed).standard_normal((count, 3))


def natural(shape, level=0.7):
    """The law's own parameters, with log L = `level` at the centre, as columns."""
    log_v, logit_s, logit_rho = shape.T[:, :, None]
    beta = np.exp(log_v) / (expit(logit_s) * expit(-logit_rho) * np.log(2))
    log_power = beta * (np.log(UNIT) + CENTRE * np.log(2))  # log D^β at the centre
    log_d_l = log_power - logit_s
    log_b = np.log(expit(-logit_rho)) + level + np.logaddexp(log_d_l, log_power)
    return {"log_b": log_b, "log_d_l": log_d_l, "beta": beta, "log_e": np.log(expit(logit_rho)) + level}


def shape_basis(name, octaves=9, numbers=LAW_CENTRE):
    return np.asarray(SHAPES[name].slopes(jnp.asarray(numbers), octaves)[1])


def prior_of(name, octaves=9, covariates=3):
    return jax.tree.map(lambda leaf: leaf[0], slope_priors(octaves, covariates, [name]))


# The rectified law --------------------------------------------------------------------------------------------


def test_law_is_the_rectified_law_of_its_natural_parameters():
    shape = shapes()
    expected = rectified(jnp.log(UNIT) + OCTAVES * jnp.log(2.0), **natural(shape, level=0.7))
    np.testing.assert_allclose(log_losses(shape, OCTAVES) + 0.7, expected, atol=1e-11)


def test_shape_is_slope_share_of_the_transition_and_share_of_irreducible_loss_at_the_centre():
    shape = shapes()
    at = natural(shape)
    log_d = jnp.log(UNIT) + CENTRE * jnp.log(2.0)
    _, fall = jax.jvp(lambda log_d: rectified(log_d, **at), (log_d,), (-jnp.log(2.0),))
    slope = fall[:, 0]
    np.testing.assert_allclose(slope, np.exp(shape[:, 0]), rtol=1e-9)
    power = np.asarray(at["beta"][:, 0] * log_d)
    np.testing.assert_allclose(expit(power - at["log_d_l"][:, 0]), expit(shape[:, 1]), rtol=1e-9)
    log_loss = rectified(log_d, **at)[:, 0]
    np.testing.assert_allclose(log_loss, 0.7, rtol=1e-12)
    np.testing.assert_allclose(np.exp(at["log_e"][:, 0] - log_loss), expit(shape[:, 2]), rtol=1e-12)


def test_law_falls_to_its_irreducible_loss():
    shape = shapes()
    losses = np.asarray(log_losses(shape, np.linspace(0, 60, 61)))
    assert np.all(np.diff(losses, axis=1) <= 1e-15)
    floor = np.log(expit(shape[:, 2]))
    assert np.all(losses >= floor[:, None] - 1e-12)
    far = np.asarray(log_losses(shape, np.array([1e6])))[:, 0]
    np.testing.assert_allclose(far, floor, atol=1e-9)


def test_extreme_laws_are_finite_with_finite_derivatives():
    extreme = np.stack(np.meshgrid([-12.0, 1.5], [-12.0, 12.0], [-30.0, 6.0]), axis=-1).reshape(-1, 3)
    x = np.array([0.0, CENTRE, 12.0])
    assert np.isfinite(log_losses(extreme, x)).all()
    slope = jax.jit(jax.vmap(jax.jacrev(law_log_loss), in_axes=(0, None)))(extreme, x)
    assert np.isfinite(slope).all()


# Population slopes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("octaves", [1, 9])
def test_population_slope_of_the_law_is_its_fall_in_each_octave(octaves):
    prior = prior_of("law", octaves)
    ends = np.arange(octaves + 1.0)
    for shape in shapes(5):
        mean = slopes_of(prior, shape).mean
        np.testing.assert_allclose(mean, -np.diff(law_log_loss(shape, ends)), rtol=1e-12)
        assert np.all(mean > 0)


def test_shape_basis_of_the_law_is_its_derivative():
    prior = prior_of("law")
    step = 1e-5
    for shape in shapes(5):
        basis = slopes_of(prior, shape).basis[:, :3]
        for column, direction in enumerate(step * np.eye(3)):
            up, down = slopes_of(prior, shape + direction).mean, slopes_of(prior, shape - direction).mean
            np.testing.assert_allclose(basis[:, column], (up - down) / (2 * step), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", SHAPES.names)
def test_basis_is_shapes_then_a_path_in_units_of_the_slope(name):
    prior = prior_of(name)
    mean, basis = slopes_of(prior, prior.centre)
    own = shape_basis(name, numbers=prior.centre)
    assert (mean.shape, basis.shape) == ((9,), (9, own.shape[1] + 9))
    np.testing.assert_allclose(basis[:, own.shape[1] :], mean[:, None] * prior.path, rtol=1e-14)
    np.testing.assert_allclose(basis[:, : own.shape[1]], own, rtol=1e-12)
    if name in ("wiener", "smooth", "saturating"):
        np.testing.assert_array_equal(mean, np.full(9, USUAL_SLOPE))
        np.testing.assert_array_equal(slopes_of(prior, prior.centre + 1).mean, mean)


def test_population_of_the_usual_law_has_the_usual_slope_at_the_centre():
    mean = slopes_of(prior_of("law", 12), LAW_CENTRE).mean
    np.testing.assert_allclose(mean[5:7], USUAL_SLOPE, rtol=0.1)


def test_slopes_of_the_law_are_bounded_far_ahead_where_those_of_a_line_are_not():
    for shape in shapes(20):
        mean = np.asarray(slopes_of(prior_of("law", 30), shape).mean)
        assert np.all(mean <= np.exp(shape[0]) / (expit(shape[1]) * (1 - expit(shape[2]))))
        assert mean[-1] < 2 * mean.max()


# Priors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("octaves", [1, 2, 9, 40])
@pytest.mark.parametrize("covariates", [1, 3, 5])
def test_shapes_of_priors(octaves, covariates):
    prior = slope_priors(octaves, covariates)
    count = len(PRIORS)
    assert prior.which.tolist() == list(range(count))
    assert prior.path.shape == (count, octaves, octaves)
    assert prior.amplitudes.shape == (count, 2 + covariates, 3 + 1)
    assert prior.centre.shape == (count, 3)
    for leaf in (prior.path, prior.amplitudes, prior.centre):
        assert np.isfinite(leaf).all()
        assert leaf.dtype == jnp.float64
    assert np.all(prior.amplitudes >= UNUSED)


def test_priors_come_in_the_order_of_their_names():
    names = ["smooth", "law", "smooth", "wiener"]
    chosen = slope_priors(7, 2, names)
    for position, name in enumerate(names):
        alone = prior_of(name, 7, 2)
        np.testing.assert_array_equal(chosen.path[position], alone.path)
        used = alone.amplitudes.shape[1] - 1
        np.testing.assert_array_equal(chosen.amplitudes[position, :, :used], alone.amplitudes[:, :used])
        np.testing.assert_array_equal(chosen.amplitudes[position, :, used:-1], UNUSED)
        np.testing.assert_array_equal(chosen.amplitudes[position, :, -1], alone.amplitudes[:, -1])
        of_all = jax.tree.map(lambda leaf, at=position: leaf[at], chosen)
        together, single = slopes_of(of_all, LAW_CENTRE), slopes_of(alone, LAW_CENTRE)
        np.testing.assert_allclose(together.mean, single.mean, rtol=1e-14)
        np.testing.assert_allclose(together.basis[:, :used], single.basis[:, :used], rtol=1e-14)
        np.testing.assert_array_equal(together.basis[:, used:-7], 0)
    assert chosen.names == tuple(names)
    assert slope_priors(7, 2).names == PRIORS


def test_an_unknown_prior_is_named():
    with pytest.raises(InputError, match="no slope prior 'smoth'; did you mean smooth"):
        slope_priors(7, 2, ["smoth"])


def test_amplitudes_are_of_models_families_what_is_shared_and_covariates():
    for name in SHAPES.names:
        model, family, shared, *covariates = np.asarray(prior_of(name, covariates=4).amplitudes)
        used = model > UNUSED
        assert used[0]
        assert used[-1]
        assert np.all(family[used] < model[used])
        assert np.all(shared[-1] > model[-1])
        for covariate in covariates:
            np.testing.assert_array_equal(covariate, covariates[0])
            assert np.all(covariate[used] < family[used])


@pytest.mark.parametrize("octaves", [1, 9, 40])
def test_paths_are_wiener_processes_and_their_integrals(octaves):
    x = np.arange(octaves) + 0.5
    # ∫₀ˣ W(t) dt has covariance ∫₀ˣ ∫₀ˣ' min(t, t') dt' dt, here by adding up 40 steps to half an octave.
    step = 0.5 / 40
    grid = np.arange(0, octaves, step) + step / 2
    inside = grid < x[:, None]
    integrated = step**2 * inside @ np.minimum(grid[:, None], grid) @ inside.T / 64
    wiener = np.minimum(x[:, None], x) / 4
    for name, covariance in {
        "law": wiener,
        "wiener": wiener,
        "smooth": integrated,
        "saturating": integrated,
    }.items():
        path = np.asarray(prior_of(name, octaves).path)
        np.testing.assert_array_equal(path, np.tril(path))
        np.testing.assert_allclose(path @ path.T, covariance, rtol=1e-3)


def test_trends_are_centred_and_one_levels_off():
    x = np.arange(30) + 0.5
    level, linear = shape_basis("wiener", 30).T / USUAL_SLOPE
    np.testing.assert_allclose(level, np.ones(30))
    np.testing.assert_allclose(linear, (x - CENTRE) / 4)
    levelling = shape_basis("saturating", 30)[:, 1] / USUAL_SLOPE
    near = np.abs(x - CENTRE) < 1
    np.testing.assert_allclose(levelling[near], linear[near], rtol=0.03)
    assert np.all(np.diff(levelling) >= 0)
    np.testing.assert_allclose(levelling[-1], 0.75, rtol=1e-4)
    assert shape_basis("smooth", 30).shape == (30, 1)  # the level alone
