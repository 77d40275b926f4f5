"""LensJAX's Optuna pruner beside Optuna's own, on public curves: regret at equal cost. See README.md beside this file.

LENSJAX_BENCHMARKS=FOLDER python experiments/pruners/run.py [--searches 4] [--models 8] [--out DIR]
"""

import csv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import optuna
import tyro
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.trial import TrialState

from lensjax.core.csv_text import csv_text
from lensjax.core.errors import InputError
from lensjax.core.files import make_folder, write_files
from lensjax.curves.public import available, rectified
from lensjax.curves.table import CurveTable
from lensjax.tuning.optuna import JointPruner
from lensjax.tuning.rule import Rule

FOLDER = Path(__file__).parent
STEP = 200  # examples
JOINT, OWN = "JointPruner", ("MedianPruner", "SuccessiveHalvingPruner")


class Search(NamedTuple):
    """A search that has ended.

    Attributes:
      task, number: which models, in which order.
      pruner, setting: how trials were ended.
      cost: steps of all trials as a share of those without a pruner.
      regret: loss of the best trial that was not ended above the lowest of all, as a share of the spread of losses.
      found: whether that is the best trial.
    """

    task: str
    number: int
    pruner: str
    setting: str
    cost: float
    regret: float
    found: bool


class _Remembering(Rule):
    """The rule, which does not fit again what another search of the same trials has fitted."""

    known: dict[frozenset, float | None] = {}  # noqa: RUF012  # shared by all searches

    def chance(self, curves: Mapping[str, Mapping[int, float]], name: str) -> float | None:
        key = frozenset([(name,), *((one, tuple(sorted(curve.items()))) for one, curve in curves.items())])
        if key not in self.known:
            self.known[key] = super().chance(curves, name)
        return self.known[key]


def _joint(horizon: int, below: float) -> BasePruner:
    pruner = JointPruner(horizon, below=below)
    pruner._rule = _Remembering(horizon, below, pruner._rule.trials)
    return pruner


def settings(horizon: int) -> Iterator[tuple[str, str, Callable[[], BasePruner]]]:
    """Pruners, their settings in words, and what makes them; the first of each pruner is its default."""
    yield "none", "", NopPruner
    for below in (0.05, 0.2, 0.4):
        yield JOINT, f"below={below:g}", lambda below=below: _joint(horizon, below)
    for warmup, startup in ((0, 5), (3, 5), (15, 5), (63, 5), (0, 2), (15, 2)):
        words = f"n_warmup_steps={warmup}, n_startup_trials={startup}"
        yield OWN[0], words, lambda warmup=warmup, startup=startup: MedianPruner(startup, warmup)
    for factor, least in ((4, "auto"), (2, 1), (4, 16), (2, 64), (4, 256), (2, 512), (4, 2048)):
        words = f"reduction_factor={factor}, min_resource={least}"
        yield OWN[1], words, lambda factor=factor, least=least: SuccessiveHalvingPruner(least, factor)


def some_models(task: str, models: int, number: int) -> CurveTable:
    """Random models of a task in random order."""
    table = rectified(task)
    table = table.select(np.flatnonzero(table.measured[:, table.sizes > 0].all(axis=1)))
    return table.select(np.random.default_rng([number, models]).permutation(len(table.models))[:models])


def search(table: CurveTable, pruner: BasePruner) -> tuple[float, int]:
    """The share of all steps that a search makes with a pruner, and the row of the best trial that was not ended."""
    sizes = np.flatnonzero(table.sizes > 0)
    steps, made = (table.sizes[sizes] // STEP).astype(int).tolist(), 0
    study = optuna.create_study(pruner=pruner)
    for curve in table.loss[:, sizes].tolist():
        trial, last = study.ask(), 0
        for step, loss in zip(steps, curve, strict=True):
            last = step
            trial.report(loss, step)
            if step < steps[-1] and trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, curve[-1])
        made += last
    return made / (steps[-1] * len(table.models)), study.best_trial.number


