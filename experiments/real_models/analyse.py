"""Does what was found on small models hold for real pretrained ones? The answers, from what was measured.

    python experiments/real_models/analyse.py [--results DIR]

Writes report.md and answers.json beside the measurements. See README.md beside this file.
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from models import GEMMA3, SMOLLM2, UNTRAINED
from run import HERE

from lensjax.core.errors import InputError
from lensjax.core.files import write_files
from lensjax.core.text import DASH
from lensjax.curves.csv_files import read_curves
from lensjax.curves.table import CurveTable
from lensjax.curves.units import BITS_PER_BYTE
from lensjax.fit.lensllm.fitting import VARIANTS, fit_lensllm
from lensjax.fit.residuals import Residuals, stack_residuals
from lensjax.selection.methods import METHODS
from lensjax.selection.metrics import evaluate
from lensjax.tasks.ready_made import TASKS

PRETRAINED = (SMOLLM2, GEMMA3)
FROM_ONE = ("zero_shot", "sub_tuning")  # methods that look at one size
FROM_SEVERAL = ("last_three", "rectified_law", "joint", "stacked")
GOOD = 0.911  # relative accuracy that LensLLM's paper claims
Row = dict[str, str]


@dataclass(frozen=True)
class Place:
    """A task's curves, in bits per byte, of models that were all measured at a target, a pretrained one among them.

    Attributes:
      table: The curves of M models.
      target: In examples.
      residuals: Of their kernels before fine-tuning; None where no two are known.
      tokens: That each model was trained on, by size.
    """

    table: CurveTable
    target: int
    residuals: Residuals | None
    tokens: Mapping[tuple[str, int], float]

    @property
    def budgets(self) -> list[int]:
        """Sizes below the target that all models were measured at, 0 among them."""
        whole = self.table.measured.all(axis=0)
        return [int(size) for size in self.table.sizes[whole] if size < self.target]

    def cost(self, method: str, budget: int) -> float:
        """Parameters × tokens trained on of what a method looks at, as a share of training all at the target."""
        sizes = [budget] if method in FROM_ONE else [size for size in self.budgets if size <= budget]
        return sum(self._of(size) for size in sizes) / self._of(self.target)

    def _of(self, size: int) -> float:
        models = zip(self.table.models, self.table.parameters, strict=True)
        return float(sum(parameters * self.tokens[model, size] for model, parameters in models))


def rows_of(results: Path) -> dict[str, list[Row]]:
    """The rows of every task that was measured."""
    found = {}
    for task in TASKS:
        if (path := results / f"{task}.csv").exists():
            with path.open(newline="", encoding="utf-8") as file:
                found[task] = list(csv.DictReader(file))
    return found


def places(results: Path, rows: Mapping[str, Sequence[Row]], kernels: Sequence[Mapping[str, Any]]) -> list[Place]:
    """Of every task and target the curves of all models that were measured there, if a pretrained one is among them."""
    found = []
    for task, of in rows.items():
        table = read_curves(results / f"{task}.csv", unit=BITS_PER_BYTE)
        tokens = {(row["model"], int(row["examples"])): float(row["tokens"]) for row in of}
        whole = [row for row in kernels if row["task"] == task and "rates" in row]
        modes = {row["model"]: (row["rates"], row["weights"]) for row in whole}
        for target in table.sizes[table.sizes > 0]:
            seen = table.up_to(int(target))
            real = [i for i, model in enumerate(seen.models) if model in PRETRAINED and seen.measured[i, -1]]
            if not real:
                continue
            most = max(real, key=lambda i: seen.measured[i].sum())
            wherever = np.asarray(seen.measured[:, seen.measured[most]].all(axis=1))  # that one was measured
            some = seen.select(wherever)
            if len(some.models) < 3 or seen.points()[most] < 2:
                continue
            known = [modes.get(model) for model in some.models]
            enough = sum(one is not None for one in known) > 1
            found.append(Place(some, int(target), stack_residuals(known) if enough else None, tokens))
    return found


def method_scores(place: Place) -> list[dict[str, Any]]:
    """How methods predict the target from every budget: relative accuracy, and the intervals that held."""
    scores = []
    for budget in place.budgets:
        names = [*(FROM_ONE[:1] if budget == 0 else FROM_ONE[1:])]
        fitted = [size for size in place.budgets if 0 < size <= budget]
        names += FROM_SEVERAL if len(fitted) > 1 else ()
        for name in names:
            prediction = METHODS[name].predict(place.table.up_to(budget), place.target)
            true = place.table.column(place.target)
            score: dict[str, Any] = {"method": name, "budget": budget, "cost": place.cost(name, budget)}
            score["relative_accuracy"] = evaluate(prediction, true)["relative_accuracy"]
            if prediction.lower is not None and prediction.upper is not None:
                held = (prediction.lower <= true) & (true <= prediction.upper)
                score["held"] = dict(zip(place.table.models, map(bool, held), strict=True))
            scores.append(score)
    return scores


def tied_scores(place: Place) -> list[dict[str, Any]]:
    """What tying D_l to kernels adds to the log density of each loss at the target, from every budget of two sizes."""
    found = []
    for budget in place.budgets:
        if place.residuals is None or sum(0 < size <= budget for size in place.budgets) < 2:
            continue
        seen = place.table.up_to(budget)
        fits = {variant: fit_lensllm(seen, place.target, place.residuals, variant) for variant in VARIANTS}
        density = {variant: fit.log_density(place.table)[:, -1] for variant, fit in fits.items()}
        gains = {
            variant: dict(zip(place.table.models, (density["tied"] - density[variant]).tolist(), strict=True))
            for variant in VARIANTS[1:]
        }
        found.append({"budget": budget, "tied_above": gains})
    return found


def answers(results: Path) -> dict[str, Any]:
    """All answers as numbers."""
    rows = rows_of(results)
    kernels = json.loads((results / "kernels.json").read_text(encoding="utf-8"))
    return {
        "parity": json.loads((results / "parity.json").read_text(encoding="utf-8"))["models"],
        "losses": {task: losses(of) for task, of in rows.items()},
        "kernels": [
            {key: row.get(key) for key in ("task", "model", "effective_rank", "target_alignment", "after", "forms")}
            | {"decay": row.get("decay")}
            for row in kernels
        ],
        "places": [
            {
                "task": place.table.task,
                "target": place.target,
                "models": list(place.table.models),
                "best": place.table.models[int(np.argmin(place.table.column(place.target)))],
                "methods": method_scores(place),
                "tied": tied_scores(place),
            }
            for place in places(results, rows, kernels)
        ],
    }


def losses(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Bits per byte of each model and size, over seeds, with the error over test examples of the first."""
    cells: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        cells.setdefault((row["model"], int(row["examples"])), []).append(row)
    return [
        {
            "model": model,
            "examples": size,
            "bits_per_byte": [float(row["bits_per_byte"]) for row in of],
            "error": float(of[0]["bits_per_byte_error"]),
            "choice_accuracy": float(of[0]["choice_accuracy"]) if of[0].get("choice_accuracy") else None,
            "steps": int(of[0]["steps"]),
        }
        for (model, size), of in cells.items()
    ]


