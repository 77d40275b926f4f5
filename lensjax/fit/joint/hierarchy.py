"""Linear algebra of the joint model: a Gaussian hierarchy over models, in time linear in their number.

With a local slope v_i(x) = -d log L_i / d log2 D, x = log2(D / D_min) in octaves, model i's curve is

    y_i(x) = ℓ_i - ∫₀ˣ v_i + W_i(x) + ε,    v_i = v̄_i + Σ_q basis_iq(x) (d_iq + f_{family(i),q} + Σ_k c_ik t_kq)

where v̄_i and basis_i are a model's slopes to first order in the coefficients (see `lensjax.fit.joint.slopes`), ℓ_i
is a free level, W_i a random walk of level jumps, ε noise, and d, f, t are Gaussian coefficients of the model, its
family and the covariates c (the first of them 1, for all models alike). Every kind of coefficient has its own
amplitude per basis function.

Models are independent given f and t, families given t. Marginalising in that order (models by n × n, families
by q × q, covariates by Kq × Kq Cholesky factors) costs O(M (n³ + q³)) for M models of n points.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from lensjax.fit.linalg import cholesky, inverse_and_log_det

LEVEL_VARIANCE = 4.0  # of ℓ_i: log losses of one task differ by far less than this


class Observations(NamedTuple):
    """Curves of M models, padded to n points each.

    Attributes:
      x: octaves above the smallest size, non-decreasing; padding repeats the last.
      y: log loss less a constant; anything in padding.
      present: whether a point is real.
      noise: variance of a point's noise relative to a single run's.
      covariates: K per model, the first of them 1.
      family: number of the model's family, from 0 to M - 1.
    """

    x: Float[Array, "M n"]
    y: Float[Array, "M n"]
    present: Bool[Array, "M n"]
    noise: Float[Array, "M n"]
    covariates: Float[Array, "M K"]
    family: Int[Array, " M"]


class Weights(NamedTuple):
    """Precisions of single noise terms and jumps relative to their population; 1 for Gaussian ones."""

    noise: Float[Array, "M n"]
    jump: Float[Array, "M n"]


class Scales(NamedTuple):
    """Standard deviations of the hierarchy's parts.

    Attributes:
      model, family: of each coefficient of a model's and a family's own slope.
      covariate: of each coefficient, per covariate.
      noise: of a single run's log loss.
      jump: of the level, per square root of an octave.
    """

    model: Float[Array, " q"]
    family: Float[Array, " q"]
    covariate: Float[Array, "K q"]
    noise: Float[Array, ""]
    jump: Float[Array, ""]


class Slopes(NamedTuple):
    """Slopes of M models, or of all alike, and the basis of deviations from them, constant within each of T octaves."""

    mean: Float[Array, "*M T"]
    basis: Float[Array, "*M T q"]


class Conditional(NamedTuple):
    """The posterior of the coefficients given the observations; see `condition`.

    Attributes:
      evidence: log marginal likelihood of all observations.
      precision: inverse covariance of a model's observations given its family and the covariates.
      basis: integrals of the slopes' basis at the observations.
      residual: observations less the population's curve.
      walk: Var W_i at the observations.
      level, level_variance: mean of ℓ_i per unit of residual, and its variance, were the slopes known.
      covariate_mean, covariate_covariance: of the covariates' coefficients.
      family_mean, family_covariance: of a family's coefficients where the covariates' are 0.
      family_gain: fall of a family's coefficients per rise of the covariates'.
    """

    evidence: Float[Array, ""]
    precision: Float[Array, "M n n"]
    basis: Float[Array, "M n q"]
    residual: Float[Array, "M n"]
    walk: Float[Array, "M n"]
    level: Float[Array, "M n"]
    level_variance: Float[Array, " M"]
    covariate_mean: Float[Array, " Kq"]
    covariate_covariance: Float[Array, "Kq Kq"]
    family_mean: Float[Array, "F q"]
    family_covariance: Float[Array, "F q q"]
    family_gain: Float[Array, "F q Kq"]


def integrals(x: Float[Array, "*a"], octaves: int) -> Float[Array, "*a T"]:
    """Share of each octave that lies below x, so that `integrals(x, T) @ v` is ∫₀ˣ v."""
    return jnp.clip(x[..., None] - jnp.arange(octaves), 0.0, 1.0)


def _covariance(
    sd: Float[Array, " q"], precision: Float[Array, "*b q q"]
) -> tuple[Float[Array, "*b q q"], Float[Array, "*b"]]:
    """(diag(sd)⁻² + precision)⁻¹, and log det(1 + diag(sd) precision diag(sd)); any sd may be 0."""
    inverse, log_det = inverse_and_log_det(jnp.eye(len(sd)) + sd[:, None] * precision * sd)
    return sd[:, None] * inverse * sd, log_det


def _walk(obs: Observations, weights: Weights, scales: Scales) -> Float[Array, "M n"]:
    """Var W_i at the observations; its covariance is the smaller of two variances."""
    octaves = jnp.diff(obs.x, axis=1, prepend=obs.x[:, :1])
    return jnp.cumsum(scales.jump**2 * octaves / weights.jump, axis=1)


def _shared_minimum(a: Float[Array, "M n"], b: Float[Array, "M m"]) -> Float[Array, "M n m"]:
    return jnp.minimum(a[:, :, None], b[:, None, :])


def condition(obs: Observations, weights: Weights, scales: Scales, slopes: Slopes) -> Conditional:
    """Log marginal likelihood of all curves and the posterior of families' and covariates' coefficients.

    Args:
      obs: M curves of n points.
      weights: of single noise terms and jumps; see `update_weights`.
      scales: standard deviations of all parts.
      slopes: the population's slope, and the basis of deviations from it.
    """
    models, covariates = obs.covariates.shape
    octaves, q = slopes.basis.shape[-2:]
    path = -integrals(obs.x, octaves)
    basis = jnp.where(obs.present[..., None], path @ slopes.basis, 0.0)
    residual = jnp.where(obs.present, obs.y - (path @ slopes.mean[..., None])[..., 0], 0.0)
    walk = _walk(obs, weights, scales)

    # A model given its family and the covariates.
    own = (basis * scales.model**2) @ basis.mT + _shared_minimum(walk, walk)
    noise = scales.noise**2 * obs.noise / weights.noise
    both = obs.present[:, :, None] & obs.present[:, None, :]
    identity = jnp.eye(obs.x.shape[1])
    inverse, log_det = inverse_and_log_det(jnp.where(both, own + noise[:, :, None] * identity, identity))
    # The level is added after inverting: in one matrix with noise, its variance would cost half the digits.
    sums = jnp.einsum("mab,mb->ma", inverse, 1.0 * obs.present)
    left = 1 / (jnp.sum(sums * obs.present, axis=1) + 1 / LEVEL_VARIANCE)
    level = sums * left[:, None]
    log_det += jnp.log(LEVEL_VARIANCE / left)
    inverse -= level[:, :, None] * sums[:, None, :]
    weighted = inverse @ basis
    information = basis.mT @ weighted
    score = jnp.einsum("mnq,mn->mq", weighted, residual)
    quadratic = jnp.einsum("ma,mab,mb->", residual, inverse, residual)

    # Families given the covariates.
    by_family = partial(jax.ops.segment_sum, segment_ids=obs.family, num_segments=models)
    coupling = by_family(jnp.einsum("mk,mab->mkab", obs.covariates, information))
    coupling = coupling.reshape(models, covariates * q, q)
    family_covariance, family_log_det = _covariance(scales.family, by_family(information))
    family_score = by_family(score)
    family_gain = family_covariance @ coupling.mT
    family_mean = jnp.einsum("fab,fb->fa", family_covariance, family_score)

    # The covariates.
    full = jnp.einsum("mk,ml,mab->kalb", obs.covariates, obs.covariates, information)
    full = full.reshape(covariates * q, covariates * q) - jnp.einsum("fab,fbc->ac", coupling, family_gain)
    full_score = jnp.einsum("mk,ma->ka", obs.covariates, score).reshape(-1)
    full_score -= jnp.einsum("fab,fb->a", coupling, family_mean)
    covariance, covariate_log_det = _covariance(scales.covariate.reshape(-1), full)
    covariate_mean = covariance @ full_score

    explained = jnp.sum(family_score * family_mean) + full_score @ covariate_mean
    log_dets = jnp.sum(log_det) + jnp.sum(family_log_det) + covariate_log_det
    evidence = -0.5 * (quadratic - explained + log_dets + jnp.sum(obs.present) * jnp.log(2 * jnp.pi))
    return Conditional(
        evidence=evidence,
        precision=inverse,
        basis=basis,
        residual=residual,
        walk=walk,
        level=level,
        level_variance=left,
        covariate_mean=covariate_mean,
        covariate_covariance=covariance,
        family_mean=family_mean,
        family_covariance=family_covariance,
        family_gain=family_gain,
    )


def shared_moments(obs: Observations, given: Conditional) -> tuple[Float[Array, "M q"], Float[Array, "M q q"]]:
    """Posterior mean and covariance of the coefficients a model has from its family and covariates."""
    q = given.basis.shape[-1]
    models, covariates = obs.covariates.shape
    direct = jnp.einsum("mk,ab->makb", obs.covariates, jnp.eye(q)).reshape(models, q, covariates * q)
    gain = direct - given.family_gain[obs.family]
    mean = given.family_mean[obs.family] + gain @ given.covariate_mean
    return mean, given.family_covariance[obs.family] + gain @ given.covariate_covariance @ gain.mT


def shared_draws(
    obs: Observations,
    given: Conditional,
    covariate_noise: Float[Array, "S Kq"],
    family_noise: Float[Array, "S M q"],
) -> Float[Array, "S M q"]:
    """S joint draws, over models, of the coefficients of `shared_moments`, from standard normal noise."""
    covariate = given.covariate_mean + covariate_noise @ cholesky(given.covariate_covariance).T
    family = given.family_mean - jnp.einsum("fqa,sa->sfq", given.family_gain, covariate)
    family += jnp.einsum("fab,sfb->sfa", cholesky(given.family_covariance), family_noise)
    by_covariate = covariate.reshape(len(covariate), obs.covariates.shape[1], -1)
    return jnp.einsum("mk,skq->smq", obs.covariates, by_covariate) + family[:, obs.family]


def pulls(given: Conditional, shared: Float[Array, "M q"]) -> Float[Array, "M n"]:
    """Precision-weighted residuals: times a prior covariance with the observations, a posterior mean."""
    left = given.residual - jnp.einsum("mnq,mq->mn", given.basis, shared)
    return jnp.einsum("mab,mb->ma", given.precision, left)


def model_mean(obs: Observations, scales: Scales, given: Conditional) -> Float[Array, "M q"]:
    """Posterior mean of all coefficients of a model, its own and those it shares."""
    shared, _ = shared_moments(obs, given)
    pull = jnp.where(obs.present, pulls(given, shared), 0.0)
    return shared + scales.model**2 * jnp.einsum("mnq,mn->mq", given.basis, pull)


def update_weights(obs: Observations, weights: Weights, scales: Scales, given: Conditional, dof: float) -> Weights:
    """One expectation step for Student-t noise and jumps seen as Gaussians of unknown precision.

    E[precision] = (ν + 1) / (ν + E[z² | y]), z being the term over its scale (Lange, Little & Taylor 1989).
    """
    mean, covariance = shared_moments(obs, given)
    inverse_basis = given.precision @ given.basis
    marginal = given.precision - inverse_basis @ covariance @ inverse_basis.mT
    both = obs.present[:, :, None] & obs.present[:, None, :]
    marginal = jnp.where(both, marginal, 0.0)
    pull = jnp.where(obs.present, pulls(given, mean), 0.0)

    def expectation(prior: Array, weight: Array, gradient: Array, information: Array) -> Array:
        variance = jnp.where(prior > 0, prior, 1.0) / weight
        second_moment = (variance * gradient) ** 2 + variance - variance**2 * information
        return jnp.where(prior > 0, (dof + 1) / (dof + second_moment / (variance * weight)), 1.0)

    # A jump moves its own and every later observation.
    later = jnp.triu(jnp.ones(given.precision.shape[-2:]))
    octaves = jnp.diff(obs.x, axis=1, prepend=obs.x[:, :1])
    return Weights(
        noise=expectation(
            scales.noise**2 * obs.noise * obs.present,
            weights.noise,
            pull,
            jnp.diagonal(marginal, axis1=1, axis2=2),
        ),
        jump=expectation(
            scales.jump**2 * octaves,
            weights.jump,
            pull @ later.T,
            jnp.einsum("ja,mab,jb->mj", later, marginal, later),
        ),
    )


class Coefficients(NamedTuple):
    """A model's coefficients and its curve at G sizes given what models share: mean = `offset` + `gain` @ shared.

    Coefficients come first, then the curve's values. `root` is a Cholesky factor of their covariance.
    """

    offset: Float[Array, "M q+G"]
    gain: Float[Array, "M q+G q"]
    root: Float[Array, "M q+G q+G"]


def coefficients(
    obs: Observations, scales: Scales, slopes: Slopes, given: Conditional, x: Float[Array, " G"]
) -> Coefficients:
    """Posterior of all coefficients of a model and of its curve at `x`, or where it ends if that is earlier."""
    octaves, q = slopes.basis.shape[-2:]
    last = jnp.max(jnp.where(obs.present, obs.x, 0.0), axis=1)
    at = jnp.minimum(x, last[:, None])
    path = -integrals(at, octaves)
    rows = path @ slopes.basis
    walk = jax.vmap(jnp.interp)(at, obs.x, given.walk)

    prior, size = scales.model**2, q + x.shape[0]
    everything = jnp.concatenate([jnp.broadcast_to(jnp.eye(q), (len(last), q, q)), rows], axis=1)
    is_value = jnp.arange(size) >= q
    walks = jnp.concatenate([jnp.zeros((len(last), q)), walk], axis=1)
    cross = (everything * prior) @ given.basis.mT + _shared_minimum(walks, given.walk)
    cross = jnp.where(obs.present[:, None, :], cross, 0.0)
    weights = cross @ given.precision + jnp.where(is_value[:, None], given.level[:, None, :], 0.0)
    lost = jnp.einsum("mgn,mn->mg", cross, given.level)
    level = jnp.where(is_value[:, None] & is_value, given.level_variance[:, None, None], 0.0)
    level -= lost[:, :, None] * is_value + lost[:, None, :] * is_value[:, None]
    covariance = (everything * prior) @ everything.mT + _shared_minimum(walks, walks)
    covariance += level - cross @ given.precision @ cross.mT
    curve = jnp.pad((path @ slopes.mean[..., None])[..., 0], ((0, 0), (q, 0)))
    return Coefficients(
        offset=curve + jnp.einsum("mgn,mn->mg", weights, given.residual),
        gain=everything - weights @ given.basis,
        root=cholesky(covariance),
    )


class Extrapolation(NamedTuple):
    """Curves at G new sizes, given what models share: mean = `offset` + `gain` @ shared coefficients."""

    offset: Float[Array, "M G"]
    gain: Float[Array, "M G q"]
    covariance: Float[Array, "M G G"]


def extrapolate(
    obs: Observations, scales: Scales, slopes: Slopes, given: Conditional, x: Float[Array, " G"], dof: float
) -> Extrapolation:
    """Posterior of y_i at `x` given the shared coefficients; jumps to come have Student's variance."""
    path = -integrals(x, slopes.mean.shape[-1])
    basis = path @ slopes.basis
    last = jnp.max(jnp.where(obs.present, obs.x, 0.0), axis=1)
    reached = jnp.max(jnp.where(obs.present, given.walk, 0.0), axis=1)
    within = jax.vmap(jnp.interp, in_axes=(None, 0, 0))(x, obs.x, given.walk)
    ahead = scales.jump**2 * dof / (dof - 2) * (x - last[:, None])
    walk = jnp.where(ahead > 0, reached[:, None] + ahead, within)

    cross = (basis * scales.model**2) @ given.basis.mT + _shared_minimum(walk, given.walk)
    cross = jnp.where(obs.present[:, None, :], cross, 0.0)
    weights = cross @ given.precision + given.level[:, None, :]
    prior = (basis * scales.model**2) @ basis.mT + _shared_minimum(walk, walk)
    lost = jnp.einsum("mgn,mn->mg", cross, given.level)
    level = given.level_variance[:, None, None] - lost[:, :, None] - lost[:, None, :]
    return Extrapolation(
        offset=(path @ slopes.mean[..., None])[..., 0] + jnp.einsum("mgn,mn->mg", weights, given.residual),
        gain=basis - weights @ given.basis,
        covariance=prior - cross @ given.precision @ cross.mT + level,
    )
