"""Minimising several smooth objectives at once by Optax's L-BFGS, with values and gradients from NumPy."""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np
import optax
from jaxtyping import Float

from lensjax.fit.linalg import float64_on_cpu

MEMORY = 100  # pairs of steps and changes of gradients, as many as a fit takes: L-BFGS then is BFGS
ENOUGH = 1e-2  # fall in a step that ends a descent
FARTHEST = 0.5  # change of a parameter in a descent

_LBFGS = optax.scale_by_lbfgs(memory_size=MEMORY, scale_init_precond=False)

Objective = Callable[[Float[np.ndarray, "P h"]], tuple[Float[np.ndarray, " P"], Float[np.ndarray, "P h"]]]


class Descent:
    """Descents of P objectives that change a little from one to the next, whose curvature is remembered.

    Args:
      objectives: P.
      parameters: h of each.
      scale: about how far parameters are from where they should be.
    """

    def __init__(self, objectives: int, parameters: int, scale: float) -> None:
        self._scale = scale
        with float64_on_cpu():
            self._memory = jax.vmap(_LBFGS.init)(np.zeros((objectives, parameters)))

    def lower(self, objective: Objective, point: Float[np.ndarray, "P h"], evaluations: int) -> np.ndarray:
        """Points that are no higher than the first ones, after a few steps with backtracking.

        Args:
          objective: values and gradients of P points.
          point: to start from, [P, h].
          evaluations: of the objective, at most.
        """
        start = point
        value, slope = objective(point)
        direction = self._direction(point, slope, point, slope)
        share, gain = np.ones(len(point)), np.full(len(point), np.inf)
        for _ in range(evaluations - 1):
            if np.all(gain <= ENOUGH):
                break
            trial = np.clip(point - share[:, None] * direction, start - FARTHEST, start + FARTHEST)
            found, trial_slope = objective(trial)
            better = found <= value + 1e-4 * np.sum((trial - point) * slope, axis=1)
            gain = np.where(better, value - found, gain)
            share = np.where(better, 1.0, share / 4)
            value, chosen = np.where(better, found, value), better[:, None]
            # What a step that is not taken tells of the curvature counts too.
            other, other_slope = np.where(chosen, point, trial), np.where(chosen, slope, trial_slope)
            point, slope = np.where(chosen, trial, point), np.where(chosen, trial_slope, slope)
            direction = self._direction(point, slope, other, other_slope)
        return point

    def _direction(
        self, point: np.ndarray, slope: np.ndarray, other: np.ndarray, other_slope: np.ndarray
    ) -> np.ndarray:
        """Gradients times approximate inverse Hessians, which learn from another point where that shows convexity."""
        step, change = point - other, slope - other_slope
        curvature = np.sum(step * change, axis=1)
        flat = curvature <= 1e-10 * np.sqrt(np.sum(step**2, axis=1) * np.sum(change**2, axis=1)) + 1e-30
        other, other_slope = (np.where(flat[:, None], a, b) for a, b in ((point, other), (slope, other_slope)))
        with float64_on_cpu():
            scaled = (point / self._scale, slope * self._scale, other / self._scale, other_slope * self._scale)
            direction, self._memory = _precondition(self._memory, *scaled)
        return self._scale * np.asarray(direction)


@partial(jax.jit, donate_argnums=0)
@partial(jax.vmap, in_axes=(0, 0, 0, 0, 0))
def _precondition(
    memory: optax.ScaleByLBFGSState, point: jax.Array, slope: jax.Array, other: jax.Array, other_slope: jax.Array
) -> tuple[jax.Array, optax.ScaleByLBFGSState]:
    return _LBFGS.update(slope, memory._replace(params=other, updates=other_slope), point)
