"""Back-test strategies of measuring on the public curves: how much regret is left after how many FLOPs?

    python experiments/adaptive/run.py [--out DIR] [--quick]

See README.md beside this file.
"""

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro

from lensjax.core.errors import InputError
from lensjax.core.files import make_folder, write_files
from lensjax.curves import public as datasets
from lensjax.curves.simulated import simulated
from lensjax.curves.table import CurveTable
from lensjax.selection import METHODS
from lensjax.selection.advice import Point, advise, candidate_points, relative_costs

LARGEST = 8  # target over the largest rung, as in the rectified-scaling-law paper
BATCH = 0.1  # of what was spent is measured between two fits of the adaptive strategy
SMALL = 0.02  # nats per token of regret
SUBSETS = 4  # random halves of the models, each a choice of its own


class Choice(NamedTuple):
    """The choice of a strategy that had spent a share of what FullTuning costs; its regret is in nats per token."""

    task: str
    models: str
    strategy: str
    spent: float
    choice: str
    regret: float


@dataclass
class Bench:
    """A table of which nothing is known until it is paid for.

    Attributes:
      table: curves measured up to the target.
      target: size at which the losses are the truth.
      bought: points whose losses may be looked at.
    """

    table: CurveTable
    target: int
    bought: set[Point] = field(default_factory=set)

    @property
    def rungs(self) -> list[int]:
        """Sizes that may be measured."""
        return [int(size) for size in self.table.sizes if 0 < size <= self.target // LARGEST]

    def buy(self, points: Iterable[Point]) -> None:
        """Measure points."""
        self.bought |= set(points)

    def costs(self, points: Iterable[Point]) -> dict[Point, float]:
        """6 × parameters × examples, as a share of the same of all models at the target."""
        full = relative_costs(self.table, (Point(model, self.target) for model in self.table.models))
        whole = sum(full.values())
        return {point: cost / whole for point, cost in relative_costs(self.table, points).items()}

    @property
    def spent(self) -> float:
        """On everything bought."""
        return sum(self.costs(self.bought).values())

    @property
    def seen(self) -> CurveTable:
        """The table of what was bought."""
        within = self.table.up_to(self.target // LARGEST)
        known = [[Point(model, int(size)) in self.bought for size in within.sizes] for model in within.models]
        return replace(within, loss=np.where(known, within.loss, np.nan))


Strategy = Callable[[CurveTable, int], Iterator[tuple[float, str]]]


def ladder(table: CurveTable, target: int) -> Iterator[tuple[float, str]]:
    """All models at a rung before the next; the joint fit chooses."""
    bench = Bench(table, target)
    for number, rung in enumerate(bench.rungs):
        bench.buy(Point(model, rung) for model in table.models)
        if number:
            yield bench.spent, advise(bench.seen, target, {}).choice


def adaptive(table: CurveTable, target: int) -> Iterator[tuple[float, str]]:
    """The points of the largest expected drop in regret per FLOP; the joint fit chooses."""
    bench = Bench(table, target)
    while True:
        costs = bench.costs(candidate_points(bench.seen, bench.rungs))
        advice = advise(bench.seen, target, costs)
        if advice.choice is not None:
            yield bench.spent, advice.choice
        if not costs:
            return
        bench.buy(found.point for found in advice.batch(BATCH * bench.spent))


def halving(method: str, whole_curves: bool) -> Strategy:
    """Halve the candidates after each rung by what a method predicts, until one is left.

    A run ends early, so there is one for every rung at which halving may begin, each the choice for its own cost.

    Args:
      method: whose prediction decides.
      whole_curves: whether it needs the rungs below the first.
    """

    def strategy(table: CurveTable, target: int) -> Iterator[tuple[float, str]]:
        for first in range(1, len(Bench(table, target).rungs)):
            bench = Bench(table, target)
            if whole_curves:
                bench.buy(Point(model, rung) for model in table.models for rung in bench.rungs[:first])
            alive = np.arange(len(table.models))
            for rung in bench.rungs[first:]:
                bench.buy(Point(table.models[i], rung) for i in alive)
                order = METHODS[method].predict(bench.seen, target).order
                alive = order[np.isin(order, alive)]
                best, alive = alive[0], alive[: math.ceil(len(alive) / 2)]
                if len(alive) == 1:
                    break
            yield bench.spent, table.models[best]

    return strategy


STRATEGIES: Mapping[str, Strategy] = {
    "ladder": ladder,
    "adaptive": adaptive,
    "joint halving": halving("joint", whole_curves=True),
    "AtS halving": halving("ats", whole_curves=True),
    "successive halving": halving("sub_tuning", whole_curves=False),
}


def points(table: CurveTable, target: int, models: str) -> Iterator[Choice]:
    """What every strategy chooses after what it spent, and the regret of that."""
    truth = dict(zip(table.models, table.column(target), strict=True))
    best = min(truth.values())
    for name, strategy in STRATEGIES.items():
        for spent, choice in strategy(table, target):
            yield Choice(table.task, models, name, spent, choice, float(truth[choice] - best))


def subsets(table: CurveTable, count: int, seed: int = 0) -> dict[str, CurveTable]:
    """All models, and random halves of them."""
    rng, half = np.random.default_rng(seed), (len(table.models) + 1) // 2
    halves = {f"half {i}": np.sort(rng.permutation(len(table.models))[:half]) for i in range(1, count + 1)}
    return {"all": table} | {name: table.select(rows) for name, rows in halves.items()}


class Course(NamedTuple):
    """The regret of one strategy on one set of models, which holds from what was spent to the next."""

    spent: np.ndarray
    regret: np.ndarray

    def at(self, budgets: np.ndarray) -> np.ndarray:
        """Regret of the last choice within each budget; NaN before the first."""
        last = np.searchsorted(self.spent, budgets, side="right") - 1
        return np.where(last >= 0, self.regret[last], np.nan)

    def small_from(self) -> float:
        """What must be spent for a regret that stays at `SMALL` or below; infinite if it does not."""
        large = np.flatnonzero(self.regret > SMALL)
        first = large[-1] + 1 if large.size else 0
        return float(self.spent[first]) if first < len(self.spent) else math.inf


def courses(found: Sequence[Choice]) -> dict[tuple[str, str, str], Course]:
    """By task, set of models and strategy."""
    groups: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for point in found:
        groups.setdefault((point.task, point.models, point.strategy), []).append((point.spent, point.regret))
    return {key: Course(*np.array(sorted(values)).T) for key, values in groups.items()}


def budgets(found: Mapping[tuple[str, str, str], Course]) -> np.ndarray:
    """Evenly in log, from where every strategy has chosen to where the ladder ends."""
    first = max(course.spent[0] for course in found.values())
    last = max(course.spent[-1] for course in found.values())
    return np.geomspace(first, last, 200)


def markdown(found: Sequence[Choice]) -> str:
    """Mean regret over log budgets, and what a small regret costs, by task and strategy."""
    by_key = courses(found)
    axis = budgets(by_key)
    drawn = len({point.models for point in found}) - 1
    lines = [
        "# Regret against FLOPs",
        "",
        f"Mean regret (nats per token) over budgets from {axis[0]:.2%} to {axis[-1]:.1%} of FullTuning, evenly in log,",
        f"and the share of FullTuning from which regret stays at {SMALL} or below (– if it never does): for all",
        f"models, and over {drawn} random halves of them the mean with its standard error, and the median.",
        "",
    ]
    for task in dict.fromkeys(point.task for point in found):
        lines += [
            f"## {task}",
            "",
            "| strategy | mean regret, all | halves | small regret from, all | halves |",
            "|---|---|---|---|---|",
        ]
        for name in STRATEGIES:
            every = {models: course for (t, models, s), course in by_key.items() if (t, s) == (task, name)}
            whole, halves = every.pop("all"), list(every.values())
            means = [float(np.mean(course.at(axis))) for course in halves]
            error = np.std(means, ddof=1) / math.sqrt(len(means)) if len(means) > 1 else math.nan
            cells = [
                f"{np.mean(whole.at(axis)):.4f}",
                f"{np.mean(means):.4f} ± {error:.4f}" if means else "–",
                _share(whole.small_from()),
                _share(float(np.median([course.small_from() for course in halves])) if halves else math.inf),
            ]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _share(value: float) -> str:
    return f"{value:.2%}" if math.isfinite(value) else "–"


def to_csv(found: Sequence[Choice]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Choice._fields)
    writer.writerows((*p[:3], f"{p.spent:.6g}", p.choice, f"{p.regret:.6g}") for p in found)
    return text.getvalue()


def draw(found: Sequence[Choice], path: Path) -> None:
    """Mean regret over all sets of models of a task against what was spent."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    by_key = courses(found)
    axis, tasks = budgets(by_key), list(dict.fromkeys(point.task for point in found))
    figure, panels = plt.subplots(1, len(tasks), figsize=(4.6 * len(tasks) + 1.8, 3.8), sharey=True, squeeze=False)
    for panel, task in zip(panels[0], tasks, strict=True):
        for number, name in enumerate(STRATEGIES):
            regrets = [course.at(axis) for (t, _, s), course in by_key.items() if (t, s) == (task, name)]
            bold = name == "adaptive"
            panel.plot(
                100 * axis, np.mean(regrets, axis=0), label=name, color="black" if bold else f"C{number}",
                linewidth=2.5 if bold else 1.3, zorder=3 if bold else 2,
            )  # fmt: skip
        panel.axhline(SMALL, color="grey", linewidth=0.8, linestyle=":")
        panel.set(xscale="log", title=task, xlabel="FLOPs spent (% of FullTuning)")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("regret (nats per token)")
    panels[0][0].set_ylim(bottom=0)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="center right", frameon=False)
    figure.tight_layout(rect=(0, 0, 1 - 1.8 / figure.get_figwidth(), 1))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main(out: Path = Path(__file__).parent / "results", target: int = 1_638_400, quick: bool = False) -> None:
    """Write points.csv, adaptive.md and adaptive.svg.

    Args:
      out: Folder for the results.
      target: Size at which models are chosen; rungs are measured up to an eighth of it.
      quick: Take six simulated curves and no halves, to see that it runs.
    """
    if quick:
        target = 51_200
        tables = [simulated(models=6, sizes=[*(200 * 2**k for k in range(6)), target])]
    else:
        tables = [datasets.rectified(name) for name in datasets.available()]
    if not tables:
        print(f"Skipped: set {datasets.VARIABLE} to a folder with the public curves, flan.csv and gigaword.csv.")
        return
    found: list[Choice] = []
    for table in tables:
        for models, part in subsets(table, 0 if quick else SUBSETS).items():
            print(f"{table.task}: {models}", flush=True)
            found += points(part, target, models)
    make_folder(out)
    write_files({out / "points.csv": to_csv(found), out / "adaptive.md": markdown(found)})
    draw(found, out / "adaptive.svg")


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except InputError as error:
        raise SystemExit(f"{error}") from error
