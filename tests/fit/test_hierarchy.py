"""Everything in `lensjax.fit.joint.hierarchy` against one dense Gaussian, written down from the model's definition."""

import jax
import numpy as np
import pytest

from lensjax.fit.joint.curves import Fitted, extrapolate, own_coefficients, values
from lensjax.fit.joint.draws import shared_draws
from lensjax.fit.joint.hierarchy import (
    LEVEL_VARIANCE,
    Observations,
    Scales,
    Slopes,
    Weights,
    cholesky,
    condition,
    integrals,
    pulls,
    shared_moments,
)
from lensjax.fit.joint.sensitivity import gradient, sensitivity, update_weights

M, N, K, T, Q = 7, 6, 3, 7, 5
DOF = 3.0
NEW = np.array([0.0, 0.35, 2.0, 3.3, 5.2, 7.0])  # before, at, between and beyond the observations


def evidence_gradient(obs, weights, scales, given):
    return gradient(obs, weights, scales, given, sensitivity(obs, given))


def updated(obs, weights, scales, given, dof):
    return update_weights(obs, weights, scales, sensitivity(obs, given), dof)


def extended(tree):
    """NumPy arrays, numbers in extended precision where the machine has it: a level's variance over that of
    noise makes these covariances ill-conditioned, and here the reference should not be what is inexact."""

    def extend(leaf):
        leaf = np.asarray(leaf)
        return leaf.astype(np.longdouble) if leaf.dtype.kind == "f" else leaf

    return jax.tree.map(extend, tree)


def inverse_and_log_det(a):
    """By Gauss–Jordan elimination, since LAPACK has no extended precision."""
    n = len(a)
    both, log_det = np.hstack([a, np.eye(n)]), 0
    for k in range(n):
        log_det += np.log(both[k, k])
        both[k] /= both[k, k]
        others = np.arange(n) != k
        both[others] -= both[others, k, None] * both[k]
    return both[:, n:], log_det


