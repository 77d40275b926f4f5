"""Simulated fine-tuning curves. No model was trained for them: they are evidence of nothing."""

from collections.abc import Sequence

import numpy as np

from lensjax.core.errors import InputError
from lensjax.curves.table import CurveTable, curve_table

SIZES = tuple(200 * 2**k for k in range(14))  # 200 … 1,638,400 examples


def simulated(
    seed: int = 0,
    models: int = 12,
    families: int = 4,
    sizes: Sequence[int] = SIZES,
    noise: float = 0.01,
) -> CurveTable:
    """Simulated curves for demonstrations and tests.

    Every curve follows the rectified law L = B / (D_l + D^β) + E. The loss at 200 examples, the exponent β, the
    knee D_l^(1/β) and the floor E vary by family, by number of parameters and by model; larger models start lower
    and bend later. Over the default sizes the law stays within 1 to 6 nats per token, and log L falls, on average
    over a curve, by 0.02 to 0.1 per doubling of D.

    Args:
      seed: 0 or more; equal arguments give equal tables.
      models: number of models, named "simulated-00", "simulated-01", …
      families: number of families, taking turns.
      sizes: numbers of training examples.
      noise: standard deviation of log loss, up to 0.1; 0 gives the law itself. One model in four also jumps, from
        some size on, to another level, which changes its log loss by 5 × noise (standard deviation).

    Raises:
      InputError: an argument is out of range.
    """
    if not (seed >= 0 and models >= 1 and families >= 1 and 0 <= noise <= 0.1):
        raise InputError(
            f"Cannot simulate {models} models of {families} families with seed {seed} and noise {noise}; give "
            "one model and family at least, a seed of 0 or more, and noise from 0 to 0.1."
        )
    rng = np.random.default_rng(seed)
    family = np.arange(models) % families
    scale = rng.uniform(-1, 1, models)  # from 100 million to 10 billion parameters

    def vary(low: float, high: float, by_scale: float = 0.0) -> np.ndarray:
        effect = rng.normal(0, 0.8, families)[family] + by_scale * scale + rng.normal(0, 0.5, models)
        return np.asarray(low + (high - low) / (1 + np.exp(-effect)))

    start, beta = vary(2.3, 5.0, -1.5), vary(0.2, 0.33)
    knee, floor = np.exp(vary(np.log(400), np.log(30_000), 1.0)), vary(0.9, 1.3)
    examples, learned = np.sort(np.asarray(sizes, dtype=np.float64)), knee**beta
    with np.errstate(invalid="ignore"):  # sizes below 0 are refused with the table
        share = (learned + 200**beta) / (learned + examples[:, None] ** beta)
    law = ((start - floor) * share + floor).T
    jump = np.where(rng.random(models) < 0.25, rng.normal(0, 5, models), 0)[:, None]
    jumped = np.arange(examples.size) >= rng.integers(1, max(2, examples.size), (models, 1))
    return curve_table(
        [f"simulated-{i:02d}" for i in range(models)],
        examples,
        law * np.exp(noise * (jump * jumped + rng.normal(size=law.shape))),
        parameters=np.round(1e9 * 10**scale),
        families=[f"family-{k}" for k in family],
        task="simulated",
    )
