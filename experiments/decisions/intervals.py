"""What makes intervals of the stack hold on the worst of the other tasks; see README.md beside this file.

LENSJAX_BENCHMARKS=FOLDER python experiments/decisions/intervals.py [--out DIR] [--cache DIR]
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import tyro
from cases import all_cases
from evidence import Evidence, gather
from jaxtyping import Float
from judging import Draws, by_draws, stacked_draws
from platformdirs import user_cache_path
from report import HEADLINE, group, held, mean, table_lines

from lensjax.core.errors import InputError
from lensjax.core.files import make_folder, write_files
from lensjax.fit.stacked.learned import LEARNED, SEVERAL, Learned, shares
from lensjax.fit.stacked.posterior import grown, pool

FOLDER = Path(__file__).parent
GROWTHS = np.arange(13) / 200  # λ
SPARSE = np.arange(13) / 8  # γ
SIDE = 0.05  # share of losses that may lie beyond either end of a 90 % interval
MANY = 12  # models
COLUMNS = ("pearson", "relative_accuracy", "log_rmse", "crps", "log_score")
SHARED = 0.2  # standard deviation of the log of a factor of all falls, for comparison


def by_numbers(cases: Sequence[Evidence], learned: Learned) -> Float[np.ndarray, "task λ γ 4"]:
    """How 90 % intervals of each task do, with each of `GROWTHS` and of `SPARSE`.

    Returns:
      Share of losses below, and above; and the interval score of Gneiting and Raftery (JASA 2007), the width plus 20
      times how far a log loss is outside, in widths of the joint fit's own intervals; and the mean square error of
      median log losses.
    """
    tasks = list(dict.fromkeys(one.task for one in cases))
    found, models = np.zeros((len(tasks), len(GROWTHS), len(SPARSE), 4)), np.zeros(len(tasks))
    for one in cases:
        ahead, task, weights = one.ahead, tasks.index(one.task), learned.weights(one.record)
        counting = weights, shares(weights, ahead.fall)
        low, high = np.quantile(one.draws, (SIDE, 1 - SIDE), axis=0) - (ahead.level - ahead.fall[0])
        models[task] += len(one.truth)
        for k, sparse in enumerate(SPARSE):
            width = replace(learned, sparse=float(sparse)).width(one.record)
            fall, scale = pool(ahead.fall, ahead.log_sd, *counting, width, learned.disagreement)
            away = np.log(one.truth) - ahead.level + grown(fall, ahead.octaves, GROWTHS[:, None])
            below, above = low * scale - away, away - high * scale
            score = (high - low) * scale + (np.maximum(below, 0) + np.maximum(above, 0)) / SIDE
            parts = (below > 0, above > 0, score / (high - low), away**2)
            found[task, :, k] += np.stack([part.sum(axis=1) for part in parts], axis=-1)
    return found / models[:, None, None, None]


def learn_intervals(cases: Sequence[Evidence], learned: Learned) -> Learned:
    """With that λ with which medians err least, and the γ of the best intervals.

    Errors are geometric means over tasks. The cost of intervals is their mean log score over tasks, plus how far the
    share of losses beyond them is from 5 % on the task and side where it is furthest.
    """
    found = by_numbers(cases, learned)
    growth = int(np.argmin(np.log(found[:, :, 0, 3]).mean(axis=0)))
    found = found[:, growth]
    cost = np.abs(found[..., :2] - SIDE).max(axis=(0, 2)) + np.log(found[..., 2]).mean(axis=0)
    return replace(learned, growth=float(GROWTHS[growth]), sparse=float(SPARSE[np.argmin(cost)]))


def shared(one: Evidence, learned: Learned) -> Draws:
    """Draws of log losses by the stack in which all falls of a draw are larger by one log-normal factor."""
    draws = stacked_draws(one, learned)
    half = np.random.default_rng(0).standard_normal(-(-len(draws) // 2))
    factor = np.exp(SHARED * np.random.default_rng(1).permutation(np.concatenate([half, -half]))[: len(draws), None])
    fall = one.ahead.fall
    found: Draws = draws - np.tensordot(shares(learned.weights(one.record), fall), fall, 1) * (factor - 1)
    return found


def where_models_are_many(cases: Sequence[Evidence]) -> list[Sequence[object]]:
    """Task, number of models up to which components' weights are all that counts, and means of `COLUMNS`."""
    rows: list[Sequence[object]] = []
    for task in dict.fromkeys(one.task for one in cases):
        own = [one for one in cases if one.task == task and len(one.truth) > MANY]
        for several in (MANY, 16, SEVERAL, 24, np.inf) if own else ():
            verdicts = [by_draws("", one, stacked_draws(one, LEARNED, several=several)) for one in own]
            name = f"{several:g}" + (", shipped" if several == SEVERAL else "")
            rows.append([task, name, *(mean(verdicts, column) for column in COLUMNS)])
    return rows


