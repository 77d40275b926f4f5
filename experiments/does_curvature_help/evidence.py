"""What `measure.py` wrote of a task, and what every question makes of it."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import norm

from lensjax.curve_files import read_curves
from lensjax.curves import CurveTable
from lensjax.errors import InputError
from lensjax.fit.joint import fit_joint
from lensjax.fit.lensllm import VARIANTS, LensLLMPosterior, Variant, fit_lensllm
from lensjax.fit.residuals import Residuals, stack_residuals
from lensjax.selection.baselines import joint_prediction
from lensjax.selection.methods import METHODS, Prediction
from lensjax.selection.metrics import evaluate

RATIOS = (4, 8, 16, 32, 64, 128)  # target over budget
LEAST_MODELS = 3
SHOWN = ("pearson", "relative_accuracy", "regret", "log_rmse", "coverage90")
GOOD = 0.911  # relative accuracy that LensLLM's paper claims


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
      flops: Of all models' runs by size, each the mean over its seeds.
      losses: Those of each seed alone; NaN where it was not measured.
      still_learning: For every run that trained, whether its validation loss was lowest at the last step.
    """

    name: str
    table: CurveTable
    target: int
    residuals: Residuals
    bound: Mapping[str, Mapping[str, Any]]
    drifts: Mapping[str, Mapping[str, Any]]
    weights: Float[np.ndarray, " M"]
    ranks: Float[np.ndarray, " M"]
    flops: Mapping[int, float]
    losses: Mapping[int, Float[np.ndarray, "M S"]]
    still_learning: Sequence[bool]

    @property
    def budgets(self) -> list[int]:
        """Budgets from which the target is predicted: those that hold two sizes above 0."""
        return [self.target // ratio for ratio in RATIOS if self.rungs(self.target // ratio).sum() >= 2]

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

    def cost(self, budget: int) -> float:
        """FLOPs of all runs up to a budget, as a share of those of fine-tuning every model on all of the target."""
        return sum(flops for size, flops in self.flops.items() if size <= budget) / self.flops[self.target]

    def saved(self, accuracy: Mapping[int, float]) -> float:
        """What a method saves of FullTuning, given its relative accuracy at every budget.

        It is by the smallest budget at which, as at every larger one, that is `GOOD`; 0 where there is none, or where
        such a budget takes more than FullTuning.
        """
        good = 0.0
        for budget in self.budgets:  # the largest first
            if not accuracy[budget] >= GOOD:  # nor where it is not known
                break
            good = max(1 - self.cost(budget), 0.0)
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
    table = read_curves(folder / f"{name}.csv")
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
    still_learning: list[bool] = []
    with (folder / f"{name}.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            model, size, seed = row["model"], int(row["examples"]), int(row["seed"])
            if model in table.models and size in table.sizes:
                flops.setdefault(size, {}).setdefault(model, []).append(float(row["flops"]))
                cell = table.models.index(model), list(table.sizes).index(size)
                losses.setdefault(seed, np.full(table.loss.shape, np.nan))[cell] = float(row["loss"])
                if size:
                    still_learning.append(row["best_step"] == row["steps"])
    return TaskEvidence(
        name=name,
        table=table,
        target=int(table.sizes[-1]),
        residuals=stack_residuals([modes.get(model) for model in table.models]),
        bound=_longest(content["bound"]),
        drifts=_longest(content["drifts"]),
        weights=np.array([content["weights"].get(model, np.nan) for model in table.models]),
        ranks=np.array([ranks.get(model, np.nan) for model in table.models]),
        flops={size: sum(float(np.mean(runs)) for runs in of.values()) for size, of in flops.items()},
        losses=losses,
        still_learning=still_learning,
    )


def _longest(ladders: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """By model, of its ladders of several seeds the longest, and of several of these the first."""
    ordered = sorted(ladders, key=lambda one: len(one["examples"]), reverse=True)
    return {one["model"]: one for one in reversed(ordered)}


@dataclass(frozen=True)
class VariantScore:
    """How a variant of the LensLLM law predicted the losses at the target from a budget.

    Attributes:
      log_density: Of each model's measured loss, in nats.
      metrics: As `lensjax.selection.metrics.evaluate` gives them.
      slope: b with its 90 % interval; None where kernels are not used.
    """

    log_density: Float[np.ndarray, " M"]
    metrics: Mapping[str, float]
    slope: tuple[float, float, float] | None


def variant_scores(task: TaskEvidence, budget: int) -> dict[Variant, VariantScore]:
    """All variants at a budget."""
    seen, target = task.table.up_to(budget), task.target
    true = task.table.column(target)
    column = list(task.table.sizes).index(target)
    found: dict[Variant, VariantScore] = {}
    for variant in VARIANTS:
        fit = fit_lensllm(seen, target, task.residuals, variant)
        density = fit.log_density(task.table)[:, column]
        slope = None if fit.times is None else (float(fit.b.value), float(fit.b.lower), float(fit.b.upper))
        found[variant] = VariantScore(density, evaluate(_prediction(fit, target), true), slope)
    return found


def method_scores(task: TaskEvidence, budget: int) -> dict[str, dict[str, float]]:
    """Every method's metrics at a budget, and the joint fit's without wider intervals.

    Among them are NLPmetrics, and the kernel's effective rank before fine-tuning, of which more is taken as better.
    """
    seen, true = task.table.up_to(budget), task.table.column(task.target)
    said = {name: method.predict(seen, task.target) for name, method in METHODS.items() if name != "joint"}
    fit = fit_joint(seen, task.target)
    said |= {
        "joint": joint_prediction(fit, task.target),
        "joint, not widened": joint_prediction(replace(fit, widening=1.0), task.target),
        "nlp_metrics": Prediction(task.weights, is_loss=False),
        "kernel, effective rank": Prediction(-task.ranks, is_loss=False),
    }
    return {name: evaluate(prediction, true) for name, prediction in said.items()}


class IntervalScore(NamedTuple):
    """How the joint fit of one seed's losses foresaw those at the target.

    Attributes:
      sizes: That were fitted, above 0.
      widened: Whether intervals may be wider than modelled.
      models: M.
      coverage: Share of the M losses within their 90 % intervals.
      log_density: Of a log loss at the target, Gaussian, in nats; the mean over models.
    """

    sizes: int
    widened: bool
    models: int
    coverage: float
    log_density: float


def interval_scores(task: TaskEvidence) -> list[IntervalScore]:
    """Of the joint fit with and without wider intervals, from every budget that a seed was measured up to."""
    true, found = task.table.column(task.target), []
    for losses in task.losses.values():
        for budget in task.budgets:
            used = task.rungs(budget)
            if not np.isfinite(losses[:, used]).all():
                continue
            alone = replace(task.table, loss=losses, seeds=np.isfinite(losses).astype(np.int64)).up_to(budget)
            fit = fit_joint(alone, task.target)
            for widened, one in ((True, fit), (False, replace(fit, widening=1.0))):
                foreseen = one.predict(task.target)
                inside = (foreseen.lower[:, 0] <= true) & (true <= foreseen.upper[:, 0])
                density = norm.logpdf(np.log(true), np.log(foreseen.loss[:, 0]), foreseen.log_sd[:, 0])
                found.append(IntervalScore(int(used.sum()), widened, len(true), inside.mean(), density.mean()))
    return found


def _prediction(fit: LensLLMPosterior, target: int) -> Prediction:
    losses = fit.predict(target)
    return Prediction(losses.loss[:, 0], lower=losses.lower[:, 0], upper=losses.upper[:, 0])


def mean_and_error(values: Sequence[float] | Float[np.ndarray, " K"]) -> tuple[float, float]:
    """Mean and standard error, of values that stand for a population."""
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    if len(known) < 2:
        return (float(known.mean()) if len(known) else float("nan")), float("nan")
    return float(known.mean()), float(known.std(ddof=1) / np.sqrt(len(known)))
