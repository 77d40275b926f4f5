"""Simulated fine-tuning curves. No model was trained for them: they are evidence of nothing."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from lensjax.core.errors import InputError
from lensjax.curves.table import CurveTable, curve_table

KINDS = ("law", "plateau", "floor", "transition", "jumps", "divergence", "noise", "mixed")
Vary: TypeAlias = Callable[..., np.ndarray]  # (sd, effect of log size) → a deviation of every model, M × 1

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


class SimulatedTask(NamedTuple):
    """A simulated task: predict the table's last column from its sizes up to the budget.

    Attributes:
      table: losses at the sizes that are seen, and at the target.
      budget, target: in examples.
      kind: the one of `KINDS` that it is.
    """

    table: CurveTable
    budget: int
    target: int
    kind: str


def simulated_task(
    seed: int, kind: str | None = None, models: int | None = None, sizes: int | None = None
) -> SimulatedTask:
    """A task as a user may meet it, with curves that are not all of one law.

    With x in octaves above 200 examples, log L is the level at 200 less the integral of a local slope, plus jumps and
    noise. Slopes, knees and floors vary by family, by log size and by model, as much as the kind and chance say:

    - "law": the rectified law L = B / (D_l + D^β) + E of `simulated`;
    - "plateau": the slope rises from nearly 0 to a plateau p (log-normal about .09 per octave) as a sigmoid of x, with
      a centre within 6 octaves of the start and a width of about 1.5 octaves, and stays there;
    - "floor": L = B / D^β + E with β from .3 to .9, so that curves flatten within what is seen;
    - "transition": a law, on which some models fall by a further .2 to 1 in log loss within an octave or so, anywhere;
    - "jumps": a law, on which two models in five jump from some size on (Student-t, about .05 in log loss);
    - "divergence": a law, but single runs (one in ten, never at the target) diverge, up to 20 times the loss, and one
      model in six does not learn at all;
    - "noise": a law with noise of .02 to .08 in log loss;
    - "mixed": every model has one of the shapes, and jumps and divergence are half as frequent as above.

    Noise is Student-t with 3 degrees of freedom, of .002 to .02 in log loss unless said otherwise.

    Args:
      seed: 0 or more; equal arguments give equal tasks.
      kind: one of `KINDS`; drawn if not given.
      models: 4 to 12 if not given.
      sizes: how many sizes are seen, 200, 400, …; 2 to 12 if not given. The target is 4 to 256 times the largest.

    Raises:
      InputError: an argument is out of range.
    """
    rng = np.random.default_rng([seed, 24])
    drawn = KINDS[rng.integers(len(KINDS))], int(rng.integers(4, 13)), int(rng.integers(2, 13))
    kind, models, sizes = kind or drawn[0], drawn[1] if models is None else models, drawn[2] if sizes is None else sizes
    if kind not in KINDS or models < 1 or sizes < 2:
        raise InputError(
            f"Cannot simulate {models} models at {sizes} sizes of kind '{kind}'; give one model and two sizes at "
            f"least, and one of {', '.join(KINDS)}."
        )
    ahead = int(rng.integers(2, 9))
    x = np.append(np.arange(sizes), sizes - 1 + ahead).astype(np.float64)
    families = int(rng.integers(1, 5))
    family, scale = np.arange(models) % families, rng.uniform(-1, 1, models)

    def vary(sd: float, by_scale: float = 0.0) -> np.ndarray:
        effect = rng.normal(0, 0.8, families)[family] + by_scale * scale + rng.normal(0, 0.6, models)
        return np.asarray(sd * effect)[:, None]

    shapes = {"law": _law, "plateau": _plateau, "floor": _floor, "transition": _transition}
    own = [kind if kind in shapes else "law"] * models
    if kind == "mixed":
        own = list(rng.choice(list(shapes), models))
    curves = {name: shape(rng, x, vary) for name, shape in shapes.items()}  # all, so that kinds share their draws
    log_loss = np.stack([curves[name][i] for i, name in enumerate(own)])
    often = {"mixed": 0.5}.get(kind, 1.0)
    if kind in ("jumps", "mixed"):
        height = 0.05 * rng.standard_t(3, models) * (rng.random(models) < 0.4 * often)
        log_loss += height[:, None] * (np.arange(x.size) >= rng.integers(1, x.size, (models, 1)))
    noise = np.exp(rng.uniform(*np.log((0.02, 0.08) if kind == "noise" else (0.002, 0.02))))
    log_loss += noise * rng.standard_t(3, log_loss.shape).clip(-8, 8)
    if kind in ("divergence", "mixed"):
        hopeless = rng.random(models) < often / 6
        worst = log_loss[:, :1] + rng.uniform(0, 0.5, (models, 1)) + 0.02 * rng.standard_normal(log_loss.shape)
        log_loss = np.where(hopeless[:, None], worst, log_loss)
        diverged = (rng.random(log_loss.shape) < 0.1 * often) & (np.arange(x.size) < x.size - 1)
        log_loss += np.where(diverged, rng.uniform(0.3, 3, log_loss.shape), 0.0)
    examples = (200 * 2**x).astype(np.int64)
    table = curve_table(
        [f"simulated-{i:02d}" for i in range(models)],
        examples,
        np.exp(log_loss),
        parameters=np.round(1e9 * 10**scale),
        families=[f"family-{k}" for k in family],
        task=f"simulated-{kind}-{seed}",
    )
    return SimulatedTask(table, int(examples[-2]), int(examples[-1]), kind)


def _law(rng: np.random.Generator, x: np.ndarray, vary: Vary) -> np.ndarray:
    level, beta = np.log(3.3) + vary(0.15, -1.0), 0.26 * np.exp(vary(0.12))
    knee, share = np.log2(20) + vary(1.5, 0.7), 1 / (1 + np.exp(1.0 + vary(0.5)))
    return level + np.log(share + (1 - share) * (2 ** (beta * knee) + 1) / (2 ** (beta * knee) + 2 ** (beta * x)))


def _plateau(rng: np.random.Generator, x: np.ndarray, vary: Vary) -> np.ndarray:
    height, width = 0.09 * np.exp(vary(0.3)), 1.5 * np.exp(vary(0.15))
    centre = rng.uniform(-2, 6) + vary(1.0, 0.5)
    fall = width * (np.logaddexp(0, (x - centre) / width) - np.logaddexp(0, -centre / width))
    return np.log(3.0) + vary(0.15, -0.7) - height * fall


def _floor(rng: np.random.Generator, x: np.ndarray, vary: Vary) -> np.ndarray:
    beta, share = np.exp(rng.uniform(*np.log((0.3, 0.9))) + vary(0.15)), 1 / (1 + np.exp(rng.normal(0, 1) + vary(0.5)))
    return np.log(2.0) + vary(0.2, -0.7) + np.log(share + (1 - share) * 2 ** (-beta * x))


def _transition(rng: np.random.Generator, x: np.ndarray, vary: Vary) -> np.ndarray:
    start, models = _law(rng, x, vary), vary(0).shape
    height = np.where(rng.random(models) < 0.4, rng.uniform(0.2, 1.0, models), 0.0)
    centre, width = rng.uniform(0, x[-1], models), rng.uniform(0.2, 0.6, models)
    return start - height / (1 + np.exp(-(x - centre) / width))
