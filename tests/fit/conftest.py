from dataclasses import dataclass

import numpy as np
import pytest

from lensjax.curves.table import CurveTable, curve_table
from lensjax.fit.joint.fitting import fit_joint

# One shape for nearly every fit of a session, because each new one takes seconds to compile: eight models, up
# to eight points each, nine octaves from the smallest size to the horizon.
MODELS = 8
SIZES = 200 * 2 ** np.arange(10)
BUDGET = 25_600
HORIZON = 102_400


@dataclass(frozen=True)
class Task:
    """Simulated curves: what was measured, and the truth about the rest.

    Attributes:
      table: losses at 0, 200, … `BUDGET` examples.
      sizes: 200, 400, … `HORIZON`.
      truth: losses at `sizes` without noise and jumps, models × sizes.
      measured: losses at `sizes` as they would be measured.
      covariate: the number that made slopes differ within a family.
    """

    table: CurveTable
    sizes: np.ndarray
    truth: np.ndarray
    measured: np.ndarray
    covariate: np.ndarray


def _simulate(seed=0, *, models=MODELS, families=3, noise=0.004, jump=0.004, own=0.15, hidden=0.0):
    """A rectified law per model, whose exponent depends on family, size and `hidden` times a covariate."""
    rng = np.random.default_rng(seed)
    family = rng.permutation(np.arange(models) % families)
    size = rng.standard_normal(models)
    covariate = rng.permutation(np.linspace(-1.5, 1.5, models))
    effect = 0.3 * rng.standard_normal(families)[family] + 0.2 * size + hidden * covariate
    beta = 0.25 * np.exp(effect + own * rng.standard_normal(models))
    d_l = (200 * 2 ** rng.uniform(-1, 3, models)) ** beta
    level = np.exp(0.2 * rng.standard_normal(models) - 0.1 * size)
    b, e = 2 * level * (d_l + 200**beta), rng.uniform(0.3, 0.6, models) * level
    truth = b[:, None] / (d_l[:, None] + SIZES ** beta[:, None]) + e[:, None]
    steps = np.cumsum(jump * rng.standard_t(4, truth.shape), axis=1)
    measured = truth * np.exp(steps + noise * rng.standard_normal(truth.shape))
    kept = SIZES <= BUDGET
    table = curve_table(
        [f"model{i}" for i in range(models)],
        np.append(0, SIZES[kept]),
        np.column_stack([1.3 * measured[:, 0], measured[:, kept]]),
        parameters=np.exp(19.0 + 1.5 * size),
        families=[f"family{f}" for f in family],
    )
    return Task(table, SIZES, truth, measured, covariate)


@pytest.fixture(scope="session")
def simulate():
    return _simulate


@pytest.fixture(scope="session")
def task():
    return _simulate(seed=0)


@pytest.fixture(scope="session")
def posterior(task):
    return fit_joint(task.table, HORIZON)