class Dense:
    """The model as y = mean + H z with independent Gaussian z, all models in one covariance matrix.

    z holds, in this order: levels, models' own coefficients, families', covariates', jumps, noise.
    """

    def __init__(self, obs, weights, scales, slopes):
        self.obs, self.weights, self.scales, self.slopes = extended((obs, weights, scales, slopes))
        obs, weights, scales = self.obs, self.weights, self.scales
        models, n = obs.x.shape
        octaves = np.diff(obs.x, axis=1, prepend=obs.x[:, :1])
        self.populations = {
            "level": np.full(models, LEVEL_VARIANCE, np.longdouble),
            "own": np.tile(scales.model**2, models),
            "family": np.tile(scales.family**2, models),
            "covariate": scales.covariate.reshape(-1) ** 2,
            "jump": (scales.jump**2 * octaves).reshape(-1),
            "noise": (scales.noise**2 * obs.noise).reshape(-1),
        }
        variances = dict(self.populations)
        variances["jump"] = variances["jump"] / weights.jump.reshape(-1)
        variances["noise"] = variances["noise"] / weights.noise.reshape(-1)
        ends = np.cumsum([len(v) for v in variances.values()])
        self.at = {name: slice(end - len(v), end) for (name, v), end in zip(variances.items(), ends, strict=True)}
        self.variance = np.concatenate(list(variances.values()))
        self.where = [(i, k) for i in range(models) for k in range(n) if obs.present[i, k]]
        self.h = np.stack([self.row(i, obs.x[i, k]) for i, k in self.where])
        for row, (i, k) in zip(self.h, self.where, strict=True):
            row[self.at["jump"]].reshape(models, n)[i, : k + 1] = 1
            row[self.at["noise"]].reshape(models, n)[i, k] = 1
        self.precision, self.log_det = inverse_and_log_det((self.h * self.variance) @ self.h.T)
        self.residual = np.array([obs.y[i, k] - self.mean(obs.x[i, k]) for i, k in self.where])

    def integral(self, x, values):
        """∫₀ˣ of what is constant within octaves."""
        return sum(values[j] * min(max(x - j, 0), 1) for j in range(len(values)))

    def mean(self, x):
        return -self.integral(x, self.slopes.mean)

    def row(self, i, x):
        """H at size x of model i, but for jumps and noise."""
        models, q = len(self.obs.x), len(self.scales.model)
        row = np.zeros_like(self.variance)
        path = -self.integral(x, self.slopes.basis)
        row[self.at["level"]][i] = 1
        row[self.at["own"]].reshape(models, q)[i] = path
        row[self.at["family"]].reshape(models, q)[self.obs.family[i]] = path
        row[self.at["covariate"]] = np.outer(self.obs.covariates[i], path).reshape(-1)
        return row

    def evidence(self):
        constant = len(self.residual) * np.log(2 * np.pi)
        return -(self.residual @ self.precision @ self.residual + self.log_det + constant) / 2

    def posterior(self):
        """Mean and covariance of z."""
        cross = self.variance[:, None] * self.h.T
        gain = cross @ self.precision
        return gain @ self.residual, np.diag(self.variance) - gain @ cross.T

    def shared(self):
        """Mean (M q) and covariance (M q × M q) of what models have from families and covariates."""
        models, (covariates, q) = len(self.obs.x), self.scales.covariate.shape
        take = np.zeros((models, q, len(self.variance)), np.longdouble)
        for i in range(models):
            for b in range(q):
                take[i, b, self.at["family"]].reshape(models, q)[self.obs.family[i], b] = 1
                take[i, b, self.at["covariate"]].reshape(covariates, q)[:, b] = self.obs.covariates[i]
        take = take.reshape(models * q, -1)
        mean, covariance = self.posterior()
        return take @ mean, take @ covariance @ take.T

    def expectations(self, dof):
        """E-step for Student-t noise and jumps."""
        mean, covariance = self.posterior()
        second = mean**2 + np.diag(covariance)
        found = {}
        for name in ("noise", "jump"):
            prior = self.populations[name]
            if name == "noise":
                prior = prior * self.obs.present.reshape(-1)
            z2 = second[self.at[name]] / np.where(prior > 0, prior, 1)
            found[name] = np.where(prior > 0, (dof + 1) / (dof + z2), 1).reshape(self.obs.x.shape)
        return Weights(**found)

    def walk(self, i, x, dof):
        """Var W_i(x): accrued between observations, by Student's variance beyond the last."""
        total = 0.0
        for k in range(1, len(self.obs.x[i])):
            before, after = self.obs.x[i, k - 1 : k + 1]
            total += self.scales.jump**2 / self.weights.jump[i, k] * (np.clip(x, before, after) - before)
        last = self.obs.x[i][self.obs.present[i]].max()
        return total + self.scales.jump**2 * dof / (dof - 2) * max(x - last, 0)

    def predictive(self, x, dof):
        """Mean (M × G) and covariance of each model (M × G × G) of the curves without noise."""
        models = len(self.obs.x)
        new = [(i, at) for i in range(models) for at in x]
        h = np.stack([self.row(i, at) for i, at in new])
        cross, prior = (h * self.variance) @ self.h.T, (h * self.variance) @ h.T
        for a, (i, at) in enumerate(new):
            for b, (j, k) in enumerate(self.where):
                cross[a, b] += (i == j) * min(self.walk(i, at, dof), self.walk(j, self.obs.x[j, k], dof))
            for b, (j, other) in enumerate(new):
                prior[a, b] += (i == j) * min(self.walk(i, at, dof), self.walk(j, other, dof))
        gain = cross @ self.precision
        mean = np.array([self.mean(at) for _, at in new]) + gain @ self.residual
        covariance = (prior - gain @ cross.T).reshape(models, len(x), models, len(x))
        return mean.reshape(models, -1), covariance[np.arange(models), :, np.arange(models)]


def problem(seed=0, models=M, n=N, covariates=K, families=3):
    """Curves with unequal lengths, a few seeds, several models per family, and weights other than 1."""
    rng = np.random.default_rng(seed)
    x = np.cumsum(rng.uniform(0.2, 1.1, (models, n)), axis=1)
    x -= x[:, :1] * (rng.random((models, 1)) < 0.6)  # some begin above the smallest size
    lengths = rng.integers(2, n + 1, models)
    lengths[0] = n
    present = np.arange(n) < lengths[:, None]
    x = np.where(present, x, np.take_along_axis(x, lengths[:, None] - 1, axis=1))
    obs = Observations(
        x=x,
        y=np.where(present, 0.3 * rng.standard_normal((models, 1)) - 0.05 * x, 9.0)
        + 0.02 * rng.standard_normal((models, n)),
        present=present,
        noise=1 / rng.integers(1, 4, (models, n)),
        covariates=np.column_stack([np.ones(models), rng.standard_normal((models, covariates - 1))]),
        family=rng.permutation(np.arange(models) % families),
    )
    weights = Weights(rng.uniform(0.1, 1.3, (models, n)), rng.uniform(0.1, 1.3, (models, n)))
    scales = Scales(
        model=rng.uniform(0.2, 1, Q),
        family=rng.uniform(0.2, 1, Q),
        covariate=rng.uniform(0.1, 0.8, (covariates, Q)),
        noise=np.array(0.01),
        jump=np.array(0.02),
    )
    slopes = Slopes(mean=rng.uniform(0.02, 0.1, T), basis=0.05 * rng.standard_normal((T, Q)))
    return obs, weights, scales, slopes


