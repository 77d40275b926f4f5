"""Regenerate the rectified-scaling-law benchmark with every method, and test each ingredient of the joint model.

    python experiments/rectified_benchmark/run.py [--out DIR]

Uses whichever public tasks `lensjax.curves.public` can find; see README.md beside this file.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from lensjax.core.errors import InputError
from lensjax.core.files import write_files
from lensjax.curves import public as datasets
from lensjax.curves.table import CurveTable
from lensjax.fit.joint.fitting import JointSettings, fit_joint
from lensjax.selection.backtest import RATIOS, Score, backtest, means, to_csv
from lensjax.selection.metrics import METRICS, evaluate
from lensjax.selection.prediction import predict_from

TARGET = 1_638_400
# Back-tests stop at TARGET / 8, the largest budget, so that choosing by them never looks at the target.
EARLIER = (51_200, 102_400, 204_800)
EARLIER_RATIOS = (8, 16, 32, 64)
SMALLEST_BUDGET = 800  # three sizes

INGREDIENTS: Mapping[str, JointSettings] = {
    "all": JointSettings(),
    "without family": JointSettings(family=False),
    "without size": JointSettings(size=False),
    "without level": JointSettings(level=False),
    "without jumps": JointSettings(jumps=False),
    "Gaussian noise and jumps": JointSettings(dof=1e6),
    "without the floor": JointSettings(priors=("lasting", "damped", "saturating")),
    "floor only": JointSettings(priors=("floor",)),
    "lasting only": JointSettings(priors=("lasting",)),
    "damped only": JointSettings(priors=("damped",)),
    "saturating only": JointSettings(priors=("saturating",)),
    "tighter amplitudes": JointSettings(amplitude_sd=0.5),
    "wider amplitudes": JointSettings(amplitude_sd=1.0),
}
SHOWN = ("pearson", "relative_accuracy", "log_rmse", "coverage90")


@dataclass(frozen=True)
class IngredientScore:
    """Mean over cells of one metric: `when` is "earlier" (back-tests) or "target"."""

    task: str
    ingredient: str
    when: str
    metric: str
    value: float


def ingredient_scores(table: CurveTable, name: str, settings: JointSettings) -> Iterator[IngredientScore]:
    """Score one variant of the joint model on earlier sizes and at the target."""
    budgets = {
        "earlier": sorted({t // r for t in EARLIER for r in EARLIER_RATIOS if t // r >= SMALLEST_BUDGET}),
        "target": sorted(TARGET // r for r in RATIOS),
    }
    for when, sizes in budgets.items():
        cells = []
        for budget in sizes:
            posterior = fit_joint(table.up_to(budget), TARGET, settings=settings)
            targets = [t for t in EARLIER if t // budget in EARLIER_RATIOS] if when == "earlier" else [TARGET]
            cells += [evaluate(predict_from(posterior, t), table.column(t)) for t in targets]
        for metric in METRICS:
            yield IngredientScore(table.task, name, when, metric, float(np.mean([cell[metric] for cell in cells])))


def benchmark_markdown(scores: Sequence[Score]) -> str:
    """Means over budgets and every cell of the two published metrics, as Markdown."""
    averages, methods = means(scores), list(dict.fromkeys(score.method for score in scores))
    lines = ["# Every method on the public curves", ""]
    for task in dict.fromkeys(score.task for score in scores):
        budgets = sorted({score.budget for score in scores if score.task == task}, reverse=True)
        lines += [f"## {task}: mean over {len(budgets)} budgets", "", "| method | " + " | ".join(METRICS) + " |"]
        lines += ["|---|" + "---|" * len(METRICS)]
        for method in methods:
            cells = [averages.get((task, method, metric)) for metric in METRICS]
            lines.append(f"| {method} | " + " | ".join("–" if c is None else f"{c:.3f}" for c in cells) + " |")
        value = {(s.method, s.budget, s.metric): s.value for s in scores if s.task == task}
        for metric in ("pearson", "relative_accuracy"):
            lines += ["", f"### {task}: {metric} by budget", ""]
            lines += ["| method | " + " | ".join(f"1/{TARGET // budget}" for budget in budgets) + " |"]
            lines += ["|---|" + "---|" * len(budgets)]
            for method in methods:
                row = [value.get((method, budget, metric)) for budget in budgets]
                lines.append(f"| {method} | " + " | ".join("–" if c is None else f"{c:.3f}" for c in row) + " |")
        lines.append("")
    return "\n".join(lines)


def ingredients_markdown(scores: Sequence[IngredientScore]) -> str:
    """With and without each ingredient, and what leaving a task out would have chosen."""
    value = {(s.task, s.ingredient, s.when, s.metric): s.value for s in scores}
    tasks = list(dict.fromkeys(s.task for s in scores))
    lines = ["# Ingredients of the joint model", ""]
    for when, title in (("earlier", "Back-tests on earlier sizes"), ("target", "At the target")):
        for task in tasks:
            lines += [
                f"## {title}: {task}",
                "",
                "| variant | " + " | ".join(SHOWN) + " |",
                "|---|" + "---|" * len(SHOWN),
            ]
            for name in INGREDIENTS:
                cells = [f"{value[task, name, when, metric]:.3f}" for metric in SHOWN]
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
            lines.append("")
    lines += [
        "## Leaving a task out",
        "",
        "The variant with the least log_rmse in the back-tests of the other tasks, and what it does at the target of",
        "the task left out, beside all ingredients together.",
        "",
        "| left out | chosen by the others | pearson | of all | relative_accuracy | of all | log_rmse | of all |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for left in tasks:
        others = [task for task in tasks if task != left]
        if not others:
            continue
        chosen = min(INGREDIENTS, key=lambda n: sum(value[task, n, "earlier", "log_rmse"] for task in others))
        cells = [
            f"{value[left, name, 'target', metric]:.3f}"
            for metric in ("pearson", "relative_accuracy", "log_rmse")
            for name in (chosen, "all")
        ]
        lines.append(f"| {left} | {chosen} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def draw(scores: Sequence[Score], path: Path) -> None:
    """Pearson correlation and relative accuracy of every method against the budget."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(score.task for score in scores))
    figure, axes = plt.subplots(2, len(tasks), figsize=(4.6 * len(tasks) + 1.4, 6.4), sharex=True, squeeze=False)
    for column, task in enumerate(tasks):
        for row, metric in enumerate(("pearson", "relative_accuracy")):
            axis = axes[row][column]
            for number, method in enumerate(dict.fromkeys(score.method for score in scores)):
                points = sorted(
                    (s.budget, s.value) for s in scores if (s.task, s.method, s.metric) == (task, method, metric)
                )
                bold = method == "joint"
                axis.plot(
                    *zip(*points, strict=True), label=method, color="black" if bold else f"C{number}",
                    linewidth=2.5 if bold else 1.2, marker="o", markersize=4 if bold else 2.5, zorder=3 if bold else 2,
                )  # fmt: skip
            axis.set(xscale="log", title=f"{task}: {metric}")
            axis.grid(alpha=0.3)
        axes[1][column].set_xlabel("budget (examples)")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="center right", frameon=False)
    figure.tight_layout(rect=(0, 0, 1 - 1.4 / figure.get_figwidth(), 1))
    figure.savefig(path, metadata={"Date": None})