def at_cost(points: list[tuple[float, float]], cost: float) -> float | None:
    """The least regret at a cost, where settings may be mixed at random; None where all cost more."""
    least = [regret for spent, regret in points if spent <= cost]
    mixed = [
        low + (high - low) * (cost - cheap) / (dear - cheap)
        for cheap, low in points
        for dear, high in points
        if cheap < cost < dear
    ]
    return min([*least, *mixed], default=None)


def summary(found: list[Search]) -> str:
    """Costs and regrets by setting, and every pruner's least regret at the costs of ours, as Markdown."""
    held = {(one.pruner, one.setting) for one in found}
    keys = [(pruner, setting) for pruner, setting, _ in settings(1) if (pruner, setting) in held]
    means: dict[tuple[str, str], tuple[float, float, float]] = {}
    rows = ["| pruner | settings | steps made | regret | standard error | best found |", "|---|---|---|---|---|---|"]
    for key in keys:
        some = [one for one in found if (one.pruner, one.setting) == key]
        cost, regret = np.mean([one.cost for one in some]), np.array([one.regret for one in some])
        means[key] = float(cost), float(regret.mean()), float(np.mean([one.found for one in some]))
        error = regret.std(ddof=1) / np.sqrt(len(some)) if len(some) > 1 else np.nan
        numbers = f"{cost:.3f} | {regret.mean():.4f} | {error:.4f} | {means[key][2]:.2f}"
        rows.append(f"| {key[0]} | {key[1]} | {numbers} |")
    rows += ["", f"| steps made by {JOINT} | its regret | {' | '.join(OWN)} |", "|---|---|---|---|"]
    for key in (key for key in keys if key[0] == JOINT):
        others = [at_cost([means[one][:2] for one in keys if one[0] == name], means[key][0]) for name in OWN]
        told = " | ".join("costs more" if regret is None else f"{regret:.4f}" for regret in others)
        rows.append(f"| {means[key][0]:.3f} ({key[1]}) | {means[key][1]:.4f} | {told} |")
    return "\n".join(rows) + "\n"


def _earlier(path: Path) -> list[Search]:
    """The searches of an earlier run."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    return [
        Search(task, int(number), pruner, setting, float(cost), float(regret), found == "True")
        for task, number, pruner, setting, cost, regret, found in rows
    ]


def main(out: Path = FOLDER / "results", searches: int = 4, models: int = 8) -> None:
    """Write pruners.md and pruners.csv; searches that the latter has are not made again.

    Args:
      out: Folder for the results.
      searches: Number of searches of each task.
      models: Number of trials of a search.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    tasks = available()
    if not tasks:
        raise SystemExit("The public curves are not at hand; name their folder in LENSJAX_BENCHMARKS.")
    make_folder(out)
    found = _earlier(out / "pruners.csv")
    for number in range(searches):
        for task in tasks:
            table = some_models(task, models, number)
            last, horizon = table.loss[:, -1], int(table.sizes[-1] // STEP)
            _Remembering.known.clear()
            for pruner, setting, make in settings(horizon):
                if any(
                    (one.task, one.number, one.pruner, one.setting) == (task, number, pruner, setting) for one in found
                ):
                    continue
                cost, chosen = search(table, make())
                regret = float((last[chosen] - last.min()) / np.ptp(last))
                found.append(Search(task, number, pruner, setting, cost, regret, chosen == int(last.argmin())))
            done = len({(one.task, one.number) for one in found})
            said = f"{done} sets of {models} models of {', '.join(tasks)}, in turn.\n\n{summary(found)}"
            rows = [list(Search._fields), *(list(one) for one in found)]
            write_files({out / "pruners.md": said, out / "pruners.csv": csv_text(rows)})
            print(f"\r{done} of {searches * len(tasks)}", end="", flush=True)
    print(f"\n{said}")


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except InputError as error:
        raise SystemExit(f"{error}") from error