def main(out: Path = FOLDER / "results", cache: Path | None = None) -> None:
    """Write intervals.md.

    Args:
      out: Folder for it.
      cache: Folder of the cache of fits that `run.py` fills; one of the user's by default.
    """
    found = list(gather(all_cases(3, 0, 12, 8), cache or user_cache_path("lensjax") / "decisions"))
    tasks = list(dict.fromkeys(one.task for one in found))
    if len(tasks) < 2:
        raise InputError("Only one task is at hand; name the folder of the public curves, see README.md.")
    plain = replace(LEARNED, growth=0.0, sparse=0.0)
    others = {task: learn_intervals([one for one in found if one.task != task], LEARNED) for task in tasks}
    ways: dict[str, Callable[[Evidence], Draws]] = {
        "λ = γ = 0": lambda one: stacked_draws(one, plain),
        f"and falls that share an error of {SHARED}": lambda one: shared(one, plain),
        "what the others choose": lambda one: stacked_draws(one, others[one.task]),
        "what all choose": lambda one: stacked_draws(one, everything),
        "shipped": lambda one: stacked_draws(one, LEARNED),
    }
    everything = learn_intervals(found, LEARNED)
    rows: list[Sequence[object]] = []
    for task in tasks:
        own = [one for one in found if one.task == task]
        below, above, *_ = by_numbers(own, LEARNED)[0, 0, 0]
        for name, way in ways.items():
            verdicts = [by_draws("", one, way(one)) for one in own]
            chosen = {"what the others choose": others[task], "what all choose": everything, "shipped": LEARNED}
            pair = f"{chosen[name].growth:.3f}, {chosen[name].sparse:.3f}" if name in chosen else None
            sets = [one for one in verdicts if group(one) == HEADLINE]
            score = mean(sets or verdicts, "log_score")
            of_medians = mean(verdicts, "log_rmse")
            rows.append([task, name, pair, held(verdicts, 0.9), mean(verdicts, "crps"), of_medians, score])
        rows[-len(ways)][1] = f"λ = γ = 0; {below:.2f} lie below, {above:.2f} above"
    lines = [
        f"# {(__doc__ or '').split(';', 1)[0]}",
        "",
        "The growth λ of falls and the exponent γ of few points of the stack, otherwise as shipped. λ is chosen by the "
        "log RMSE of medians, in the geometric mean over tasks; γ by the mean log interval score of 90 % intervals, "
        "plus how far the share of losses beyond them is from 5 % on the task and side where it is furthest. The log "
        "score is that of P(best), on sets of 5 and 8 where the task has them.",
        "",
        *table_lines(["task", "with", "λ, γ", "in 90 %", "CRPS", "log RMSE of medians", "log score"], rows),
        f"Where models are more than {MANY}, with the numbers that are shipped: differences between models by the "
        "weighted mean of all components up to so many models, and then more and more by the joint fit.",
        "",
        *table_lines(["task", "models", *COLUMNS], where_models_are_many(found)),
    ]
    make_folder(out)
    write_files({out / "intervals.md": "\n".join(lines)})


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except InputError as error:
        raise SystemExit(f"{error}") from error
