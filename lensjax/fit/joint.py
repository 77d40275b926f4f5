"""The joint fitter: all curves of a task at once.

Per-model fits of a four-parameter law lose to a straight line, because five to eleven points do not identify
four parameters. Here models share what they have in common: see `lensjax.fit.hierarchy` for the model,
`lensjax.fit.slopes` for its priors. Amplitudes, noise, jumps and the population's law are learned by maximum
marginal likelihood under weak priors (L-BFGS of Optax), in turn with the weights that make noise and level
jumps Student-t.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from lensjax.curves import CurveTable
from lensjax.errors import InputError, listing, shorten
from lensjax.fit.hierarchy import Observations, Weights, condition, update_weights
from lensjax.fit.posterior import DOF, JointPosterior, Learned, float64_on_cpu, unpack
from lensjax.fit.slopes import LAW_CENTRE, NOISE, SlopePrior, slope_priors

AMPLITUDE_SD = 1.0  # of the log of every learned amplitude, a priori
ROUNDS = 10  # of learning amplitudes, then weights
EVALUATIONS = 10  # of the evidence in a round, at most
MEMORY = 10  # steps that L-BFGS remembers
ENOUGH = 1e-2  # rise of the log evidence in a step, in nats, that ends a round
PADDING = 8  # curves are padded to a multiple of so many points, so that few shapes are compiled


def fit_joint(
    table: CurveTable,
    horizon: int,
    covariates: Mapping[str, Float[ArrayLike, " M"]] | None = None,
) -> JointPosterior:
    """Fit all curves of a table at once.

    The points at D = 0 are not used: a pretrained model's loss is not on its fine-tuning curve. Sizes may
    differ between models and points may be missing. Parameters and families where known, the loss level, and
    any covariate given may explain slopes; how much each does is learned. Losses averaged over k seeds count
    as k times as precise. Deterministic; runs in float64 on the CPU, whatever JAX's defaults are.

    Args:
      table: curves of M models with at least two sizes D > 0 each.
      horizon: largest number of examples that the posterior will be asked about.
      covariates: further numbers known of each model before fine-tuning, such as an NTK-derived log F; NaN
        where unknown.

    Returns:
      The posterior over all curves up to the horizon.

    Raises:
      InputError: a model has fewer than two points, the horizon lies below a measured size, or a covariate
        is not one number per model.
    """
    short = [model for model, points in zip(table.models, table.points(), strict=True) if points < 2]
    if short or not table.models:
        raise InputError(
            f"The joint fit needs at least two sizes above 0 of every model; mend {listing(short)}."
        )
    largest = int(table.sizes[table.measured.any(axis=0)].max())
    if horizon < largest:
        raise InputError(f"The horizon of {horizon} examples lies below the measured {largest}; raise it.")
    unit = int(table.sizes[(table.sizes > 0) & table.measured.any(axis=0)].min())
    octaves = max(1, int(np.ceil(np.log2(horizon / unit) - 1e-9)))
    with float64_on_cpu():
        obs, centre = _observe(table, unit, covariates or {})
        priors = slope_priors(octaves, obs.covariates.shape[1])
        learned = jax.block_until_ready(_learn(obs, priors))
    return JointPosterior(
        models=table.models,
        unit=unit,
        horizon=horizon,
        centre=centre,
        observations=obs,
        priors=priors,
        learned=learned,
    )


def _observe(table: CurveTable, unit: int, extra: Mapping[str, ArrayLike]) -> tuple[Observations, float]:
    """The table as padded arrays, and the mean log loss taken off."""
    positive = table.sizes > 0
    octaves = np.log2(table.sizes[positive] / unit)
    log_loss, seeds = np.log(table.loss[:, positive]), table.seeds[:, positive]
    measured = np.isfinite(log_loss)
    points = measured.sum(axis=1)
    width = int(-(-points.max() // PADDING) * PADDING)
    order = np.argsort(~measured, axis=1, kind="stable")  # measured first, by size

    def packed(values: np.ndarray) -> np.ndarray:
        ordered = np.take_along_axis(values, order, axis=1)
        ordered = np.pad(ordered, ((0, 0), (0, max(0, width - ordered.shape[1]))))[:, :width]
        last = np.take_along_axis(ordered, points[:, None] - 1, axis=1)
        return np.where(np.arange(width) < points[:, None], ordered, last)

    x = packed(np.broadcast_to(octaves, log_loss.shape))
    y = packed(np.where(measured, log_loss, 0.0))
    centre = float(y[:, 0].mean())
    fall = np.median((y[:, 0] - y[:, -1]) / (x[:, -1] - x[:, 0]))
    log_parameters = np.log(table.parameters)
    columns = [np.ones(len(points)), _standardised(log_parameters), _standardised(y[:, 0] + fall * x[:, 0])]
    for name, values in extra.items():
        column = np.asarray(values, dtype=np.float64)
        if column.shape != (len(points),) or np.isinf(column).any():
            raise InputError(
                f"The covariate '{shorten(name)}' needs one finite number (or NaN) for each of the "
                f"{len(points)} models."
            )
        columns.append(_standardised(column))
    # A model of unknown family is a family of its own.
    names = [family or f"\0{i}" for i, family in enumerate(table.families)]
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    obs = Observations(
        x=jnp.asarray(x),
        y=jnp.asarray(y - centre),
        present=jnp.asarray(np.arange(width) < points[:, None]),
        noise=jnp.asarray(1.0 / np.maximum(packed(seeds.astype(np.float64)), 1.0)),
        covariates=jnp.asarray(np.stack(columns, axis=1)),
        family=jnp.asarray([number[name] for name in names]),
    )
    return obs, centre


def _standardised(values: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
    """Mean 0 and standard deviation 1; 0 where unknown, and everywhere if all known values agree."""
    known = np.isfinite(values)
    if not known.any() or np.ptp(values[known]) < 1e-9:
        return np.zeros(len(values))
    return np.where(known, (values - values[known].mean()) / values[known].std(), 0.0)


@jax.jit
def _learn(obs: Observations, priors: SlopePrior) -> Learned:
    learned: Learned = jax.lax.map(partial(_learn_one, obs), priors)
    return learned


def _learn_one(obs: Observations, prior: SlopePrior) -> Learned:
    """Amplitudes and weights under one prior."""
    centre = jnp.concatenate(
        [jnp.log(prior.amplitudes).reshape(-1), jnp.full(2, jnp.log(NOISE)), jnp.asarray(LAW_CENTRE)]
    )

    def objective(parameters: Array, weights: Weights) -> Array:
        evidence = condition(obs, weights, *unpack(parameters, prior)).evidence
        return -evidence + 0.5 * jnp.sum(((parameters - centre) / AMPLITUDE_SD) ** 2)

    def round_(_: int, learned: Learned) -> Learned:
        parameters = _minimise(lambda p: objective(p, learned.weights), learned.parameters)
        scales, slopes = unpack(parameters, prior)
        given = condition(obs, learned.weights, scales, slopes)
        return Learned(parameters, update_weights(obs, learned.weights, scales, given, DOF))

    start = Learned(centre, Weights(jnp.ones_like(obs.x), jnp.ones_like(obs.x)))
    learned: Learned = jax.lax.fori_loop(0, ROUNDS, round_, start)
    return learned


class _Descent(NamedTuple):
    """State of `_minimise`; `step` is the share of `direction` to try next."""

    point: Array
    value: Array
    gradient: Array
    memory: optax.OptState
    direction: Array
    step: Array
    gain: Array
    evaluations: Array


def _minimise(objective: Callable[[Array], Array], start: Array) -> Array:
    """A few steps of L-BFGS with backtracking.

    One loop makes both steps and backtracking, so that the objective is compiled once: compiling takes most
    of the time of a first fit.
    """
    lbfgs = optax.scale_by_lbfgs(memory_size=MEMORY)
    value_and_grad = jax.value_and_grad(objective)

    def evaluate(s: _Descent) -> _Descent:
        point = s.point - s.step * s.direction
        value, gradient = value_and_grad(point)
        slope = jnp.vdot(s.gradient, s.direction)
        better = value <= s.value - 1e-4 * s.step * slope
        bent = jnp.vdot(gradient - s.gradient, point - s.point) > 0
        memory = jax.tree.map(partial(jnp.where, bent), s.memory, lbfgs.init(point))
        direction, memory = lbfgs.update(gradient, memory, point)
        moved = _Descent(
            point, value, gradient, memory, direction, jnp.ones(()), s.value - value, s.evaluations + 1
        )
        stayed = s._replace(step=s.step / 4, evaluations=s.evaluations + 1)
        descent: _Descent = jax.tree.map(partial(jnp.where, better), moved, stayed)
        return descent

    zero, infinite = jnp.zeros_like(start), jnp.asarray(jnp.inf)
    first = _Descent(start, infinite, zero, lbfgs.init(start), zero, jnp.zeros(()), infinite, jnp.asarray(0))
    last = jax.lax.while_loop(lambda s: (s.evaluations < EVALUATIONS) & (s.gain > ENOUGH), evaluate, first)
    return last.point
