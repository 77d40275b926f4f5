"""Linear algebra of the joint model: a Gaussian hierarchy over models, in time linear in their number.

With a local slope v_i(x) = -d log L_i / d log2 D, x = log2(D / D_min) in octaves, model i's curve is

    y_i(x) = ℓ_i - ∫₀ˣ v_i + W_i(x) + ε,    v_i = v̄_i + Σ_q basis_iq(x) (d_iq + f_{family(i),q} + Σ_k c_ik t_kq)

where v̄_i and basis_i are a model's slopes to first order in the coefficients (see `lensjax.fit.joint.slopes`), ℓ_i
is a free level, W_i a random walk of level jumps, ε noise, and d, f, t are Gaussian coefficients of the model, its
family and the covariates c (the first of them 1, for all models alike). Every kind of coefficient has its own
amplitude per basis function.

Models are independent given f and t, families given t. Marginalising in that order (models by n × n, families
by q × q, covariates by Kq × Kq Cholesky factors) costs O(M (n³ + q³)) for M models of n points.

All of it is NumPy: compiling programs for tables of some ten curves would take longer than everything else. Weights,
scales and slopes may have further axes in front, "*b", such as one over priors; those of the observations have none.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Self, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from lensjax.fit.joint.blocks import blocks, joined

Rows: TypeAlias = slice | Int[np.ndarray, " m"]  # some of M models
LEVEL_VARIANCE = 4.0  # of ℓ_i: log losses of one task differ by far less than this


class Observations(NamedTuple):
    """Curves of M models, padded to n points each.

    Attributes:
      x: octaves above the smallest size, non-decreasing; padding repeats the last.
      y: log loss less a constant; anything in padding.
      present: whether a point is real.
      noise: variance of a point's noise relative to a single run's.
      covariates: K per model, the first of them 1.
      family: number of the model's family, from 0 to F - 1, each of them used.
    """

    x: Float[np.ndarray, "M n"]
    y: Float[np.ndarray, "M n"]
    present: Bool[np.ndarray, "M n"]
    noise: Float[np.ndarray, "M n"]
    covariates: Float[np.ndarray, "M K"]
    family: Int[np.ndarray, " M"]

    def of(self, rows: Rows) -> "Observations":
        """Those of some of the models."""
        return Observations(*(part[rows] for part in self))


class Weights(NamedTuple):
    """Precisions of single noise terms and jumps relative to their population; 1 for Gaussian ones."""

    noise: Float[np.ndarray, "*b M n"]
    jump: Float[np.ndarray, "*b M n"]

    def of(self, rows: Rows) -> "Weights":
        """Those of some of the models."""
        return Weights(*(part[..., rows, :] for part in self))


class Scales(NamedTuple):
    """Standard deviations of the hierarchy's parts.

    Attributes:
      model, family: of each coefficient of a model's and a family's own slope.
      covariate: of each coefficient, per covariate.
      noise: of a single run's log loss.
      jump: of the level, per square root of an octave.
    """

    model: Float[np.ndarray, "*b q"]
    family: Float[np.ndarray, "*b q"]
    covariate: Float[np.ndarray, "*b K q"]
    noise: Float[np.ndarray, "*b"]
    jump: Float[np.ndarray, "*b"]


class Slopes(NamedTuple):
    """Slopes of M models, or of all alike, and the basis of deviations from them, constant within each of T octaves."""

    mean: Float[np.ndarray, "*b M T"]
    basis: Float[np.ndarray, "*b M T q"]

    def of(self, rows: Rows) -> "Slopes":
        """Those of some of the models."""
        return Slopes(self.mean[..., rows, :], self.basis[..., rows, :, :])


@dataclass(frozen=True)
class OfModels:
    """What is known of M models from their own observations, given their families and the covariates.

    Attributes:
      precision: inverse covariance of a model's observations given its family and the covariates.
      basis: integrals of the slopes' basis at the observations.
      residual: observations less the population's curve.
      walk: Var W_i at the observations.
      level, level_variance: mean of ℓ_i per unit of residual, and its variance, were the slopes known.
    """

    precision: Float[np.ndarray, "*b M n n"]
    basis: Float[np.ndarray, "*b M n q"]
    residual: Float[np.ndarray, "*b M n"]
    walk: Float[np.ndarray, "*b M n"]
    level: Float[np.ndarray, "*b M n"]
    level_variance: Float[np.ndarray, "*b M"]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (getattr(self, field.name) for field in fields(self))

    def of(self, rows: Rows) -> Self:
        """With the parts that are of models of some of them alone."""
        return replace(
            self,
            precision=self.precision[..., rows, :, :],
            basis=self.basis[..., rows, :, :],
            residual=self.residual[..., rows, :],
            walk=self.walk[..., rows, :],
            level=self.level[..., rows, :],
            level_variance=self.level_variance[..., rows],
        )


@dataclass(frozen=True)
class Conditional(OfModels):
    """The posterior of the coefficients given the observations; see `condition`.

    Attributes:
      evidence: log marginal likelihood of all observations.
      covariate_mean, covariate_covariance: of the covariates' coefficients.
      family_mean, family_covariance: of a family's coefficients where the covariates' are 0.
      family_gain: fall of a family's coefficients per rise of the covariates'.
    """

    evidence: Float[np.ndarray, "*b"]
    covariate_mean: Float[np.ndarray, "*b Kq"]
    covariate_covariance: Float[np.ndarray, "*b Kq Kq"]
    family_mean: Float[np.ndarray, "*b F q"]
    family_covariance: Float[np.ndarray, "*b F q q"]
    family_gain: Float[np.ndarray, "*b F q Kq"]


def integrals(x: Float[np.ndarray, "*a"], octaves: int) -> Float[np.ndarray, "*a T"]:
    """Share of each octave that lies below x, so that `integrals(x, T) @ v` is ∫₀ˣ v."""
    return np.clip(x[..., None] - np.arange(octaves), 0.0, 1.0)


def times(matrix: Float[np.ndarray, "*b n m"], vector: Float[np.ndarray, "*b m"]) -> Float[np.ndarray, "*b n"]:
    """Matrices times vectors, with axes in front that broadcast."""
    product: np.ndarray = (matrix @ vector[..., None])[..., 0]
    return product


def _covariance(
    sd: Float[np.ndarray, "*b q"], precision: Float[np.ndarray, "*b q q"]
) -> tuple[Float[np.ndarray, "*b q q"], Float[np.ndarray, "*b"]]:
    """(diag(sd)⁻² + precision)⁻¹, and log det(1 + diag(sd) precision diag(sd)); any sd may be 0."""
    both = sd[..., :, None] * sd[..., None, :]
    a = np.eye(sd.shape[-1]) + both * precision
    return both * np.linalg.inv(a), np.linalg.slogdet(a)[1]


def cholesky(a: Float[np.ndarray, "*b n n"]) -> Float[np.ndarray, "*b n n"]:
    """Lower Cholesky factor; rows of a zero diagonal give zeros."""
    try:
        return np.linalg.cholesky(a)
    except np.linalg.LinAlgError:
        pass
    left, root = a.copy(), np.zeros_like(a)
    for k in range(a.shape[-1]):
        pivot = left[..., k, k][..., None]
        column = np.where(pivot > 0, left[..., :, k] / np.sqrt(np.where(pivot > 0, pivot, 1.0)), 0.0)
        column[..., :k] = 0.0
        root[..., k] = column
        left -= column[..., :, None] * column[..., None, :]
    return root


def _by_family(values: np.ndarray, obs: Observations, axis: int) -> np.ndarray:
    """Sums over the models of each family, along the axis of models."""
    order = np.argsort(obs.family, kind="stable")
    starts = np.flatnonzero(np.diff(obs.family[order], prepend=-1))
    sums: np.ndarray = np.add.reduceat(values.take(order, axis), starts, axis)
    return sums


def octaves_before(obs: Observations) -> Float[np.ndarray, "M n"]:
    """From the size before each to it; 0 to the first."""
    return np.diff(obs.x, axis=1, prepend=obs.x[:, :1])


def last_size(obs: Observations) -> Float[np.ndarray, " M"]:
    """Octaves up to each model's largest measured size."""
    return np.max(np.where(obs.present, obs.x, 0.0), axis=1)