def scaled(**changes):
    def change(obs, weights, scales, slopes):
        zeros = {name: np.zeros_like(getattr(scales, name)) for name, value in changes.items() if value == 0}
        given = {name: np.asarray(value) for name, value in changes.items() if value != 0}
        return obs, weights, scales._replace(**given, **zeros), slopes

    return change


def observed(**changes):
    return lambda obs, *rest: (obs._replace(**{k: f(getattr(obs, k)) for k, f in changes.items()}), *rest)


def present_where(rule):
    """Points absent by a rule; those after a model's last one become padding, which repeats it."""

    def change(obs, *rest):
        present = np.array(rule(np.asarray(obs.present)))
        last = N - 1 - np.argmax(present[:, ::-1], axis=1)
        x = np.where(np.arange(N) > last[:, None], np.take_along_axis(obs.x, last[:, None], 1), obs.x)
        return obs._replace(present=np.asarray(present), x=np.asarray(x)), *rest

    return change


def some_absent(present):
    return present & ((np.random.default_rng(1).random((M, N)) < 0.7) | (np.arange(N) == 0))


CASES = {
    "general": lambda *p: p,
    "gaussian": lambda obs, weights, *rest: (obs, jax.tree.map(np.ones_like, weights), *rest),
    "repeated sizes": observed(present=np.ones_like),
    "gaps": present_where(some_absent),
    "single points": present_where(lambda p: np.arange(N) < np.where(np.arange(M) < 3, 1, 4)[:, None]),
    "families of one": observed(family=lambda f: np.arange(M)),
    "one family": observed(family=np.zeros_like),
    "no covariate varies": observed(covariates=lambda c: np.where(np.arange(K) > 0, 0.0, c)),
    "no own slopes": scaled(model=0),
    "no families": scaled(family=0),
    "no covariates": scaled(covariate=0),
    "no jumps": scaled(jump=0),
    "nothing but noise": scaled(model=0, family=0, covariate=0, jump=0),
    "one amplitude": scaled(model=[0, 0.5, 0, 0, 0], family=[0, 0, 0.5, 0, 0], covariate=0),
    "a thousandfold range": scaled(model=[1e-3, 1, 0.03, 1, 1e-3], family=[1, 1e-3, 1e-3, 1, 0.1]),
}
SHAPES = {"one model without covariates": {"models": 1, "families": 1, "covariates": 1}}


@pytest.fixture(params=[*CASES, *SHAPES])
def case(request):
    if request.param in SHAPES:
        return problem(**SHAPES[request.param])
    return CASES[request.param](*problem())


def check_against_dense(obs, weights, scales, slopes, rtol, spread_atol):
    """Every quantity; tolerances are relative to the largest entry, but for the covariance of predictions."""

    def close(found, expected):
        np.testing.assert_allclose(np.asarray(found), expected, rtol=rtol, atol=rtol * np.abs(expected).max())

    dense = Dense(obs, weights, scales, slopes)
    models, q = len(obs.x), scales.model.shape[0]
    given = condition(obs, weights, scales, slopes)
    np.testing.assert_allclose(float(given.evidence), dense.evidence(), rtol=rtol, atol=rtol)

    mean, covariance = shared_moments(obs, given)
    expected_mean, expected = dense.shared()
    close(mean.reshape(-1), expected_mean)
    close(covariance, expected.reshape(models, q, models, q)[np.arange(models), :, np.arange(models)])

    ahead = extrapolate(obs, scales, slopes, given, NEW, DOF)
    expected_curve, expected_spread = dense.predictive(NEW, DOF)
    close(ahead.offset + np.einsum("mgq,mq->mg", ahead.gain, mean), expected_curve)
    spread = np.asarray(ahead.covariance + ahead.gain @ covariance @ ahead.gain.mT)
    np.testing.assert_allclose(spread, expected_spread, rtol=rtol, atol=spread_atol)

    jax.tree.map(close, updated(obs, weights, scales, given, DOF), dense.expectations(DOF))


