"""Whether an error that all models' falls share would make intervals truer; see README.md beside this file.

LENSJAX_BENCHMARKS=FOLDER python experiments/decisions/shared_error.py [--out DIR] [--cache DIR]
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro
from cases import all_cases
from evidence import Evidence, gather
from judging import Draws, by_draws, stacked_draws
from platformdirs import user_cache_path
from report import held, mean, table_lines

from lensjax.core.errors import InputError
from lensjax.core.files import make_folder, write_files
from lensjax.fit.stacked.learned import LEARNED

FOLDER = Path(__file__).parent
SDS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)  # of the log of the factor


def shared(one: Evidence, sd: float) -> Draws:
    """Draws of log losses by the stack in which all falls of a draw are larger by one log-normal factor."""
    draws = stacked_draws(one, LEARNED)
    half = np.random.default_rng(0).standard_normal(-(-len(draws) // 2))
    factor = np.exp(sd * np.random.default_rng(1).permutation(np.concatenate([half, -half]))[: len(draws), None])
    found: Draws = draws - np.tensordot(LEARNED.weights(one.record), one.ahead.fall, 1) * (factor - 1)
    return found


def main(out: Path = FOLDER / "results", cache: Path | None = None) -> None:
    """Write shared_error.md.

    Args:
      out: Folder for it.
      cache: Folder of the cache of fits that `run.py` fills; one of the user's by default.
    """
    found = list(gather(all_cases(3, 0, 12, 8), cache or user_cache_path("lensjax") / "decisions"))
    tasks = list(dict.fromkeys(one.task for one in found))
    if len(tasks) < 2:
        raise InputError("Only one task is at hand; name the folder of the public curves, see README.md.")
    inside, crps, log_score = np.empty((3, len(tasks), len(SDS)))
    for i, task in enumerate(tasks):
        for k, sd in enumerate(SDS):
            verdicts = [by_draws("", one, shared(one, sd)) for one in found if one.task == task]
            inside[i, k] = held(verdicts, 0.9) or 0.0
            crps[i, k] = mean(verdicts, "crps")
            log_score[i, k] = mean(verdicts, "log_score")
    relative = crps / crps[:, :1]
    others = [int(np.argmin(np.delete(relative, i, axis=0).mean(axis=0))) for i in range(len(tasks))]
    rows: list[Sequence[object]] = [
        [task, *(f"{a:.2f} / {b:.3f}" for a, b in zip(inside[i], crps[i], strict=True)), str(SDS[others[i]])]
        for i, task in enumerate(tasks)
    ]
    changes = log_score[np.arange(len(tasks)), others] - log_score[:, 0]
    lines = [
        "# An error that all falls share",
        "",
        "The stack as shipped, with one log-normal factor of all falls in a draw: share of losses in 90 % intervals / "
        "CRPS, by the factor's standard deviation, and the one that the other tasks choose, by the mean of their CRPS "
        "over that without a factor.",
        "",
        *table_lines(["task", *(str(sd) for sd in SDS), "others choose"], rows),
        f"With what the others choose, the log score of P(best) changes by {changes.min():+.3f} to "
        f"{changes.max():+.3f}.",
        "",
    ]
    make_folder(out)
    write_files({out / "shared_error.md": "\n".join(lines)})


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except InputError as error:
        raise SystemExit(f"{error}") from error