def main(out: Path = Path(__file__).parent / "results", ingredients: bool = True) -> None:
    """Write scores.csv, benchmark.md, benchmark.svg, ingredients.csv and ingredients.md.

    Args:
      out: Folder for the results.
      ingredients: Also fit every variant of the joint model (some ten minutes on two cores).
    """
    names = datasets.available()
    if not names:
        datasets.rectified("flan")  # says what to do, or fetches it
        datasets.rectified("gigaword")
        names = datasets.available()
    tables = [datasets.rectified(name) for name in names]
    out.mkdir(parents=True, exist_ok=True)
    scores = backtest(tables, TARGET, progress=lambda done, total: print(f"\r{done}/{total} cells", end=""))
    print()
    write_files({out / "scores.csv": to_csv(scores), out / "benchmark.md": benchmark_markdown(scores)})
    draw(scores, out / "benchmark.svg")
    if ingredients:
        found = []
        for name, settings in INGREDIENTS.items():
            print(f"variant: {name}")
            found += [score for table in tables for score in ingredient_scores(table, name, settings)]
        with (out / "ingredients.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("task", "variant", "when", "metric", "value"))
            writer.writerows((s.task, s.ingredient, s.when, s.metric, f"{s.value:.6g}") for s in found)
        write_files({out / "ingredients.md": ingredients_markdown(found)})


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except InputError as error:
        raise SystemExit(f"{error}") from error