def test_everything_equals_the_dense_gaussian(case):
    check_against_dense(*case, rtol=1e-9, spread_atol=1e-9)


@pytest.mark.parametrize("seed", range(1, 5))
def test_everything_equals_the_dense_gaussian_for_other_curves(seed):
    check_against_dense(*problem(seed), rtol=1e-9, spread_atol=1e-9)


def with_the_least_noise():
    obs, weights, scales, slopes = problem()
    least = np.asarray(1e-4)  # the fitter's
    return obs, weights, scales._replace(noise=least, jump=least), slopes


def test_everything_equals_the_dense_gaussian_with_the_least_noise():
    check_against_dense(*with_the_least_noise(), rtol=1e-6, spread_atol=1e-5)


def test_spread_of_predictions_is_exact_to_the_least_noise():
    check_against_dense(*with_the_least_noise(), rtol=1e-6, spread_atol=1e-9)


def test_gradient_of_the_evidence_is_that_of_dense_finite_differences(case):
    obs, weights, scales, slopes = case
    gradients = jax.tree.leaves(evidence_gradient(obs, weights, scales, condition(*case)))
    leaves, structure = jax.tree.flatten(extended(scales))
    rng = np.random.default_rng(0)
    for number, (leaf, found) in enumerate(zip(leaves, gradients, strict=True)):
        direction = 1e-5 * rng.standard_normal(leaf.shape)  # of the log

        def evidence(share, number=number, direction=direction):
            moved = [*leaves[:number], leaves[number] * np.exp(share * direction), *leaves[number + 1 :]]
            return Dense(obs, weights, structure.unflatten(moved), slopes).evidence()

        difference = float(evidence(1) - evidence(-1)) / 2
        allowed = 1e-7 * np.sum(np.abs(found * direction))
        np.testing.assert_allclose(np.sum(found * direction), difference, rtol=1e-6, atol=allowed + 1e-13)


