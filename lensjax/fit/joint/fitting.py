"""The joint fitter: all curves of a task at once.

Per-model fits of a four-parameter law lose to a straight line, because five to eleven points do not identify
four parameters. Here all models are fitted together: see `lensjax.fit.joint.hierarchy` for the model,
`lensjax.fit.joint.shapes` for its priors. Slopes are positive functions of Gaussian coefficients, whose posterior is
Gaussian to first order about its mode (Gauss and Newton's method). In turn with it, amplitudes, noise and jumps are
learned by maximum marginal likelihood under weak priors (Optax's L-BFGS, with gradients by Fisher's identity), and the
weights that make noise and level jumps Student-t. The same fit without the largest sizes predicts them, which shows
whether its intervals are wide enough; if not, they are widened.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from lensjax.core.blas import one_blas_thread
from lensjax.core.errors import InputError, listing
from lensjax.curves.table import CurveTable
from lensjax.fit.calibration import hold_out, widenings
from lensjax.fit.joint.blocks import blocks, joined
from lensjax.fit.joint.curves import Fitted
from lensjax.fit.joint.descent import Descent
from lensjax.fit.joint.hierarchy import (
    Conditional,
    Observations,
    Scales,
    Slopes,
    Weights,
    condition,
    last_size,
    model_mean,
    times,
)
from lensjax.fit.joint.observing import observe
from lensjax.fit.joint.posterior import JointPosterior
from lensjax.fit.joint.sensitivity import gradient, sensitivity, update_weights
from lensjax.fit.joint.shapes import SHAPES
from lensjax.fit.joint.slopes import NOISE, PRIORS, SlopePrior, linearised, slope_priors, slopes_of
from lensjax.fit.posterior import Z90, check_fit
from lensjax.fit.residuals import Residuals, candidate_times
from lensjax.fit.thinning import thinned

LEAST_NOISE = 1e-4  # of log loss: none is known better
LEARN_FROM = 256  # models at most teach the amplitudes; more would add time, not knowledge
SETTLING = 4  # rounds of learning weights and slopes, in which amplitudes stay as they are
LEARNING = 10  # rounds after these, of learning amplitudes, then weights and slopes
AGAIN = 5  # such rounds where amplitudes start from those of nearly the same curves
EVALUATIONS = 10  # of the evidence in a round, at most
HALVINGS = 8  # of a step of the coefficients, at most
TIMES = 13  # at which log F is tried
REFINEMENTS = 2  # between the best and its neighbours
LOG_F = "log F"


@dataclass(frozen=True)
class JointSettings:
    """The parts of the joint model; `lensjax rank` uses the defaults.

    Attributes:
      priors: slope priors that are averaged, names in `lensjax.fit.joint.shapes.SHAPES`.
      family, size, level: whether a model's family, log size and loss level may explain its slopes.
      jumps: whether levels may jump between sizes.
      widen: whether intervals are widened where those of a fit without the largest sizes were too narrow.
      dof: degrees of freedom of Student's t for noise and jumps, above 2; Gaussian as it grows.
      amplitude_sd: prior standard deviation of the log of every amplitude.
    """

    priors: tuple[str, ...] = PRIORS
    family: bool = True
    size: bool = True
    level: bool = True
    jumps: bool = True
    widen: bool = True
    dof: float = 3.0
    amplitude_sd: float = 0.8

    def __post_init__(self) -> None:
        if not self.priors:
            raise InputError(f"No slope prior is named; choose one or more of {listing(SHAPES.names)}.")
        for name in self.priors:
            SHAPES.check(name)
        if not (self.dof > 2 and self.amplitude_sd > 0):
            raise InputError(
                f"dof is {self.dof} and amplitude_sd {self.amplitude_sd}; give dof above 2 and a positive sd."
            )


class Learned(NamedTuple):
    """Learned under each prior: `parameters`, which `unpack` reads, robust weights, and coefficients of models."""

    parameters: Float[np.ndarray, "P h"]
    weights: Weights
    coefficients: Float[np.ndarray, "P M q"]


class _State(NamedTuple):
    """Of models, between rounds: robust weights, coefficients, how these changed last, and the pace of changes."""

    noise: Float[np.ndarray, "P M n"]
    jump: Float[np.ndarray, "P M n"]
    coefficients: Float[np.ndarray, "P M q"]
    change: Float[np.ndarray, "P M q"]
    pace: Float[np.ndarray, "P M 1"]

    @property
    def weights(self) -> Weights:
        return Weights(self.noise, self.jump)

    def of(self, rows: slice) -> "_State":
        """Those of some of the models."""
        return _State(*(part[:, rows] for part in self))


def unpack(parameters: Float[np.ndarray, "P h"], prior: SlopePrior, jumps: bool = True) -> Scales:
    """Scales from vectors of log amplitudes, log noise and log jump."""
    amplitudes = np.exp(parameters[:, :-2]).reshape(prior.amplitudes.shape)
    paths = np.repeat(amplitudes[..., -1:], prior.path.shape[-1], axis=-1)
    sd = np.concatenate([amplitudes[..., :-1], paths], axis=-1)
    noise, jump = np.hypot(np.exp(parameters[:, -2:]), LEAST_NOISE).T
    return Scales(model=sd[:, 0], family=sd[:, 1], covariate=sd[:, 2:], noise=noise, jump=jump * jumps)


def _parameters(scales: Scales, prior: SlopePrior) -> Float[np.ndarray, "P h"]:
    """What `unpack` makes these scales of, where there are jumps."""
    rows = np.concatenate([scales.model[:, None], scales.family[:, None], scales.covariate], axis=1)
    amplitudes = rows[..., : prior.centre.shape[1] + 1]
    ends = np.stack([scales.noise, scales.jump], axis=1) ** 2 - LEAST_NOISE**2
    ends = np.sqrt(np.maximum(ends, LEAST_NOISE**2 * 1e-4))
    return np.log(np.concatenate([amplitudes.reshape(len(rows), -1), ends], axis=1))


def _packed(slope: Scales, parameters: Float[np.ndarray, "P h"], prior: SlopePrior) -> Float[np.ndarray, "P h"]:
    """Derivatives by what `unpack` reads from those by the log of every scale."""
    rows = np.concatenate([slope.model[:, None], slope.family[:, None], slope.covariate], axis=1)
    numbers = prior.centre.shape[1]
    amplitudes = np.concatenate([rows[..., :numbers], rows[..., numbers:].sum(axis=-1, keepdims=True)], axis=-1)
    ends = np.exp(2 * parameters[:, -2:])
    ends = np.stack([slope.noise, slope.jump], axis=1) * ends / (ends + LEAST_NOISE**2)
    return np.concatenate([amplitudes.reshape(len(parameters), -1), ends], axis=1)


@one_blas_thread()
def fit_joint(
    table: CurveTable,
    horizon: int,
    covariates: Mapping[str, Float[ArrayLike, " M"]] | None = None,
    settings: JointSettings | None = None,
    residuals: Residuals | None = None,
    start: JointPosterior | None = None,
) -> JointPosterior:
    """Fit all curves of a table at once.

    Points at D = 0 are not used: a pretrained model's loss is not on its fine-tuning curve. Sizes may differ between
    models and points may be missing. Known parameters and families, the loss level and the given covariates may explain
    slopes; how much each does is learned. Losses averaged over k seeds count as k times as precise. Curves of very many
    points are thinned first, see `lensjax.fit.thinning`. Deterministic; runs in float64 on the CPU, whatever JAX's
    defaults are.

    Args:
      table: curves of M models with at least two sizes D > 0 each.
      horizon: largest number of examples to predict for.
      covariates: further numbers of each model known before fine-tuning; NaN where unknown.
      settings: parts to leave out or change.
      residuals: of linearised training under each model's kernel. log F_i(t) is one more covariate, at the one t for
        all models that makes the curves most probable (mean of the log evidence over the slope priors).
      start: a fit of nearly the same curves with the same settings and covariates, whose amplitudes are those to start
        from.

    Returns:
      The posterior over all curves up to the horizon.

    Raises:
      InputError: a model has fewer than two points, the horizon lies below a measured size, or a covariate
        is not one number per model.
    """
    settings, table = settings or JointSettings(), thinned(table)
    unit = int(table.sizes[check_fit(table, horizon, "joint")].min())
    octaves = max(1, int(np.ceil(np.log2(horizon / unit) - 1e-9)))
    known, time = dict(covariates or {}), None

    def fit(
        table: CurveTable, known: Mapping[str, Float[ArrayLike, " M"]], start: JointPosterior | None = start
    ) -> JointPosterior:
        obs, centre = observe(table, unit, known, family=settings.family, size=settings.size, level=settings.level)
        priors = slope_priors(octaves, obs.covariates.shape[1], settings.priors)
        return JointPosterior(
            models=table.models,
            unit=unit,
            horizon=horizon,
            centre=centre,
            observations=obs,
            prior=priors,
            dof=settings.dof,
            fitted=_fit(obs, priors, settings, start),
        )

    if residuals is None:
        posterior = fit(table, known)
    else:
        residuals.check(len(table.models))
        time, posterior = _best_time(lambda t: fit(table, known | {LOG_F: np.asarray(residuals.log_f(t))}), residuals)
        known[LOG_F] = np.asarray(residuals.log_f(time))
    posterior = replace(posterior, time=time)
    seen, last = hold_out(table)
    if not (settings.widen and last.measured.any()):
        return posterior
    common, own = widenings(_errors(fit(seen, known, posterior), last), settings.dof, settings.amplitude_sd)
    return replace(posterior, widening=common, own_widening=own)


def _errors(posterior: JointPosterior, last: CurveTable) -> Float[np.ndarray, " M"]:
    """Errors of predicted log losses, in standard deviations on their side of the median; NaN where none is known."""
    held = np.flatnonzero(last.measured.any(axis=1))
    column = np.argmax(last.measured[held], axis=1)
    sizes, place = np.unique(last.sizes[column], return_inverse=True)
    median, lower, upper = (np.log(part[held, place]) for part in posterior.predict(sizes).parts)
    far = np.log(last.loss[held, column]) - median
    errors = np.full(len(last.models), np.nan)
    errors[held] = Z90 * far / np.where(far > 0, upper - median, median - lower)
    return errors


def _best_time(fit: Callable[[float], JointPosterior], residuals: Residuals) -> tuple[float, JointPosterior]:
    """The time with the largest evidence, on a grid and then between its neighbours; and the fit with it."""
    logs = list(np.log(candidate_times(residuals, TIMES)))
    fits = [fit(float(np.exp(log))) for log in logs]
    for _ in range(REFINEMENTS):
        best = int(np.argmax([one.evidence for one in fits]))
        for between in (best, best + 2):  # the grid grows by the first before the second is placed
            if 0 < between < len(logs):
                logs.insert(between, (logs[between - 1] + logs[between]) / 2)
                fits.insert(between, fit(float(np.exp(logs[between]))))
    best = int(np.argmax([one.evidence for one in fits]))
    return float(np.exp(logs[best])), fits[best]


def _fit(obs: Observations, priors: SlopePrior, settings: JointSettings, start: JointPosterior | None = None) -> Fitted:
    models = obs.x.shape[0]
    first = None if start is None else _parameters(start.fitted.scales, priors)
    if models <= LEARN_FROM:
        return _learn(obs, priors, settings, first)[1]
    some = teachers(models)
    taught = Observations(*(part[some] for part in obs))
    taught = taught._replace(family=np.unique(taught.family, return_inverse=True)[1])
    learned, _ = _learn(taught, priors, settings, first)
    return _learn(obs, priors, settings, learned.parameters, known=True)[1]


def teachers(models: int) -> Int[np.ndarray, " L"]:
    """Positions of the models that teach what all share: each, or `LEARN_FROM` spread evenly."""
    return np.unique(np.linspace(0, models - 1, min(models, LEARN_FROM)).round().astype(int))


def _learn(
    obs: Observations,
    prior: SlopePrior,
    settings: JointSettings,
    first: Float[np.ndarray, "P h"] | None = None,
    known: bool = False,
) -> tuple[Learned, Fitted]:
    """Parameters, unless the first ones are known to be right, weights and coefficients under each prior."""
    priors, models = len(prior.names), obs.x.shape[0]
    centre = np.concatenate([np.log(prior.amplitudes).reshape(priors, -1), np.full((priors, 2), np.log(NOISE))], axis=1)
    parameters = centre if first is None else first
    rounds = SETTLING + (LEARNING if first is None else AGAIN)
    coefficients = np.zeros((priors, models, prior.centre.shape[1] + prior.path.shape[-1]))
    ones, pace = np.ones((priors, *obs.x.shape)), np.ones((priors, models, 1))
    state = _State(ones, ones, coefficients, np.zeros_like(coefficients), pace)
    descent = Descent(priors, centre.shape[1], settings.amplitude_sd)
    for number in range(rounds + 1):  # the last round only evaluates
        slopes, weights = linearised(prior, state.coefficients), state.weights
        if not known and SETTLING <= number < rounds:
            objective = partial(_objective, centre, obs, prior, settings, weights, slopes)
            parameters = descent.lower(objective, parameters, EVALUATIONS)
        scales = unpack(parameters, prior, settings.jumps)
        given = condition(obs, weights, scales, slopes)
        if number == rounds:
            break
        steps = (
            _stepped(obs.of(rows), prior, settings.dof, scales, slopes.of(rows), given.of(rows), state.of(rows))
            for rows in blocks(models)
        )
        state = joined(list(steps), [1] * len(state))
    return Learned(parameters, weights, state.coefficients), Fitted(scales, slopes, weights, given)


def _stepped(
    obs: Observations,
    prior: SlopePrior,
    dof: float,
    scales: Scales,
    slopes: Slopes,
    given: Conditional,
    state: _State,
) -> _State:
    """The next weights and coefficients of some models, where what all share is given."""
    measured = np.arange(prior.path.shape[-1]) < last_size(obs)[:, None]
    change = model_mean(obs, scales, given) - state.coefficients
    # Steps that go back and forth become shorter.
    along = times(slopes.basis, state.change) * times(slopes.basis, change)
    turned = np.sum(along * measured, axis=-1, keepdims=True) < 0
    pace = np.where(turned, state.pace / 2, np.minimum(1.5 * state.pace, 1.0))
    weights = update_weights(obs, state.weights, scales, sensitivity(obs, given), dof)
    change = pace * _share(prior, slopes, state.coefficients, pace * change, measured) * change
    return _State(*weights, state.coefficients + change, change, pace)


def _share(
    prior: SlopePrior,
    slopes: Slopes,
    coefficients: Float[np.ndarray, "P M q"],
    change: Float[np.ndarray, "P M q"],
    measured: Bool[np.ndarray, "M T"],
) -> Float[np.ndarray, "P M 1"]:
    """Share of a step after which slopes, which are not linear in it, are those of before but for a factor of e.

    Args:
      prior, slopes: the latter are to first order about the coefficients.
      coefficients, change: where the step begins, and the step.
      measured: octaves that count, where curves were measured.
    """
    now = np.maximum(slopes.mean + times(slopes.basis, coefficients), 1e-300)
    factor = np.where(measured, np.abs(times(slopes.basis, change)) / now, 0.0)
    share: np.ndarray = 1 / np.maximum(np.max(factor, axis=-1, keepdims=True), 1.0)
    for _ in range(HALVINGS):
        then = slopes_of(prior, coefficients + share * change)
        away = np.where(measured, np.abs(np.log(np.maximum(then, 1e-300) / now)), 0.0)
        too_far = np.max(away, axis=-1, keepdims=True) > 1.5
        if not too_far.any():
            break
        share = np.where(too_far, share / 2, share)
    return share


def _objective(
    centre: Float[np.ndarray, "P h"],
    obs: Observations,
    prior: SlopePrior,
    settings: JointSettings,
    weights: Weights,
    slopes: Slopes,
    parameters: Float[np.ndarray, "P h"],
) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, "P h"]]:
    """Minus the log posterior density of parameters, and its gradient."""
    scales = unpack(parameters, prior, settings.jumps)
    given = condition(obs, weights, scales, slopes)
    rise = _packed(gradient(obs, weights, scales, given, sensitivity(obs, given)), parameters, prior)
    away = (parameters - centre) / settings.amplitude_sd
    return 0.5 * np.sum(away**2, axis=1) - given.evidence, away / settings.amplitude_sd - rise