def of_points(scale: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b 1 1"]:
    return np.asarray(scale)[..., None, None]


def noise_variance(obs: Observations, weights: Weights, scales: Scales) -> Float[np.ndarray, "*b M n"]:
    """Variance of noise."""
    return of_points(scales.noise) ** 2 * obs.noise / weights.noise


def _walk(obs: Observations, weights: Weights, scales: Scales) -> Float[np.ndarray, "*b M n"]:
    """Var W_i at the observations; its covariance is the smaller of two variances."""
    return np.cumsum(of_points(scales.jump) ** 2 * octaves_before(obs) / weights.jump, axis=-1)


def shared_minimum(a: Float[np.ndarray, "*b M n"], b: Float[np.ndarray, "*b M m"]) -> Float[np.ndarray, "*b M n m"]:
    return np.minimum(a[..., :, None], b[..., None, :])


@dataclass(frozen=True)
class _Told(OfModels):
    """And what observations say of the coefficients.

    Attributes:
      information, score: precision of the coefficients, and that times their mean.
      quadratic: residuals times precision times residuals, of each point.
      log_det: of the covariance of observations.
    """

    information: Float[np.ndarray, "*b M q q"]
    score: Float[np.ndarray, "*b M q"]
    quadratic: Float[np.ndarray, "*b M n"]
    log_det: Float[np.ndarray, "*b M"]


class Inverse(NamedTuple):
    """Of a model's covariance, and what it says of the level; see `Conditional`."""

    precision: Float[np.ndarray, "*b M n n"]
    log_det: Float[np.ndarray, "*b M"]
    level: Float[np.ndarray, "*b M n"]
    level_variance: Float[np.ndarray, "*b M"]


def invert(obs: Observations, covariance: Float[np.ndarray, "*b M n n"], noise: Float[np.ndarray, "*b M n"]) -> Inverse:
    """Inverse covariance of a model's observations, noise and level included."""
    identity = np.eye(obs.x.shape[1])
    both = obs.present[:, :, None] & obs.present[:, None, :]
    a = np.where(both, covariance + noise[..., None] * identity, identity)
    inverse, log_det = np.linalg.inv(a), np.linalg.slogdet(a)[1]
    # The level is added after inverting: in one matrix with noise, its variance would cost half the digits.
    sums = times(inverse, 1.0 * obs.present)
    left = 1 / (np.sum(sums * obs.present, axis=-1) + 1 / LEVEL_VARIANCE)
    level = np.where(obs.present, sums * left[..., None], 0.0)
    inverse = np.where(both, inverse - level[..., :, None] * sums[..., None, :], 0.0)
    return Inverse(inverse, log_det + np.log(LEVEL_VARIANCE / left), level, left)


def _alone(obs: Observations, weights: Weights, scales: Scales, slopes: Slopes) -> _Told:
    path = -integrals(obs.x, slopes.basis.shape[-2])
    basis = np.where(obs.present[..., None], path @ slopes.basis, 0.0)
    residual = np.where(obs.present, obs.y - times(path, slopes.mean), 0.0)
    walk = _walk(obs, weights, scales)
    own = (basis * scales.model[..., None, None, :] ** 2) @ basis.mT + shared_minimum(walk, walk)
    inverse = invert(obs, own, noise_variance(obs, weights, scales))
    weighted = inverse.precision @ basis
    return _Told(
        precision=inverse.precision,
        basis=basis,
        residual=residual,
        walk=walk,
        level=inverse.level,
        level_variance=inverse.level_variance,
        information=basis.mT @ weighted,
        score=times(weighted.mT, residual),
        quadratic=residual * times(inverse.precision, residual),
        log_det=inverse.log_det,
    )


_AXES = (-3, -3, -2, -2, -2, -1, -3, -2, -2, -1)  # of models in what `_alone` tells


def condition(obs: Observations, weights: Weights, scales: Scales, slopes: Slopes) -> Conditional:
    """Log marginal likelihood of all curves and the posterior of families' and covariates' coefficients.

    Args:
      obs: M curves of n points.
      weights: of single noise terms and jumps; see `update_weights`.
      scales: standard deviations of all parts.
      slopes: the population's slope, and the basis of deviations from it.
    """
    models, covariates = obs.covariates.shape
    q = slopes.basis.shape[-1]
    if len(few := blocks(models)) == 1:
        alone = _alone(obs, weights, scales, slopes)
    else:
        some = (_alone(obs.of(rows), weights.of(rows), scales, slopes.of(rows)) for rows in few)
        alone = joined(list(some), _AXES)
    information, score = alone.information, alone.score

    # Families given the covariates.
    batch = information.shape[:-3]
    of_families = _by_family(information, obs, -3)
    weighed = (_by_family(column[:, None, None] * information, obs, -3) for column in obs.covariates.T[1:])
    coupling = np.stack([of_families, *weighed], axis=-3)  # the first covariate is 1
    coupling = coupling.reshape(*coupling.shape[:-3], covariates * q, q)
    family_covariance, family_log_det = _covariance(scales.family[..., None, :], of_families)
    family_gain = family_covariance @ coupling.mT
    family_mean = times(family_covariance, _by_family(score, obs, -2))

    # The covariates.
    products = (obs.covariates[:, :, None] * obs.covariates[:, None, :]).reshape(models, -1)
    full = (products.T @ information.reshape(*batch, models, q * q)).reshape(*batch, covariates, covariates, q, q)
    full = full.swapaxes(-3, -2).reshape(*batch, covariates * q, covariates * q)
    for rows in blocks(coupling.shape[-3]):
        full = full - np.sum(coupling[..., rows, :, :] @ family_gain[..., rows, :, :], axis=-3)
    full_score = (obs.covariates.T @ score).reshape(*batch, covariates * q)
    full_score = full_score - np.sum(times(coupling, family_mean), axis=-2)
    covariance, covariate_log_det = _covariance(scales.covariate.reshape(*batch, covariates * q), full)
    covariate_mean = times(covariance, full_score)

    explained = np.sum(_by_family(score, obs, -2) * family_mean, axis=(-2, -1))
    explained = explained + np.sum(full_score * covariate_mean, axis=-1)
    log_dets = np.sum(alone.log_det, axis=-1) + np.sum(family_log_det, axis=-1) + covariate_log_det
    constant = np.sum(obs.present) * np.log(2 * np.pi)
    return Conditional(
        evidence=-0.5 * (np.sum(alone.quadratic, axis=(-2, -1)) - explained + log_dets + constant),
        **{field.name: getattr(alone, field.name) for field in fields(OfModels)},
        covariate_mean=covariate_mean,
        covariate_covariance=covariance,
        family_mean=family_mean,
        family_covariance=family_covariance,
        family_gain=family_gain,
    )


def shared_mean(obs: Observations, given: Conditional) -> Float[np.ndarray, "*b M q"]:
    """Posterior mean of the coefficients a model has from its family and covariates."""
    by_covariate = given.covariate_mean.reshape(*given.covariate_mean.shape[:-1], obs.covariates.shape[1], -1)
    used, place = np.unique(obs.family, return_inverse=True)  # families of other models are no part of this
    through = times(given.family_gain[..., used, :, :], given.covariate_mean[..., None, :])
    mean: np.ndarray = (given.family_mean[..., used, :] - through)[..., place, :] + obs.covariates @ by_covariate
    return mean


def shared_moments(
    obs: Observations, given: Conditional
) -> tuple[Float[np.ndarray, "*b M q"], Float[np.ndarray, "*b M q q"]]:
    """Posterior mean and covariance of the coefficients a model has from its family and covariates."""
    covariates, q = obs.covariates.shape[1], given.basis.shape[-1]
    batch = given.covariate_mean.shape[:-1]
    used, place = np.unique(obs.family, return_inverse=True)
    family_gain = given.family_gain[..., used, :, :]

    # Cov(Σ_k c_k t_k - G t) for all models of a family with its G, term by term: no model needs a q × Kq matrix.
    products = (obs.covariates[:, :, None] * obs.covariates[:, None, :]).reshape(len(obs.x), -1)
    terms = given.covariate_covariance.reshape(*batch, covariates, q, covariates, q).swapaxes(-3, -2)
    direct = products @ terms.reshape(*batch, covariates**2, q * q)
    through = family_gain @ given.covariate_covariance[..., None, :, :]
    of_families = given.family_covariance[..., used, :, :] + through @ family_gain.mT
    across = through.reshape(*through.shape[:-1], covariates, q)[..., place, :, :, :]
    mixed = np.einsum("mk,...mqkr->...mqr", obs.covariates, across)  # of G t with Σ_k c_k t_k
    return shared_mean(obs, given), direct.reshape(*batch, -1, q, q) + of_families[..., place, :, :] - mixed - mixed.mT


def pulls(given: Conditional, shared: Float[np.ndarray, "*b M q"]) -> Float[np.ndarray, "*b M n"]:
    """Precision-weighted residuals: times a prior covariance with the observations, a posterior mean."""
    return times(given.precision, given.residual - times(given.basis, shared))


def model_mean(obs: Observations, scales: Scales, given: Conditional) -> Float[np.ndarray, "*b M q"]:
    """Posterior mean of all coefficients of a model, its own and those it shares."""
    shared = shared_mean(obs, given)
    mean: np.ndarray = shared + scales.model[..., None, :] ** 2 * times(given.basis.mT, pulls(given, shared))
    return mean
