"""Does curvature help to choose a model? The answer, from what `measure.py` wrote.

    python experiments/does_curvature_help/analyse.py [--results DIR]

Writes report.md, answers.json and figures beside the measurements. See README.md beside this file.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from evidence import (
    GOOD,
    SHOWN,
    Place,
    TaskEvidence,
    VariantScore,
    mean_and_error,
    method_scores,
    read_task,
    variant_scores,
)
from scipy.stats import t as student
from tables import figure, report

from lensjax.core.errors import InputError
from lensjax.core.files import write_files
from lensjax.fit.lensllm.fitting import VARIANTS, Variant
from lensjax.fit.lines import FIRST
from lensjax.measure.transition import residual_transition
from lensjax.selection.metrics import pearson
from lensjax.tasks.ready_made import TASKS

HERE = Path(__file__).parent


def variants_answer(scores: Mapping[Place, Mapping[Variant, VariantScore]]) -> dict[str, Any]:
    """What tying D_l to the kernels adds to the log density of the losses at the target, against every other variant.

    Differences are means over a task's models, at a budget; over budgets and targets they are averaged within tasks, so
    that the tasks, of which there are few, are what the interval is over.
    """
    tasks = {place.task for place in scores}
    found: dict[str, Any] = {}
    for other in VARIANTS[1:]:
        cells = {
            place: mean_and_error(one["tied"].log_density - one[other].log_density) for place, one in scores.items()
        }
        by_task = _by_task({place: mean for place, (mean, _) in cells.items()})
        mean, error = mean_and_error([*by_task.values()])
        reach = float(student.ppf(0.95, len(tasks) - 1)) * error if len(tasks) > 1 else float("nan")
        found[other] = {
            "cells": [
                {**place._asdict(), "mean": mean, "standard_error": error} for place, (mean, error) in cells.items()
            ],
            "by_task": by_task,
            "mean": mean,
            "interval90": None if len(tasks) < 2 else [mean - reach, mean + reach],
        }
    return found


def _by_task(values: Mapping[Place, float]) -> dict[str, float]:
    """Means over a task's budgets and targets."""
    tasks = sorted({place.task for place in values})
    return {task: float(np.mean([value for place, value in values.items() if place.task == task])) for task in tasks}


def left_out_answer(scores: Mapping[Place, Mapping[Variant, VariantScore]]) -> list[dict[str, Any]]:
    """For each task the variant that the other tasks would choose, and what it loses there against the best."""
    tasks = sorted({place.task for place in scores})
    if len(tasks) < 2:
        return []

    means = {
        variant: _by_task({place: float(np.mean(one[variant].log_density)) for place, one in scores.items()})
        for variant in VARIANTS
    }
    found = []
    for task in tasks:
        others = [other for other in tasks if other != task]
        chosen = max(VARIANTS, key=lambda variant: np.mean([means[variant][other] for other in others]))
        best = max(VARIANTS, key=lambda variant: means[variant][task])
        found.append({"task": task, "chosen": chosen, "best": best, "lost": means[best][task] - means[chosen][task]})
    return found


def phases_answer(tasks: Sequence[TaskEvidence]) -> dict[str, Any]:
    """β₂ of every model and task, and where bound and losses see the power phase begin, on its longest ladder.

    Both look at the same rungs. AtS accepts three and never the smallest, so that it can see one from five rungs on.
    """
    rows: list[dict[str, Any]] = []
    for task in tasks:
        for model, losses in zip(task.table.models, task.table.loss, strict=True):
            terms = task.bound.get(model)
            known_already = any((row["task"], row["model"]) == (task.name, model) for row in rows)
            if terms is None or terms["beta2"] is None or known_already:
                continue
            shared = np.isin(task.table.sizes, terms["examples"])
            rows.append(
                {
                    "task": task.name,
                    "model": model,
                    "rungs": int(shared.sum()),
                    "block": terms["block"],
                    "beta2": terms["beta2"]["value"],
                    "lower": terms["beta2"]["lower"],
                    "upper": terms["beta2"]["upper"],
                    "bound_transition": terms["transition"],
                    "loss_transition": residual_transition(task.table.sizes[shared], losses[shared]),
                    "note": terms["note"],
                }
            )
    long = [row for row in rows if row["rungs"] >= FIRST + 2]
    return {
        "ladders": rows,
        "below_half": sum(row["upper"] < 0.5 for row in rows),
        "above_half": sum(row["lower"] > 0.5 for row in rows),
        "falls": sum(row["lower"] > 0 for row in rows),
        "rises": sum(row["upper"] < 0 for row in rows),
        "long": len(long),
        "bound_sees_transition": sum(row["bound_transition"] is not None for row in long),
        "losses_see_transition": sum(row["loss_transition"] is not None for row in long),
        "both": sum(bool(row["bound_transition"] and row["loss_transition"]) for row in long),
        "notes": dict(Counter(row["note"] for row in rows if row["note"])),
    }


def drifts_answer(tasks: Sequence[TaskEvidence]) -> dict[str, Any]:
    """How far fine-tuning turns kernels, and what else it does to them: for each model and task, and over models."""
    rows = {(task.name, model): one for task in tasks for model, one in task.drifts.items()}
    by_task: dict[str, dict[str, float]] = {}
    for task in dict.fromkeys(task for task, _ in rows):
        of = [one for (name, _), one in rows.items() if name == task]
        shared = sorted(set.intersection(*(set(one["examples"]) for one in of)))
        at = {size: [one["drift"][one["examples"].index(size)] for one in of] for size in shared}
        by_task[task] = {str(size): float(np.mean(drifts)) for size, drifts in at.items()}
    return {
        "ladders": [{"task": task, **one} for (task, _), one in rows.items()],
        "functionals": sorted({functional for task in tasks for functional in task.functionals}),
        "by_task": by_task,
        "rises": sum(len(one["drift"]) > 1 and bool(np.all(np.diff(one["drift"]) > 0)) for one in rows.values()),
    }


