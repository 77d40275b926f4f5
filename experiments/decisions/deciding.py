"""Do the runs that "may well decide it" decide as often as is claimed? On simulated and on public curves.

LENSJAX_BENCHMARKS=FOLDER python experiments/decisions/deciding.py [--tables 20] [--sets 1] [--out DIR]

Models are ranked at a budget. Where that is too close to call, the losses of the plan's runs are taken from the same
curves, all models are ranked again, and P(best) of the choice then stands beside what was claimed of it.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from cases import HEADLINE, TARGET, public_sets

from lensjax.core.csv_text import csv_text
from lensjax.core.files import make_folder, write_files
from lensjax.curves.public import rectified
from lensjax.curves.simulated import simulated
from lensjax.curves.table import CurveTable
from lensjax.selection.deciding import what_decides
from lensjax.selection.decisive import DECIDED, PROBABLY, Plan
from lensjax.selection.methods import DEFAULT_METHOD, predict_by
from lensjax.selection.prediction import CLOSE

FOLDER = Path(__file__).parent
BANDS = ((PROBABLY, 0.6), (0.6, 0.8), (0.8, 1.01))  # of claimed probabilities


class Verdict(NamedTuple):
    """A plan, and what came of it.

    Attributes:
      part: simulated, or the public task.
      name: of the case.
      before: P(best) of the choice at the budget.
      runs, examples: of the plan, and the number of examples of each run.
      claimed, claimed_chance: its probability, and P(best) of the choice on average.
      chance: P(best) of the choice once the runs were measured.
      right: whether that choice is the best model at the target.
    """

    part: str
    name: str
    before: float
    runs: int
    examples: int
    claimed: float
    claimed_chance: float
    chance: float
    right: bool


def all_tables(first: int, count: int, sets: int) -> Iterator[tuple[str, str, CurveTable, CurveTable]]:
    """Part and name, what is seen, and whole curves."""
    for seed in range(first, first + count):
        rng = np.random.default_rng([seed, 28])
        models, noise = int(rng.integers(4, 11)), float(np.exp(rng.uniform(*np.log((0.003, 0.03)))))
        whole = simulated(seed=1000 + seed, models=models, noise=noise)
        budget = 200 * 2 ** int(rng.integers(2, 7))
        yield "simulated", f"{seed}-{budget}", whole.up_to(budget), whole
    for one in public_sets(HEADLINE, sets):
        if one is not None:
            whole = rectified(one.task)
            yield one.task, one.name, one.table, whole.select([whole.models.index(name) for name in one.table.models])


def with_runs(seen: CurveTable, whole: CurveTable, plan: Plan) -> CurveTable | None:
    """What is seen with the plan's runs too; None where the curves do not hold one of them."""
    rows = [whole.models.index(point.model) for point in plan.points]
    columns = np.flatnonzero(whole.sizes == plan.points[0].examples)
    loss = np.where(whole.sizes > seen.sizes.max(), np.nan, whole.loss)
    loss[np.ix_(rows, columns)] = whole.loss[np.ix_(rows, columns)]
    return replace(whole, loss=loss) if columns.size and np.isfinite(loss[rows, columns[0]]).all() else None


def judged(part: str, name: str, seen: CurveTable, whole: CurveTable) -> Verdict | None:
    """A plan and what came of it; None where the choice was clear, or the curves do not hold the plan's runs."""
    _, before = predict_by(DEFAULT_METHOD, seen, TARGET)
    chance = before.probability_best[before.choice]
    if chance >= CLOSE:
        return None
    plan = what_decides(seen, TARGET, before).plan
    known = None if plan is None else with_runs(seen, whole, plan)
    if plan is None or known is None:
        return None
    _, after = predict_by(DEFAULT_METHOD, known, TARGET)
    return Verdict(
        part,
        name,
        float(chance),
        len(plan.points),
        plan.points[0].examples,
        plan.probability,
        plan.chance,
        float(after.probability_best[after.choice]),
        bool(after.choice == np.nanargmin(whole.column(TARGET))),
    )


def summary(verdicts: list[Verdict]) -> str:
    """Claims beside what came of them, as Markdown."""
    rows = [
        "| curves | close choices | claimed to be decided | decided | claimed P(best) | P(best) then | best chosen |",
        "|---|---|---|---|---|---|---|",
    ]

    def row(name: str, some: list[Verdict]) -> None:
        if some:
            decided = np.mean([one.chance >= DECIDED for one in some])
            parts = [np.mean([getattr(one, part) for one in some]) for part in ("claimed_chance", "chance", "right")]
            claimed = np.mean([one.claimed for one in some])
            numbers = " | ".join(f"{value:.2f}" for value in (claimed, decided, *parts))
            rows.append(f"| {name} | {len(some)} | {numbers} |")

    for part in dict.fromkeys(one.part for one in verdicts):
        row(part, [one for one in verdicts if one.part == part])
    row("all", verdicts)
    for low, high in BANDS:
        row(f"claimed {low:g} to {min(high, 1):g}", [one for one in verdicts if low <= one.claimed < high])
    row(f"claimed below {PROBABLY:g}", [one for one in verdicts if one.claimed < PROBABLY])
    return "\n".join(rows) + "\n"


def main(out: Path = FOLDER / "results", tables: int = 20, first: int = 30, sets: int = 1) -> None:
    """Write deciding.md and deciding.csv.

    Args:
      out: Folder for the results.
      tables: Number of simulated tables.
      first: The seed of the first; those from 100 on have set `lensjax.selection.deciding.EAGER`.
      sets: Random sets of 5 and of 8 of the public models, for each task and budget.
    """
    verdicts = []
    for number, (part, name, seen, whole) in enumerate(all_tables(first, tables, sets), start=1):
        if (one := judged(part, name, seen, whole)) is not None:
            verdicts.append(one)
        print(f"\r{number} tables, {len(verdicts)} close", end="", flush=True)
    print()
    said = __doc__.split("\n", 1)[0] + "\n\n" + summary(verdicts)
    make_folder(out)
    rows = [list(Verdict._fields), *(list(one) for one in verdicts)]
    write_files({out / "deciding.md": said, out / "deciding.csv": csv_text(rows)})
    print(said)


if __name__ == "__main__":
    tyro.cli(main)