def report(found: Mapping[str, Any]) -> str:
    """The answers as tables, with what they say."""
    lines = ["# Real pretrained models", "", "`python experiments/real_models/analyse.py` writes this.", ""]
    lines += ["## Do they compute as with torch?", "", *_parity(found["parity"]), ""]
    for task, cells in found["losses"].items():
        lines += [f"## Bits per byte on {task}", "", *_losses(cells), ""]
    lines += ["## Does the kernel stay what it was?", "", *_kernels(found["kernels"]), ""]
    lines += ["## Does ΣH fall with the number of examples?", "", *_forms(found["kernels"]), ""]
    lines += ["## Does tying D_l to the kernel help?", "", *_tied(found["places"]), ""]
    lines += ["## What is saved at an equal choice?", "", *_saved(found["places"]), ""]
    lines += ["## How far can intervals be trusted?", "", *_held(found["places"]), ""]
    return "\n".join(lines)


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heading, ["---"] * len(heading), *rows)]


def _parity(models: Mapping[str, Any]) -> list[str]:
    cells = []
    for name, one in models.items():
        nats = (f"{one['nats_per_token'][by]:.4f}" for by in ("lensjax", "torch"))
        largest, same = one["largest_relative_logit_difference"], one["same_most_likely_tokens"]
        cells.append([name, str(one["tokens"]), *nats, f"{largest:.1e}", "yes" if same else "no"])
    heading = ["model", "tokens", "nats per token here", "in torch", "difference of logits", "same likeliest tokens"]
    return [*_table(heading, cells), "", "The difference is the largest, relative to the largest logit."]