def ranks_answer(targets: Sequence[TaskEvidence]) -> list[dict[str, Any]]:
    """How effective ranks of pretrained kernels go with the losses at every target, and without any one model."""
    found = []
    for task in targets:
        known, losses = np.isfinite(task.ranks), task.table.column(task.target)
        ranks, losses = task.ranks[known], losses[known]
        without = [pearson(np.delete(ranks, i), np.delete(losses, i)) for i in range(len(ranks))]
        found.append(
            {
                "task": task.name,
                "models": len(ranks),
                "target": task.target,
                "correlation": pearson(ranks, losses),
                "without_one": [min(without), max(without)],
            }
        )
    return found


def methods_answer(
    tasks: Sequence[TaskEvidence], scores: Mapping[Place, Mapping[str, Mapping[str, float]]]
) -> dict[str, Any]:
    """Of every method, means over tasks, and how often its intervals hold.

    Means are over a task's budgets and targets first.
    """
    found: dict[str, Any] = {}
    for name in next(iter(scores.values())):
        of = {place: one[name] for place, one in scores.items()}
        metrics: dict[str, float | None] = {}
        by_task: dict[str, dict[str, float]] = {}
        for metric in SHOWN:
            by_task[metric] = _by_task({place: one[metric] for place, one in of.items()})
            mean = float(np.mean([*by_task[metric].values()]))
            metrics[metric] = mean if np.isfinite(mean) else None
        found[name] = {"metrics": metrics, "regret": by_task["regret"], "coverage90": _coverage(tasks, of)}
    return found


def targets_answer(
    tasks: Sequence[TaskEvidence], scores: Mapping[Place, Mapping[str, Mapping[str, float]]]
) -> list[dict[str, Any]]:
    """What methods save at every target, how far losses are apart there, and how many models would be good enough."""
    found = []
    for task in tasks:
        true = task.table.column(task.target)
        saved = {name: task.saved(name, _accuracy(task, scores, name)) for name in scores[task.places[0]]}
        found.append(
            {
                "task": task.name,
                "models": len(true),
                "target": task.target,
                "spread": float(true.max() - true.min()),
                "good": int((true.max() - true >= GOOD * np.ptp(true)).sum()),
                "still_learning": sum(task.still_learning[task.target]) / len(task.still_learning[task.target]),
                "least_budget": min(task.budgets),
                "least_saved": task.saved("joint", dict.fromkeys(task.budgets, 1.0)),
                "saved": saved,
            }
        )
    return found


def _accuracy(
    task: TaskEvidence, scores: Mapping[Place, Mapping[str, Mapping[str, float]]], method: str
) -> dict[int, float]:
    """A method's relative accuracy at every budget of a task."""
    return {place.budget: scores[place][method]["relative_accuracy"] for place in task.places}


def _coverage(
    tasks: Sequence[TaskEvidence], scores: Mapping[Place, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """By the number of sizes that a fit saw: the share of 90 % intervals that held, of how many fits and losses."""
    held: dict[str, list[tuple[TaskEvidence, Mapping[str, float]]]] = {}
    for task in tasks:
        for place in task.places:
            if np.isfinite(scores[place]["coverage90"]):
                held.setdefault(str(task.rungs(place.budget).sum()), []).append((task, scores[place]))
    found = {}
    for sizes, of in sorted(held.items(), key=lambda one: int(one[0])):
        intervals = [len(task.table.models) * score["fits"] for task, score in of]
        losses = {(task.name, task.target, model) for task, _ in of for model in task.table.models}
        share = float(np.average([score["coverage90"] for _, score in of], weights=intervals))
        fits = sum(score["fits"] for _, score in of)
        found[sizes] = {"share": share, "intervals": sum(intervals), "fits": fits, "losses": len(losses)}
    return found


def main(results: Path = HERE / "results", tasks: tuple[str, ...] = tuple(TASKS)) -> None:
    """Answer the questions from what was measured.

    Args:
        results: Folder of TASK.csv and TASK.json, where the report goes too.
        tasks: Those of which there are measurements are taken.
    """
    found = [one for task in tasks if (results / f"{task}.csv").exists() for one in read_task(results, task)]
    if not found:
        raise InputError(f"{results} holds no measurements; run measure.py first.")
    targets = [one for task in found for one in task.nearer()]  # among them `found`
    variants = {place: variant_scores(task, place.budget) for task in targets for place in task.places}
    methods = {
        place: method_scores(task, place.budget)
        | {f"LensLLM, {variant}": score.metrics for variant, score in variants[place].items()}
        for task in targets
        for place in task.places
    }
    answers = {
        "variants": variants_answer(variants),
        "left_out": left_out_answer(variants),
        "phases": phases_answer(found),
        "drifts": drifts_answer(found),
        "ranks": ranks_answer(targets),
        "methods": methods_answer(targets, methods),
        "targets": targets_answer(targets, methods),
        "saved": {task.title: {str(budget): 1 - task.cost(budget) for budget in task.budgets} for task in targets},
    }
    figure(found, answers).savefig(results / "answers.svg", metadata={"Date": None})
    write_files(
        {
            results / "report.md": report(found, targets, variants, methods, answers),
            results / "answers.json": json.dumps(answers, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        }
    )
    print(f"Wrote {results / 'report.md'}")


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except InputError as error:
        raise SystemExit(str(error)) from error