@pytest.mark.parametrize("name", ["general", "no own slopes", "no jumps", "gaps"])
def test_curves_given_their_coefficients_have_the_moments_of_the_dense_gaussian(name):
    """In two steps: coefficients, then the curve given them."""
    obs, weights, scales, slopes = CASES[name](*problem())
    at = np.array([0.0, 0.35, 1.7, 9.0])  # the last beyond all observations, where curves are those at their ends
    leading = (jax.tree.map(lambda leaf: np.asarray(leaf)[None], part) for part in (scales, weights))
    scales_1, weights_1 = leading
    slopes_1 = Slopes(np.broadcast_to(slopes.mean, (1, M, T)), np.broadcast_to(slopes.basis, (1, M, T, Q)))
    given = condition(obs, weights_1, scales_1, slopes_1)
    fitted = Fitted(scales_1, slopes_1, weights_1, given)
    own, (_, covariance) = own_coefficients(obs, fitted), shared_moments(obs, given)
    spread = own.gain @ covariance @ own.gain.mT + own.root @ own.root.mT
    found = values(obs, fitted, own.mean, at)
    variance = found.sd**2 + np.sum((found.gain @ spread) * found.gain, axis=-1)
    dense = Dense(obs, weights, scales, slopes)
    last = np.max(np.where(obs.present, obs.x, 0.0), axis=1)
    for i in range(M):
        mean, expected = dense.predictive(np.minimum(at, last[i]), DOF)
        np.testing.assert_allclose(found.mean[0, i], mean[i].astype(float), rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(variance[0, i], np.diag(expected[i]).astype(float), rtol=1e-6, atol=1e-9)


def white_noise(draws, seed=3):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((draws, K * Q)), rng.standard_normal((3, draws, Q))  # of three families


@pytest.mark.parametrize("name", ["general", "one family", "no families", "no covariates"])
def test_draws_have_the_joint_moments_of_the_dense_gaussian(name):
    obs, weights, scales, slopes = CASES[name](*problem())
    given = condition(obs, weights, scales, slopes)
    draws = 20_000
    covariate, family = white_noise(draws)
    found = shared_draws(obs, given, covariate, family[: obs.family.max() + 1])
    assert found.shape == (M, draws, Q)
    found = found.swapaxes(0, 1).reshape(draws, -1)
    mean, covariance = (part.astype(float) for part in Dense(obs, weights, scales, slopes).shared())
    variance = np.diag(covariance)
    assert np.all(np.abs(found.mean(axis=0) - mean) <= 5 * np.sqrt(variance / draws))
    error = np.sqrt((covariance**2 + np.outer(variance, variance)) / draws)
    assert np.all(np.abs(np.cov(found.T) - covariance) <= 6 * error)


def test_draws_of_a_certain_thing_are_its_mean():
    obs, weights, scales, slopes = scaled(family=0, covariate=0)(*problem())
    given = condition(obs, weights, scales, slopes)
    np.testing.assert_array_equal(shared_draws(obs, given, *white_noise(10)), 0)


def test_draws_without_noise_are_the_mean():
    obs, *rest = problem()
    given = condition(obs, *rest)
    found = shared_draws(obs, given, *(0 * noise for noise in white_noise(10)))
    mean, _ = shared_moments(obs, given)
    np.testing.assert_allclose(found, np.broadcast_to(mean[:, None], found.shape), rtol=1e-10, atol=1e-12)


def test_pulls_give_posterior_means_of_what_is_a_models_own():
    obs, weights, scales, slopes = problem()
    dense = Dense(obs, weights, scales, slopes)
    given = condition(obs, weights, scales, slopes)
    mean, _ = dense.posterior()
    pull = pulls(given, shared_moments(obs, given)[0])
    own = scales.model**2 * np.einsum("mnq,mn->mq", given.basis, pull)
    np.testing.assert_allclose(np.asarray(own), mean[dense.at["own"]].reshape(M, Q), rtol=1e-7, atol=1e-9)
    level = LEVEL_VARIANCE * np.sum(np.where(obs.present, pull, 0.0), axis=1)
    np.testing.assert_allclose(np.asarray(level), mean[dense.at["level"]], rtol=1e-7, atol=1e-9)


# Invariances --------------------------------------------------------------------------------------------------


def everything(obs, weights, scales, slopes):
    """All results that have an entry per model, with the points of a model as they are padded."""
    given = condition(obs, weights, scales, slopes)
    by_scale = evidence_gradient(obs, weights, scales, given)
    return (
        given.evidence,
        by_scale,
        shared_moments(obs, given),
        extrapolate(obs, scales, slopes, given, NEW, DOF),
        updated(obs, weights, scales, given, DOF),
    )


def test_padding_changes_nothing():
    obs, weights, scales, slopes = problem()
    evidence, by_scale, shared, ahead, new = everything(obs, weights, scales, slopes)

    def wider(values, fill):
        return np.concatenate([values, fill * np.ones((M, 3), values.dtype)], axis=1)

    padded = obs._replace(
        x=np.concatenate([obs.x, np.repeat(obs.x[:, -1:], 3, axis=1)], axis=1),
        y=wider(np.where(obs.present, obs.y, np.nan), np.nan),
        present=np.concatenate([obs.present, np.zeros((M, 3), bool)], axis=1),
        noise=wider(obs.noise, 1.0),
    )
    other = everything(padded, Weights(wider(weights.noise, 1.0), wider(weights.jump, 1.0)), scales, slopes)
    np.testing.assert_allclose(other[0], evidence, rtol=1e-12)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-10),
        other[1:4],
        (by_scale, shared, ahead),
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[:, :N], y, rtol=1e-8), other[4], new)
    jax.tree.map(lambda x: np.testing.assert_array_equal(x[:, N:], 1.0), other[4])


def test_order_of_models_changes_nothing_else():
    obs, weights, scales, slopes = problem()
    evidence, by_scale, *per_model = everything(obs, weights, scales, slopes)
    order = np.random.default_rng(0).permutation(M)
    permuted = jax.tree.map(lambda leaf: leaf[order], (obs, weights))
    other_evidence, other_by_scale, *other = everything(*permuted, scales, slopes)
    np.testing.assert_allclose(other_evidence, evidence, rtol=1e-12)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y[order], rtol=1e-8, atol=1e-10), tuple(other), tuple(per_model)
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-7, atol=1e-8), other_by_scale, by_scale)