def _decided(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Who is best at each size at which both kinds were measured, and by how much."""
    said = []
    for size in sorted({cell["examples"] for cell in cells}):
        means = {cell["model"]: float(np.mean(cell["bits_per_byte"])) for cell in cells if cell["examples"] == size}
        real = {model: loss for model, loss in means.items() if model in PRETRAINED}
        small = {model: loss for model, loss in means.items() if model not in (*PRETRAINED, UNTRAINED)}
        if real and small:
            first, other = (min(of, key=lambda model: of[model]) for of in (real, small))
            said.append(f"{size:,}: {first} {real[first]:.3f}, {other} {small[other]:.3f}")
    return [f"The best pretrained and the best small model, by examples: {'; '.join(said)}."] if said else []


def _losses(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    sizes = sorted({cell["examples"] for cell in cells})
    by = {(cell["model"], cell["examples"]): cell for cell in cells}
    models = sorted(dict.fromkeys(cell["model"] for cell in cells), key=lambda name: _last(name, cells))
    table = _table(
        ["model", *(f"{size:,}" for size in sizes)],
        [[model, *(_loss(by.get((model, size))) for size in sizes)] for model in models],
    )
    spreads = [max(cell["bits_per_byte"]) / min(cell["bits_per_byte"]) - 1 for cell in _seeded(cells)]
    said = [
        "± is the standard error over test examples; where there are several seeds, the least and the most are given. "
        "In brackets: choice accuracy."
    ]
    if spreads:
        said[0] += (
            f" Seeds move {len(spreads)} losses by {100 * min(spreads):.1f} to {100 * max(spreads):.1f} %, the median "
            f"by {100 * float(np.median(spreads)):.1f} %."
        )
    return [*table, "", *said, *_decided(cells)]


def _seeded(cells: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [cell for cell in cells if len(cell["bits_per_byte"]) > 1]


def _last(model: str, cells: Sequence[Mapping[str, Any]]) -> tuple[int, float]:
    """Models that were measured further come first, and of these the better."""
    own = max((cell for cell in cells if cell["model"] == model), key=lambda cell: cell["examples"])
    return -own["examples"], float(np.mean(own["bits_per_byte"]))


def _loss(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return ""
    values = cell["bits_per_byte"]
    right = "" if cell["choice_accuracy"] is None else f" ({cell['choice_accuracy']:.2f})"
    if len(values) > 1:
        return f"{min(values):.3f} to {max(values):.3f}{right}"
    return f"{values[0]:.3f} ± {cell['error']:.3f}{right}"


def _kernels(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = []
    for row in rows:
        before = [row["task"], row["model"], f"{row['effective_rank']:.1f}", f"{row['target_alignment']:.2f}"]
        for one in row["after"] or [None]:
            cells.append(before + (["", "", "", "", ""] if one is None else _moved(one)))
            before = ["", "", "", ""]
    heading = ["task", "model", "effective rank", "alignment", "after", "drift", "growth", "rank", "alignment"]
    said = []
    for kind, group in _split(rows):
        drifts = [row["after"][0]["drift"] for row in group if row["after"]]
        growth = [row["after"][0]["growth"] for row in group if row["after"]]
        if drifts:
            said.append(
                f"{kind}: drift {_range(drifts)} and growth {_range(growth, 3)} at the first rung above 0 "
                f"(models: {len(drifts)})."
            )
    return [*_table(heading, cells), "", "Drift is 1 − cos of the kernel before and after. " + " ".join(said)]


def _split(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    real = [row for row in rows if row["model"] in PRETRAINED]
    small = [row for row in rows if row["model"] not in (*PRETRAINED, UNTRAINED)]
    return [("Real pretrained models", real), ("Small models", small)]


def _range(values: Sequence[float], digits: int = 2) -> str:
    low, high = (f"{end:.{digits}f}" for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _moved(one: Mapping[str, Any]) -> list[str]:
    numbers = (one[key] for key in ("drift", "growth", "effective_rank", "target_alignment"))
    return [f"{one['trained_on']:,}", *(f"{x:.{d}f}" for x, d in zip(numbers, (2, 3, 1, 2), strict=True))]


def _forms(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    ladders = [row for row in rows if row["forms"]]
    sizes = sorted({rung["examples"] for row in ladders for rung in row["forms"]})
    cells: list[list[str]] = []
    rises: dict[bool, list[bool]] = {True: [], False: []}
    for row in ladders:
        by = {rung["examples"]: rung["sum_of_largest"] for rung in row["forms"]}
        decay = row["decay"]
        beta = DASH if decay is None else f"{decay['beta2']:.2f}"
        cells.append([row["task"], row["model"], *(f"{by[s]:.3g}" if s in by else "" for s in sizes), beta])
        if len(by) > 1:
            rises[row["model"] in PRETRAINED].append(by[max(by)] > by[min(by)])
    counts = [f"{sum(rises[real])} of {len(rises[real])}" for real in (True, False)]
    said = (
        "ΣH, the sum over layers of the largest over 16 examples of Σ_j vᵢᵀ H_ij v_j, is larger at the last rung than "
        f"at the first in {counts[0]} ladders of real pretrained models and in {counts[1]} of small ones. The theory "
        "of two phases has it fall as n^(−β₂)."
    )
    return [*_table(["task", "model", *(f"{size:,}" for size in sizes), "β₂"], cells), "", said]


def _tied(found: Sequence[Mapping[str, Any]]) -> list[str]:
    cells, gains = [], {variant: {True: [], False: []} for variant in VARIANTS[1:]}  # type: ignore[var-annotated]
    for place in found:
        for one in place["tied"]:
            row = [place["task"], f"{place['target']:,}", f"{one['budget']:,}"]
            for variant in VARIANTS[1:]:
                by = one["tied_above"][variant]
                for model, gain in by.items():
                    gains[variant][model in PRETRAINED].append(gain)
                real = [gain for model, gain in by.items() if model in PRETRAINED]
                row += [f"{float(np.mean(real)):+.2f}", f"{float(np.mean([*by.values()])):+.2f}"]
            cells.append(row)
    if not cells:
        return ["No task has kernels and curves of two sizes below a target."]
    heading = ["task", "target", "from"]
    heading += [f"{variant}, {of}" for variant in VARIANTS[1:] for of in ("real", "all")]
    said = "; ".join(
        f"less {variant} {float(np.mean(gains[variant][True])):+.2f} for the real models and "
        f"{float(np.mean(gains[variant][False])):+.2f} for the others"
        for variant in VARIANTS[1:]
    )
    return [
        *_table(heading, cells),
        "",
        f"Mean gain of log density at the target, in nats per model, of the tied variant over each other: {said}.",
    ]


def _saved(found: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = []
    for place in found:
        row = [place["task"], f"{place['target']:,}", str(len(place["models"])), place["best"]]
        for name in (*FROM_ONE, *FROM_SEVERAL):
            of = sorted((one for one in place["methods"] if one["method"] == name), key=lambda one: -one["budget"])
            cost = None
            for one in of:  # the largest budget first
                if not one["relative_accuracy"] >= GOOD:
                    break
                cost = one["cost"]
            row.append(DASH if not of else "none" if cost is None else f"{100 * (1 - cost):.0f} %")
        cells.append(row)
    heading = ["task", "target", "models", "best", *FROM_ONE, *FROM_SEVERAL]
    said = (
        f"Share of parameters × tokens of training all models at the target that is saved by the smallest budget from "
        f"which a method's choice has a relative accuracy of {GOOD:.1%} or more, as it has from every larger one."
    )
    return [*_table(heading, cells), "", said]


def _held(found: Sequence[Mapping[str, Any]]) -> list[str]:
    counts: dict[str, dict[bool, list[bool]]] = {}
    for place in found:
        for one in place["methods"]:
            for model, held in one.get("held", {}).items():
                counts.setdefault(one["method"], {True: [], False: []})[model in PRETRAINED].append(held)
    cells = [
        [name, *(f"{sum(held)} of {len(held)}" if held else DASH for held in (by[True], by[False]))]
        for name, by in counts.items()
    ]
    if not cells:
        return ["No method with intervals could be fitted."]
    return [*_table(["90 % intervals of", "real pretrained models", "others"], cells), "", "How many hold."]


def main(results: Path = HERE / "results") -> None:
    """Write report.md and answers.json.

    Args:
        results: Where run.py and kernels.py wrote.
    """
    found = answers(results)
    write_files(
        {results / "answers.json": json.dumps(found, indent=1) + "\n", results / "report.md": report(found) + "\n"}
    )


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except InputError as error:
        raise SystemExit(str(error)) from error
