"""Does curvature help to choose a model? The answer, from what `measure.py` wrote.

    python experiments/does_curvature_help/analyse.py [--results DIR]

Writes report.md, answers.json and figures beside the measurements. See README.md beside this file.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import tyro
from evidence import Place, TaskEvidence, VariantScore, mean_and_error, method_scores, read_task, variant_scores
from scipy.stats import t as student

from lensjax.curvature.phases import residual_transition
from lensjax.errors import InputError
from lensjax.files import write_files
from lensjax.fit.lensllm import VARIANTS, Variant
from lensjax.report import text
from lensjax.zoo.tasks import TASKS

HERE = Path(__file__).parent
SHOWN = ("pearson", "relative_accuracy", "regret", "log_rmse", "coverage90")


def variants_answer(scores: Mapping[Place, Mapping[Variant, VariantScore]]) -> dict[str, Any]:
    """What tying D_l to the kernels adds to the log density of the losses at the target, against every other variant.

    Differences are means over a task's models, at a budget; over budgets and targets they are averaged within tasks, so
    that the tasks, of which there are few, are what the interval is over.
    """
    tasks = sorted({place.task for place in scores})
    found: dict[str, Any] = {}
    for other in VARIANTS[1:]:
        cells = {
            place: mean_and_error(one["tied"].log_density - one[other].log_density) for place, one in scores.items()
        }
        by_task = [float(np.mean([mean for place, (mean, _) in cells.items() if place.task == task])) for task in tasks]
        mean, error = mean_and_error(by_task)
        reach = float(student.ppf(0.95, len(tasks) - 1)) * error if len(tasks) > 1 else float("nan")
        found[other] = {
            "cells": [
                {**place._asdict(), "mean": mean, "standard_error": error} for place, (mean, error) in cells.items()
            ],
            "by_task": dict(zip(tasks, by_task, strict=True)),
            "mean": mean,
            "interval90": None if len(tasks) < 2 else [mean - reach, mean + reach],
        }
    return found


def left_out_answer(scores: Mapping[Place, Mapping[Variant, VariantScore]]) -> list[dict[str, Any]]:
    """For each task the variant that the other tasks would choose, and what it loses there against the best."""
    tasks = sorted({place.task for place in scores})
    if len(tasks) < 2:
        return []

    def mean(variant: Variant, among: Sequence[str]) -> float:
        return float(np.mean([np.mean(one[variant].log_density) for at, one in scores.items() if at.task in among]))

    found = []
    for task in tasks:
        others = [other for other in tasks if other != task]
        chosen = max(VARIANTS, key=lambda variant: mean(variant, others))
        here = {variant: mean(variant, [task]) for variant in VARIANTS}
        best = max(here, key=here.__getitem__)
        found.append({"task": task, "chosen": chosen, "best": best, "lost": here[best] - here[chosen]})
    return found


def phases_answer(tasks: Sequence[TaskEvidence]) -> dict[str, Any]:
    """β₂ of every model and task, and where bound and losses see the power phase begin, on its longest ladder."""
    rows: list[dict[str, Any]] = []
    for task in tasks:
        for model, losses in zip(task.table.models, task.table.loss, strict=True):
            terms = task.bound.get(model)
            known_already = any((row["task"], row["model"]) == (task.name, model) for row in rows)
            if terms is None or terms["beta2"] is None or known_already:
                continue
            known = np.isfinite(losses) & (task.table.sizes > 0)
            rows.append(
                {
                    "task": task.name,
                    "model": model,
                    "beta2": terms["beta2"]["value"],
                    "lower": terms["beta2"]["lower"],
                    "upper": terms["beta2"]["upper"],
                    "bound_transition": terms["transition"],
                    "loss_transition": residual_transition(task.table.sizes[known], losses[known]),
                    "note": terms["note"],
                }
            )
    both = [row for row in rows if row["bound_transition"] and row["loss_transition"]]
    return {
        "ladders": rows,
        "below_half": sum(row["upper"] < 0.5 for row in rows),
        "above_half": sum(row["lower"] > 0.5 for row in rows),
        "falls": sum(row["lower"] > 0 for row in rows),
        "rises": sum(row["upper"] < 0 for row in rows),
        "bound_sees_transition": sum(row["bound_transition"] is not None for row in rows),
        "losses_see_transition": sum(row["loss_transition"] is not None for row in rows),
        "both": len(both),
        "log_correlation": _correlation(both) if len(both) > 2 else None,
    }


def _correlation(rows: Sequence[Mapping[str, Any]]) -> float:
    bound, losses = (np.log([row[name] for row in rows]) for name in ("bound_transition", "loss_transition"))
    return float(np.corrcoef(bound, losses)[0, 1]) if bound.std() > 0 and losses.std() > 0 else float("nan")


def report(
    tasks: Sequence[TaskEvidence],
    variants: Mapping[Place, Mapping[Variant, VariantScore]],
    methods: Mapping[Place, Mapping[str, Mapping[str, float]]],
    answers: Mapping[str, Any],
) -> str:
    """All of it as tables, with what they say."""
    lines = ["# Does curvature help to choose a model?", "", "## Curves", ""]
    for task in tasks:
        lines += [f"### {task.title}", "", *_curves(task), ""]
    lines += ["## Does tying D_l to the kernel help?", "", *_variants(variants, answers), ""]
    lines += ["## Does the Hessian see the phases?", "", *_phases(answers["phases"]), ""]
    lines += ["## How do the methods rank?", "", *_methods(tasks, methods, variants), ""]
    return "\n".join(lines)


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heading, ["---"] * len(heading), *rows)]


def _curves(task: TaskEvidence) -> list[str]:
    order = np.argsort(task.table.column(task.target))
    rows = []
    for i in order:
        losses = (text.DASH if np.isnan(x) else f"{x:.3f}" for x in task.table.loss[i])
        rows.append([task.table.models[i], text.count(task.table.parameters[i]), *losses])
    return _table(["model", "size", *(f"{size:,}" for size in task.table.sizes)], rows)


def _variants(scores: Mapping[Place, Mapping[Variant, VariantScore]], answers: Mapping[str, Any]) -> list[str]:
    heading = [
        "task",
        "models",
        "target",
        "budget",
        *(f"{variant}: log density, log RMSE" for variant in VARIANTS),
        "b (90 %)",
    ]
    rows = []
    for place, one in scores.items():
        cells = [f"{np.mean(s.log_density):+.2f}, {s.metrics['log_rmse']:.3f}" for s in one.values()]
        slope = one["tied"].slope
        told = text.DASH if slope is None else f"{slope[0]:.2f} ({slope[1]:.2f} to {slope[2]:.2f})"
        rows.append([place.task, str(place.models), f"{place.target:,}", f"{place.budget:,}", *cells, told])
    lines = [*_table(heading, rows), ""]
    for other, found in answers["variants"].items():
        interval = found["interval90"]
        over = "" if interval is None else f", 90 % interval over tasks {interval[0]:+.2f} to {interval[1]:+.2f}"
        lines.append(f"- tied less {other}: {found['mean']:+.2f} nats per model{over}.")
    lines += [
        f"- {one['task']} left out: the other tasks choose {one['chosen']}, and {one['best']} is best there; that "
        f"loses {one['lost']:.2f} nats per model."
        for one in answers["left_out"]
    ]
    return lines


def _phases(found: Mapping[str, Any]) -> list[str]:
    count = len(found["ladders"])
    rows = [
        [
            row["task"],
            row["model"],
            f"{row['beta2']:.2f} ({row['lower']:.2f} to {row['upper']:.2f})",
            text.DASH if row["bound_transition"] is None else f"{row['bound_transition']:,.0f}",
            text.DASH if row["loss_transition"] is None else f"{row['loss_transition']:,}",
        ]
        for row in found["ladders"]
    ]
    heading = ["task", "model", "β₂ (90 %)", "transition by the bound", "power phase by AtS from"]
    correlation = found["log_correlation"]
    said = "" if correlation is None else f" Over those, log n of the two correlate at {correlation:.2f}."
    return [
        *_table(heading, rows),
        "",
        f"Of {count} ladders ΣH clearly falls with n in {found['falls']} and clearly rises in {found['rises']}; β₂ is "
        f"clearly below 1/2 in {found['below_half']}, clearly above in {found['above_half']}. The bound sees a "
        f"transition in {found['bound_sees_transition']}, AtS in {found['losses_see_transition']}, both in "
        f"{found['both']}.{said}",
    ]


def _methods(
    tasks: Sequence[TaskEvidence],
    methods: Mapping[Place, Mapping[str, Mapping[str, float]]],
    variants: Mapping[Place, Mapping[Variant, VariantScore]],
) -> list[str]:
    lines = []
    for task in tasks:
        for place in task.places:
            scores = methods[place] | {f"LensLLM, {v}": one.metrics for v, one in variants[place].items()}
            saved = 1 - task.cost(place.budget)
            lines += [f"### {task.title}, budget {place.budget:,}: {saved:.1%} of FullTuning saved", ""]
            rows = [
                [name if "," in name else text.method_title(name), *(_cell(found[metric]) for metric in SHOWN)]
                for name, found in scores.items()
            ]
            lines += [*_table(["method", *SHOWN], rows), ""]
    return lines


def _cell(value: float) -> str:
    return text.DASH if np.isnan(value) else f"{value:.3f}"


def figure(tasks: Sequence[TaskEvidence], answers: Mapping[str, Any]) -> plt.Figure:
    """Curves of every task; what the kernels add; β₂ of every ladder."""
    plt.rcParams.update({"svg.hashsalt": "lensjax", "font.size": 8})
    drawn, axes = plt.subplots(1, len(tasks) + 2, figsize=(3.2 * (len(tasks) + 2), 3.2), layout="constrained")
    for axis, task in zip(axes, tasks, strict=False):
        for model, losses in zip(task.table.models, task.table.loss, strict=True):
            above = task.table.sizes > 0
            axis.plot(task.table.sizes[above], losses[above], "o-", markersize=2, label=model)
        axis.set(
            xscale="log", yscale="log", xlabel="training examples", title=f"{task.title}\ntest loss (nats per token)"
        )
        axis.legend(fontsize=5)
    cells = answers["variants"]["hierarchical"]["cells"]
    for task in tasks:
        of = [cell for cell in cells if (cell["task"], cell["target"]) == (task.name, task.target)]
        axes[-2].errorbar(
            [cell["budget"] for cell in of],
            [cell["mean"] for cell in of],
            [cell["standard_error"] for cell in of],
            fmt="o-",
            capsize=2,
            label=task.title,
        )
    axes[-2].axhline(0, color="grey", lw=0.5)
    axes[-2].set(xscale="log", xlabel="budget (examples)", title="log density, tied less hierarchical")
    axes[-2].legend(fontsize=6)
    for number, row in enumerate(answers["phases"]["ladders"]):
        axes[-1].plot([row["lower"], row["upper"]], [number, number], "-", color="C0")
        axes[-1].plot(row["beta2"], number, "o", color="C0", markersize=3)
    axes[-1].axvline(0.5, color="grey", lw=0.5, ls="--")
    axes[-1].set(xlabel="β₂ (90 % interval)", title="ΣH ∝ n^(−β₂)", yticks=[])
    return drawn


def main(results: Path = HERE / "results", tasks: tuple[str, ...] = tuple(TASKS)) -> None:
    """Answer the questions from what was measured.

    Args:
        results: Folder of TASK.csv and TASK.json, where the report goes too.
        tasks: Those of which there are measurements are taken.
    """
    found = [one for task in tasks if (results / f"{task}.csv").exists() for one in read_task(results, task)]
    if not found:
        raise InputError(f"{results} holds no measurements; run measure.py first.")
    variants = {place: variant_scores(task, place.budget) for task in found for place in task.places}
    methods = {place: method_scores(task, place.budget) for task in found for place in task.places}
    answers = {
        "variants": variants_answer(variants),
        "left_out": left_out_answer(variants),
        "phases": phases_answer(found),
        "saved": {task.title: {str(budget): 1 - task.cost(budget) for budget in task.budgets} for task in found},
    }
    figure(found, answers).savefig(results / "answers.svg", metadata={"Date": None})
    write_files(
        {
            results / "report.md": report(found, variants, methods, answers),
            results / "answers.json": json.dumps(answers, indent=2, ensure_ascii=False) + "\n",
        }
    )
    print(f"Wrote {results / 'report.md'}")


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except InputError as error:
        raise SystemExit(str(error)) from error