@pytest.mark.parametrize("numbers", [[2, 0, 1], [1, 2, 0]], ids=str)
def test_numbers_of_families_mean_nothing(numbers):
    obs, *rest = problem()
    renumbered = obs._replace(family=np.asarray(numbers)[obs.family])
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-10),
        everything(renumbered, *rest),
        everything(obs, *rest),
    )


def test_a_constant_added_to_a_curve_moves_its_level_alone():
    obs, weights, scales, slopes = problem()
    *_, shared, ahead, new = everything(obs, weights, scales, slopes)
    risen = obs._replace(y=obs.y + 0.01 * (np.arange(M) == 2)[:, None])
    *_, risen_shared, risen_ahead, risen_new = everything(risen, weights, scales, slopes)
    # Up to the level's own prior, which is wide.
    np.testing.assert_allclose(risen_shared[0], shared[0], rtol=1e-3, atol=1e-6)
    moved = np.where(np.arange(M) == 2, 0.01, 0.0)[:, None]
    np.testing.assert_allclose(risen_ahead.offset - ahead.offset, moved + 0 * ahead.offset, atol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3), risen_new, new)


def test_many_degrees_of_freedom_are_gaussian():
    obs, weights, scales, slopes = problem()
    given = condition(obs, weights, scales, slopes)
    jax.tree.map(lambda x: np.testing.assert_allclose(x, 1.0, rtol=1e-6), updated(obs, weights, scales, given, 1e10))


def test_an_outlier_and_a_jump_lose_weight():
    obs, weights, scales, slopes = CASES["gaussian"](*problem())
    # Alike and smooth curves.
    x = np.broadcast_to(np.arange(float(N)), (M, N))
    quiet = obs._replace(x=x, y=-integrals(x, T) @ slopes.mean, present=np.ones_like(obs.present))
    quiet = quiet._replace(noise=np.ones_like(obs.noise))
    scales = Scales(*(0.05 * sd for sd in scales[:3]), noise=np.asarray(0.01), jump=np.asarray(0.005))
    at, which = np.arange(N), np.arange(M)[:, None]
    outlier = quiet._replace(y=quiet.y + 0.2 * ((which == 0) & (at == 3)))
    jump = quiet._replace(y=quiet.y + 0.2 * ((which == 1) & (at >= 3)))
    weights_of = {}
    for name, curves in (("outlier", outlier), ("jump", jump)):
        found = weights
        for _ in range(20):
            found = updated(curves, found, scales, condition(curves, found, scales, slopes), DOF)
        weights_of[name] = jax.tree.map(np.asarray, found)
    assert np.unravel_index(np.argmin(weights_of["outlier"].noise), (M, N)) == (0, 3)
    assert np.unravel_index(np.argmin(weights_of["jump"].jump), (M, N)) == (1, 3)
    assert weights_of["outlier"].noise[0, 3] < 0.05
    assert weights_of["jump"].jump[1, 3] < 0.05
    assert np.median(weights_of["outlier"].noise) > 1


def test_integrals_are_the_overlaps_with_octaves():
    x = np.array([[0.0, 0.4, 1.0], [2.5, 4.0, 5.0]])
    expected = [
        [[0, 0, 0, 0], [0.4, 0, 0, 0], [1, 0, 0, 0]],
        [[1, 1, 0.5, 0], [1, 1, 1, 1], [1, 1, 1, 1]],
    ]
    np.testing.assert_allclose(integrals(np.asarray(x), 4), expected, rtol=1e-15)


# Roots --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero", [[], [0], [4], [1, 3], [0, 1, 2, 3, 4]], ids=str)
def test_roots_of_covariances_some_of_which_are_0(zero):
    a = np.random.default_rng(0).standard_normal((2, 5, 5))
    a = a @ a.mT + 0.1 * np.eye(5)
    a[:, zero], a[:, :, zero] = 0, 0
    root = cholesky(a)
    np.testing.assert_array_equal(root, np.tril(root))
    np.testing.assert_allclose(root @ root.mT, a, rtol=1e-12, atol=1e-14)
    u = np.array([2.0, -1.0, 4.0, 0.5])
    np.testing.assert_array_equal(cholesky(np.outer(u, u)) @ cholesky(np.outer(u, u)).T, np.outer(u, u))
