"""What `measure.py` wrote of a task, and what every question makes of it."""

import csv
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from lensjax.core.errors import InputError
from lensjax.curves.csv_files import read_curves
from lensjax.curves.table import CurveTable
from lensjax.curves.units import NATS_PER_TOKEN
from lensjax.fit.joint.fitting import fit_joint
from lensjax.fit.lensllm.fitting import VARIANTS, Variant, fit_lensllm
from lensjax.fit.residuals import Residuals, stack_residuals
from lensjax.selection.methods import METHODS, methods_in_order
from lensjax.selection.metrics import evaluate
from lensjax.selection.prediction import Prediction, predict_from
from lensjax.train.prepare import FIRST_RUNG

RATIOS = (4, 8, 16, 32, 64, 128)  # target over budget
LEAST_MODELS = 3
SHOWN = ("pearson", "relative_accuracy", "regret", "log_rmse", "coverage90")
GOOD = 0.911  # relative accuracy that LensLLM's paper claims

LOOKS_AT = {  # what methods look at; all others at the ladder up to the budget
    "model_size": (),
    "nlp_metrics": (),
    "zero_shot": ("pretrained loss",),
    "kernel, effective rank": ("kernels",),
    "sub_tuning": ("largest rung",),
    "LensLLM, tied": ("ladder", "kernels"),
    "LensLLM, published": ("ladder", "kernels"),
}


class Place(NamedTuple):
    """Where a prediction is made: on which task, of how many models' losses at a target, from which budget."""

    task: str
    models: int
    target: int
    budget: int


