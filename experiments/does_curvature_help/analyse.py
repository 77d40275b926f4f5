"""Does curvature help to choose a model? The answer, from what `measure.py` wrote.

    python experiments/does_curvature_help/analyse.py [--results DIR]

Writes report.md, answers.json and figures beside the measurements. See README.md beside this file.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from evidence import (
    SHOWN,
    Place,
    TaskEvidence,
    VariantScore,
    interval_scores,
    mean_and_error,
    method_scores,
    read_task,
    variant_scores,
)
from scipy.stats import t as student
from tables import figure, report

from lensjax.curvature.phases import residual_transition
from lensjax.errors import InputError
from lensjax.files import write_files
from lensjax.fit.lensllm import VARIANTS, Variant
from lensjax.zoo.tasks import TASKS

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
        "by_task": by_task,
        "rises": sum(bool(np.all(np.diff(one["drift"]) > 0)) for one in rows.values()),
    }


def _correlation(rows: Sequence[Mapping[str, Any]]) -> float:
    bound, losses = (np.log([row[name] for row in rows]) for name in ("bound_transition", "loss_transition"))
    return float(np.corrcoef(bound, losses)[0, 1]) if bound.std() > 0 and losses.std() > 0 else float("nan")


def methods_answer(
    tasks: Sequence[TaskEvidence], scores: Mapping[Place, Mapping[str, Mapping[str, float]]]
) -> dict[str, Any]:
    """Of every method, means over tasks, what it saves, and how often its intervals hold.

    Means are over a task's budgets and targets first.
    """
    found: dict[str, Any] = {}
    for name in next(iter(scores.values())):
        of = {place: one[name] for place, one in scores.items()}
        metrics: dict[str, float | None] = {}
        for metric in SHOWN:
            mean = float(np.mean([*_by_task({place: one[metric] for place, one in of.items()}).values()]))
            metrics[metric] = mean if np.isfinite(mean) else None
        saved = {task.title: task.saved(_accuracy(task, scores, name)) for task in tasks}
        found[name] = {"metrics": metrics, "saved": saved, "coverage90": _coverage(tasks, of)}
    return found


def targets_answer(
    tasks: Sequence[TaskEvidence], scores: Mapping[Place, Mapping[str, Mapping[str, float]]]
) -> list[dict[str, Any]]:
    """What methods save at every target, and how far the models' losses are apart there."""
    found = []
    for task in tasks:
        true = task.table.column(task.target)
        saved = {name: task.saved(_accuracy(task, scores, name)) for name in scores[task.places[0]]}
        found.append(
            {
                "task": task.name,
                "models": len(true),
                "target": task.target,
                "spread": float(true.max() - true.min()),
                "least_budget": min(task.budgets),
                "least_saved": task.saved(dict.fromkeys(task.budgets, 1.0)),
                "saved": saved,
            }
        )
    return found


def _accuracy(
    task: TaskEvidence, scores: Mapping[Place, Mapping[str, Mapping[str, float]]], method: str
) -> dict[int, float]:
    """A method's relative accuracy at every budget of a task."""
    return {place.budget: scores[place][method]["relative_accuracy"] for place in task.places}


def _coverage(tasks: Sequence[TaskEvidence], scores: Mapping[Place, Mapping[str, float]]) -> dict[str, list[float]]:
    """By the number of sizes that a fit saw: the share of 90 % intervals that held, and of how many."""
    held: dict[str, list[float]] = {}
    for task in tasks:
        for place in task.places:
            share = scores[place]["coverage90"]
            if np.isfinite(share):
                one = held.setdefault(str(task.rungs(place.budget).sum()), [0.0, 0.0])
                one[0] += share * place.models
                one[1] += place.models
    return {sizes: [inside / count, count] for sizes, (inside, count) in sorted(held.items())}


def intervals_answer(tasks: Sequence[TaskEvidence]) -> list[dict[str, Any]]:
    """Of the joint fit of single seeds, with and without wider intervals, by the number of sizes."""
    scores = [score for task in tasks for score in interval_scores(task)]
    found = []
    for sizes, widened in sorted({(score.sizes, score.widened) for score in scores}):
        of = [score for score in scores if (score.sizes, score.widened) == (sizes, widened)]
        models = np.array([score.models for score in of])
        found.append(
            {
                "sizes": sizes,
                "widened": widened,
                "losses": int(models.sum()),
                "coverage90": float(np.average([score.coverage for score in of], weights=models)),
                "log_density": float(np.average([score.log_density for score in of], weights=models)),
            }
        )
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
    variants = {place: variant_scores(task, place.budget) for task in found for place in task.places}
    targets = [one for task in found for one in task.nearer()]  # among them `found`
    scores = {place: method_scores(task, place.budget) for task in targets for place in task.places}
    methods = {
        place: scores[place] | {f"LensLLM, {variant}": score.metrics for variant, score in one.items()}
        for place, one in variants.items()
    }
    answers = {
        "variants": variants_answer(variants),
        "left_out": left_out_answer(variants),
        "phases": phases_answer(found),
        "drifts": drifts_answer(found),
        "methods": methods_answer(found, methods),
        "targets": targets_answer(targets, scores),
        "intervals": intervals_answer(found),
        "saved": {task.title: {str(budget): 1 - task.cost(budget) for budget in task.budgets} for task in found},
    }
    figure(found, answers).savefig(results / "answers.svg", metadata={"Date": None})
    write_files(
        {
            results / "report.md": report(found, variants, methods, answers),
            results / "answers.json": json.dumps(answers, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        }
    )
    print(f"Wrote {results / 'report.md'}")


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except InputError as error:
        raise SystemExit(str(error)) from error
