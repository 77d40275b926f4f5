"""How well methods decide: on public, own, tabular and simulated curves; see README.md beside this file.

LENSJAX_BENCHMARKS=FOLDER python experiments/decisions/run.py [--out DIR] [--quick] [--learn]
"""

import json
from dataclasses import asdict
from pathlib import Path

import tyro
from cases import all_cases
from evidence import Evidence, gather
from intervals import learn_intervals
from judging import STEPS, by_draws, by_scores, learn, stacked_draws
from platformdirs import user_cache_path
from report import draw, markdown, verdicts_csv

from lensjax.core.errors import InputError
from lensjax.core.files import make_folder, write_files
from lensjax.fit.stacked.learned import LEARNED, Learned

FOLDER = Path(__file__).parent


def main(
    out: Path = FOLDER / "results",
    cache: Path | None = None,
    sets: int = 3,
    other_sets: int = 0,
    every: int = 12,
    simulated: int = 8,
    quick: bool = False,
    learn_all: bool = False,
) -> None:
    """Write verdicts.csv, report.md, reliability.svg and learned.json.

    Fits are kept in a cache, so that a run that was stopped goes on where it was.

    Args:
      out: Folder for the results.
      cache: Folder of the cache; one of the user's by default.
      sets: Random sets of 5 and of 8 of the public models, for each task and budget.
      other_sets: Those of 4, 6, 10 and 12.
      every: Step through the data sets of LCDB.
      simulated: Number of simulated tasks.
      quick: A few simulated tasks and the zoo's, to see that it runs.
      learn_all: Also learn the numbers of the stack from all tasks.
    """
    if quick:
        sets, other_sets, every, simulated = 0, 0, 1000, 2
    cases = all_cases(sets, other_sets, every, simulated)
    if quick:
        cases = [one for one in cases if one.task == "simulated" or one.part == "verses"]
    found = []
    for number, one in enumerate(gather(cases, cache or user_cache_path("lensjax") / "decisions"), start=1):
        found.append(one)
        print(f"\r{number}/{len(cases)} cases", end="", flush=True)
    print()
    steps = 20 if quick else STEPS
    learned = {
        task: taught([one for one in found if one.task != task], steps)
        for task in dict.fromkeys(one.task for one in found)
    }
    verdicts = []
    for one in found:
        verdicts.append(by_draws("joint", one, one.draws))
        verdicts.append(by_draws("stacked", one, stacked_draws(one, learned[one.task])))
        verdicts.append(by_draws("as shipped", one, stacked_draws(one, LEARNED)))
        verdicts += by_scores(one)
    numbers = {f"without {task}": asdict(value) for task, value in learned.items()}
    if learn_all:
        everything = taught(found, steps)
        print(f"LEARNED = {everything}")
        numbers["of all"] = asdict(everything)
    numbers["shipped"] = asdict(LEARNED)
    notes = [
        f"{len(cases)} cases; nothing above the budget is seen. The numbers of the stack (`learned.json`) that judge "
        "a task were learned without it; those of `as shipped` were set with these tasks in sight. "
        "Losses are in the unit of each task; CRPS is in shares of the spread of its true losses."
    ]
    make_folder(out)
    write_files(
        {
            out / "verdicts.csv": verdicts_csv(verdicts),
            out / "report.md": markdown(verdicts, notes),
            out / "learned.json": json.dumps(numbers, indent=2) + "\n",
        }
    )
    draw(verdicts, out / "reliability.svg")


def taught(cases: list[Evidence], steps: int) -> Learned:
    """All numbers of the stack, as some tasks teach them."""
    return learn_intervals(cases, learn(cases, steps=steps))


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except InputError as error:
        raise SystemExit(f"{error}") from error
