"""The answers as a report: tables in Markdown, and a figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from evidence import GOOD, SHOWN, Place, TaskEvidence, VariantScore

from lensjax.core import text
from lensjax.fit.lensllm.fitting import VARIANTS, Variant


def report(
    tasks: Sequence[TaskEvidence],
    targets: Sequence[TaskEvidence],
    variants: Mapping[Place, Mapping[Variant, VariantScore]],
    methods: Mapping[Place, Mapping[str, Mapping[str, float]]],
    answers: Mapping[str, Any],
) -> str:
    """All of it as tables, with what they say; `targets` are the tasks at every target that is predicted."""
    lines = ["# Does curvature help to choose a model?", "", "## Curves", ""]
    for task in tasks:
        lines += [f"### {task.title}", "", *_curves(task), "", *_steps(task), *_seeds(task)]
    lines += ["## Does tying D_l to the kernel help?", "", *_variants(variants, answers), ""]
    if answers["drifts"]["ladders"]:
        lines += ["## Does the kernel stay what it was?", "", *_drifts(answers["drifts"]), ""]
    lines += ["## Does the Hessian see the phases?", "", *_phases(answers["phases"]), ""]
    lines += ["## Does a pretrained kernel's effective rank tell?", "", *_ranks(answers["ranks"]), ""]
    lines += ["## How do the methods rank?", "", *_summary(answers["methods"]), ""]
    lines += ["### What is saved", "", *_targets(answers["targets"]), ""]
    lines += ["## How far can intervals be trusted?", "", *_coverage(answers["methods"]), ""]
    lines += ["## Every budget", "", *_methods(targets, methods), ""]
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


def _steps(task: TaskEvidence) -> list[str]:
    """In how many runs more steps may have lowered the loss."""
    runs = [learning for of in task.still_learning.values() for learning in of]
    where = [f"{sum(of)} of {len(of)} at {size:,}" for size, of in task.still_learning.items() if any(of)]
    said = f": {', '.join(where)}" if where else ""
    return [f"In {sum(runs)} of {len(runs)} runs the validation loss was lowest at the last step{said}.", ""]


def _seeds(task: TaskEvidence) -> list[str]:
    """How far losses of one model and size are apart, where there are several seeds of any."""
    table, told = task.table, []
    for size, loss, sd, seeds in zip(table.sizes, table.loss.T, table.loss_sd.T, table.seeds.T, strict=True):
        several = seeds > 1
        if size and several.any():
            apart = np.sqrt(np.mean((sd / loss)[several] ** 2))
            told.append(f"{apart:.1%} at {size:,} ({several.sum()} models)")
    return [f"Seeds differ by (standard deviation): {', '.join(told)}.", ""] if told else []


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
    lines = [
        "Each seed is fitted alone, and means are over seeds; b is that of the first.",
        "",
        *_table(heading, rows),
        "",
    ]
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


def _drifts(found: Mapping[str, Any]) -> list[str]:
    heading = ["task", "model", "examples", "1 − cos", "trace grows", "effective rank", "alignment"]
    ends = ("drift", "growth", "effective_rank", "target_alignment")
    rows = [
        [
            one["task"],
            one["model"],
            f"{one['examples'][0]:,} to {one['examples'][-1]:,}",
            *(f"{one[name][0]:.3g} to {one[name][-1]:.3g}" for name in ends),
        ]
        for one in found["ladders"]
    ]
    lines = [
        f"Between the kernel of {' and '.join(found['functionals'])} at the pretrained weights and at those that were "
        "fine-tuned on so many examples, on the same training examples.",
        "",
        *_table(heading, rows),
        "",
    ]
    for task, drifts in found["by_task"].items():
        told = (f"{drift:.2f} at {int(size):,}" for size, drift in drifts.items())
        lines.append(f"- {task}, mean over models: {', '.join(told)}.")
    return [*lines, f"- It grows with every rung in {found['rises']} of {len(found['ladders'])} ladders."]


def _phases(found: Mapping[str, Any]) -> list[str]:
    count = len(found["ladders"])
    rows = [
        [
            row["task"],
            row["model"],
            row["block"],
            f"{row['beta2']:.2f} ({row['lower']:.2f} to {row['upper']:.2f})",
            text.DASH if row["bound_transition"] is None else f"{row['bound_transition']:,.0f}",
            text.DASH if row["loss_transition"] is None else f"{row['loss_transition']:,}",
        ]
        for row in found["ladders"]
    ]
    heading = ["task", "model", "block", "β₂ (90 %)", "transition by the bound", "power phase by AtS from"]
    notes = (f"- {number} ladders: {note}." for note, number in found["notes"].items())
    return [
        "ΣH is the sum over layers of the largest over training examples, from 0 up, of Σ_j vᵢᵀ H_ij v_j (joint), as "
        "in LensLLM's code, or of vᵢᵀ (H_ii)₊ vᵢ (diagonal), as in its theorem. Bound and losses look at the same "
        "rungs.",
        "",
        *_table(heading, rows),
        "",
        f"Of {count} ladders ΣH clearly falls with n in {found['falls']} and clearly rises in {found['rises']}; β₂ is "
        f"clearly below 1/2 in {found['below_half']}, clearly above in {found['above_half']}. Of the {found['long']} "
        f"with five rungs or more, which AtS needs, the bound sees a transition in {found['bound_sees_transition']}, "
        f"AtS in {found['losses_see_transition']}, both in {found['both']}. Of the bound is said:",
        "",
        *notes,
    ]


def _ranks(found: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        [
            one["task"],
            str(one["models"]),
            f"{one['target']:,}",
            f"{one['correlation']:+.2f}",
            f"{one['without_one'][0]:+.2f} to {one['without_one'][1]:+.2f}",
        ]
        for one in found
    ]
    return [
        "Its correlation with the losses at every target, and the least and most of it without one of the models.",
        "",
        *_table(["task", "models", "target", "correlation", "without one"], rows),
    ]


def _name(method: str) -> str:
    return method if "," in method else text.method_title(method)


def _summary(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    tasks = next(iter(methods.values()))["regret"]
    heading = ["method", *SHOWN, *(f"regret, {task}" for task in tasks)]
    rows = [
        [_name(name), *map(_cell, found["metrics"].values()), *map(_cell, found["regret"].values())]
        for name, found in methods.items()
    ]
    return [
        "Means over tasks, of means over all targets and budgets of each. A fit sees the losses of one seed; means are "
        "over seeds, too. Methods that predict no loss are correlated by their quality, so that -1 is perfect.",
        "",
        *_table(heading, rows),
    ]


def _targets(found: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [name for name in found[0]["saved"] if name != "joint, not widened"]
    rows = [
        [
            one["task"],
            f"{one['target']:,}",
            f"{one['spread']:.3f}",
            f"{one['good']} of {one['models']}",
            f"{one['still_learning']:.0%}",
            f"{one['least_saved']:.1%} ({one['least_budget']:,})",
            *(f"{one['saved'][name]:.1%}" for name in names),
        ]
        for one in found
    ]
    return [
        "The share of FullTuning's FLOPs that is saved by the smallest budget at which, as at every larger one, "
        f"relative accuracy is {GOOD:.1%} or better. Budgets are a quarter of the target to a 128th. Runs that a "
        "learning rate is chosen by count, of FullTuning too, and kernels where a method looks at them. Spread: the "
        "worst model's loss less the best's, which relative accuracy is a share of. Good: models that have that "
        "accuracy if chosen. Learning: runs at the target whose validation loss was lowest at the last step. At most: "
        "what a fit of the ladder saves with the smallest budget (in brackets).",
        "",
        *_table(["task", "target", "spread", "good", "learning", "at most", *map(_name, names)], rows),
    ]


def _coverage(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    given = {name: found["coverage90"] for name, found in methods.items() if found["coverage90"]}
    columns = sorted({sizes for found in given.values() for sizes in found}, key=int)
    rows = [
        [_name(name), *(f"{found[sizes]['share']:.0%}" if sizes in found else "" for sizes in columns)]
        for name, found in given.items()
    ]
    one = next(iter(given.values()))
    counts = (f"{one[c]['intervals']:.0f} in {one[c]['fits']:.0f}, {one[c]['losses']}" for c in columns)
    return [
        "Losses at targets within their 90 % intervals, by the number of sizes above 0 that were fitted, of one seed. "
        "They are of few fits, and the same losses are foreseen from several budgets and seeds.",
        "",
        *_table(["method", *(f"{sizes} sizes" for sizes in columns)], [*rows, ["intervals in fits, losses", *counts]]),
    ]


def _methods(tasks: Sequence[TaskEvidence], methods: Mapping[Place, Mapping[str, Mapping[str, float]]]) -> list[str]:
    lines = []
    for task in tasks:
        for place in task.places:
            saved = max(1 - task.cost(place.budget), 0.0)
            lines += [f"### {task.title}, budget {place.budget:,}: {saved:.1%} of FullTuning saved", ""]
            rows = [[_name(name), *(_cell(found[m]) for m in SHOWN)] for name, found in methods[place].items()]
            lines += [*_table(["method", *SHOWN], rows), ""]
    return lines


def _cell(value: float | None) -> str:
    return text.DASH if value is None or np.isnan(value) else f"{value:.3f}"


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