@dataclass(frozen=True)
class TaskEvidence:
    """A task, and the models that were measured on it up to a target.

    Attributes:
      name: Of the task.
      table: Curves of M models.
      target: In examples.
      residuals: Of their kernels.
      bound: Terms of the bound along the ladder, by model.
      drifts: How far kernels drift along the ladder, by model.
      weights: NLPmetrics' scores, NaN where unknown.
      ranks: Effective ranks of kernels before fine-tuning, NaN where unknown.
      functionals: That kernels are of.
      flops: Of a run of each model, all models together, by size; means over seeds.
      search_flops: Of all runs by which learning rates were chosen and that are no rung's.
      kernel_flops: Of all kernels before fine-tuning.
      losses: Those of each seed alone; NaN where it was not measured.
      still_learning: Of the runs of every size, whether the validation loss was lowest at the last step.
    """

    name: str
    table: CurveTable
    target: int
    residuals: Residuals
    bound: Mapping[str, Mapping[str, Any]]
    drifts: Mapping[str, Mapping[str, Any]]
    weights: Float[np.ndarray, " M"]
    ranks: Float[np.ndarray, " M"]
    functionals: Collection[str]
    flops: Mapping[int, float]
    search_flops: float
    kernel_flops: float
    losses: Mapping[int, Float[np.ndarray, "M S"]]
    still_learning: Mapping[int, Sequence[bool]]

    @property
    def budgets(self) -> list[int]:
        """Budgets from which the target is predicted: those that hold two sizes above 0 of one seed of all models."""
        budgets = (self.target // ratio for ratio in RATIOS)
        return [budget for budget in budgets if self.rungs(budget).sum() >= 2 and self.ladders(budget)]

    @property
    def places(self) -> list[Place]:
        """One for every budget."""
        return [Place(self.name, len(self.table.models), self.target, budget) for budget in self.budgets]

    @property
    def title(self) -> str:
        """Task, number of models and target."""
        return f"{self.name}, {len(self.table.models)} models to {self.target:,}"

    def rungs(self, budget: int) -> Bool[np.ndarray, " S"]:
        """Which of the table's sizes a fit from a budget sees."""
        rungs: Bool[np.ndarray, " S"] = (self.table.sizes > 0) & (self.table.sizes <= budget)
        return rungs

    def ladders(self, budget: int) -> list[CurveTable]:
        """The curves up to a budget of each seed that all models were measured with, as they are seen by who has one.

        Losses before fine-tuning, which no seed changes, are those of any.
        """
        found = []
        for losses in self.losses.values():
            if np.isfinite(losses[:, self.rungs(budget)]).all():
                loss = np.where(self.table.sizes == 0, self.table.loss, losses)
                found.append(replace(self.table, loss=loss, seeds=np.isfinite(loss).astype(np.int64)).up_to(budget))
        return found

    def cost(self, budget: int, method: str = "joint") -> float:
        """FLOPs of what a method looks at up to a budget, with one seed, as a share of FullTuning's.

        That fine-tunes every model on all of the target. The learning rate of each is chosen on the first rung, by
        FullTuning too.
        """
        search = self.search_flops
        parts = {
            "pretrained loss": self.flops[0],
            "kernels": self.kernel_flops,
            "largest rung": search + sum(self.flops[size] for size in {FIRST_RUNG, budget}),
            "ladder": search + sum(flops for size, flops in self.flops.items() if size <= budget),
        }
        full = search + self.flops[FIRST_RUNG] + self.flops[self.target]
        return sum(parts[part] for part in LOOKS_AT.get(method, ("ladder",))) / full

    def saved(self, method: str, accuracy: Mapping[int, float]) -> float:
        """What a method saves of FullTuning, given its relative accuracy at every budget.

        It is by the smallest budget at which, as at every larger one, that is `GOOD`; 0 where there is none, or where
        such a budget takes more than FullTuning.
        """
        good = 0.0
        for budget in self.budgets:  # the largest first
            if not accuracy[budget] >= GOOD:  # nor where it is not known
                break
            good = max(1 - self.cost(budget, method), 0.0)
        return good

    def nearer(self) -> list["TaskEvidence"]:
        """The same models at every target that all were measured at and that can be predicted, this one last."""
        found = []
        for target in self.table.sizes[(self.table.sizes > 0) & self.table.measured.all(axis=0)]:
            seen = self.table.sizes <= target
            losses = {seed: losses[:, seen] for seed, losses in self.losses.items()}
            one = replace(self, table=self.table.up_to(int(target)), target=int(target), losses=losses)
            found += [one] if one.budgets else []
        return found


def read_task(folder: Path, name: str) -> list[TaskEvidence]:
    """Read a task's curves and evidence: of the models that were measured furthest, and of more that were less far.

    Raises:
      InputError: a file is missing or not what `measure.py` writes, or it holds too little.
    """
    table = read_curves(folder / f"{name}.csv", unit=NATS_PER_TOKEN)  # all models have one tokenizer
    try:
        content = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read {folder / name}.json; run measure.py again.") from error
    found: list[TaskEvidence] = []
    for target in table.sizes[::-1]:
        measured = np.flatnonzero(np.isfinite(table.column(target)))
        if len(measured) >= max(LEAST_MODELS, len(found[-1].table.models) + 1 if found else 0):
            one = _up_to(folder, table.select(measured).up_to(int(target)), name, content)
            found += [one] if one.budgets else []
    if not found:
        raise InputError(
            f"{folder / name}.csv holds too little: it takes two sizes above 0, and {RATIOS[0]} times the larger one, "
            f"of {LEAST_MODELS} models; measure more."
        )
    return found


def _up_to(folder: Path, table: CurveTable, name: str, content: Mapping[str, Any]) -> TaskEvidence:
    """The evidence on models that were all measured at a table's largest size."""
    modes = {kernel["model"]: (np.array(kernel["rates"]), np.array(kernel["weights"])) for kernel in content["kernels"]}
    ranks = {kernel["model"]: kernel["effective_rank"] for kernel in content["kernels"]}
    flops: dict[int, dict[str, list[float]]] = {}
    losses: dict[int, np.ndarray] = {}
    still_learning: dict[int, list[bool]] = {}
    with (folder / f"{name}.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            model, size, seed = row["model"], int(row["examples"]), int(row["seed"])
            if model in table.models and size in table.sizes:
                flops.setdefault(size, {}).setdefault(model, []).append(float(row["flops"]))
                cell = table.models.index(model), list(table.sizes).index(size)
                losses.setdefault(seed, np.full(table.loss.shape, np.nan))[cell] = float(row["loss"])
                if size:
                    still_learning.setdefault(size, []).append(row["best_step"] == row["steps"])
    return TaskEvidence(
        name=name,
        table=table,
        target=int(table.sizes[-1]),
        residuals=stack_residuals([modes.get(model) for model in table.models]),
        bound=_longest(content["bound"]),
        drifts=_longest(content["drifts"]),
        weights=np.array([content["weights"].get(model, np.nan) for model in table.models]),
        ranks=np.array([ranks.get(model, np.nan) for model in table.models]),
        functionals={kernel["functional"] for kernel in content["kernels"]},
        flops={size: sum(float(np.mean(runs)) for runs in of.values()) for size, of in flops.items()},
        search_flops=float(sum(content["searches"].get(model, 0) for model in table.models)),
        kernel_flops=float(sum(one["flops"] for one in content["kernels"] if one["model"] in table.models)),
        losses=losses,
        still_learning=dict(sorted(still_learning.items())),
    )


def _longest(ladders: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """By model, of its ladders of several seeds the longest, and of several of these the first."""
    ordered = sorted(ladders, key=lambda one: len(one["examples"]), reverse=True)
    return {one["model"]: one for one in reversed(ordered)}


@dataclass(frozen=True)
class VariantScore:
    """How a variant of the LensLLM law predicted the losses at the target from a budget, with each seed.

    Attributes:
      log_density: Of each model's measured loss, in nats; the mean over seeds.
      metrics: See `metrics_of`.
      slope: b with its 90 % interval, of the first seed; None where kernels are not used.
    """

    log_density: Float[np.ndarray, " M"]
    metrics: Mapping[str, float]
    slope: tuple[float, float, float] | None


def variant_scores(task: TaskEvidence, budget: int) -> dict[Variant, VariantScore]:
    """All variants at a budget."""
    found: dict[Variant, VariantScore] = {}
    for variant in VARIANTS:
        fits = [fit_lensllm(seen, task.target, task.residuals, variant) for seen in task.ladders(budget)]
        density = np.mean([fit.log_density(task.table)[:, -1] for fit in fits], axis=0)
        b = fits[0].b
        slope = None if fits[0].times is None else (float(b.value), float(b.lower), float(b.upper))
        metrics = metrics_of(task, [predict_from(fit, task.target) for fit in fits])
        found[variant] = VariantScore(density, metrics, slope)
    return found


def method_scores(task: TaskEvidence, budget: int) -> dict[str, dict[str, float]]:
    """Every method's metrics at a budget, and the joint fit's without wider intervals.

    Among them are NLPmetrics, and the kernel's effective rank before fine-tuning, of which more is taken as better.
    """
    ladders, target = task.ladders(budget), task.target
    fits = [fit_joint(seen, target) for seen in ladders]
    others = [name for name in methods_in_order() if name != "joint" and not METHODS[name].needs]
    said = {name: [METHODS[name].predict(seen, target) for seen in ladders] for name in others}
    said |= {
        "joint": [predict_from(fit, target) for fit in fits],
        "joint, not widened": [predict_from(replace(fit, widening=1.0, own_widening=None), target) for fit in fits],
        "nlp_metrics": [Prediction(task.weights, is_loss=False)],
        "kernel, effective rank": [Prediction(-task.ranks, is_loss=False)],
    }
    return {name: metrics_of(task, predictions) for name, predictions in said.items()}


def metrics_of(task: TaskEvidence, predictions: Sequence[Prediction]) -> dict[str, float]:
    """Metrics of predictions of the losses at the target, as means over them, and `fits`, how many they are."""
    each = [evaluate(prediction, task.table.column(task.target)) for prediction in predictions]
    return {name: float(np.mean([one[name] for one in each])) for name in each[0]} | {"fits": float(len(each))}


def mean_and_error(values: Sequence[float] | Float[np.ndarray, " K"]) -> tuple[float, float]:
    """Mean and standard error, of values that stand for a population."""
    known = np.asarray(values, np.float64)
    return float(known.mean()), float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else float("nan")
