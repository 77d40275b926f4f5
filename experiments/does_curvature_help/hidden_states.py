"""Whether LogME and the H-score of pretrained hidden states go with losses after fine-tuning; see README.md.

    python experiments/does_curvature_help/hidden_states.py [--examples 200] [--tasks NAME …] [--out DIR]

Of the bundled models, on the first training examples of every task, beside losses that measure.py wrote.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tyro
from measure import Asked, study

from lensjax.core.errors import InputError
from lensjax.core.files import make_folder, write_files
from lensjax.curves.csv_files import read_curves
from lensjax.curves.table import CurveTable
from lensjax.curves.units import NATS_PER_TOKEN
from lensjax.measure.probes import probe_batch, probe_examples
from lensjax.measure.transferability import Transferability, measure_transferability
from lensjax.models import load
from lensjax.models.pocket import SCHEME, bundled
from lensjax.selection.evidence import Evidence
from lensjax.selection.methods import METHODS
from lensjax.selection.metrics import evaluate
from lensjax.tasks.ready_made import TASKS, write_rows

RESULTS = Path(__file__).parent / "results"
COMPARED = ("logme", "h_score", "zero_shot", "model_size", "nlp_metrics")  # what needs no fine-tuning
FEWEST = 3  # models that a correlation is of


def measured(task: str, folder: Path, examples: int) -> dict[str, Transferability]:
    """Scores of the bundled models on a task's first training examples of seed 0, by their names."""
    names = tuple(name.removeprefix(SCHEME) for name in bundled())
    write_rows(task, folder)
    spec = study(Asked(task, names, folder, max(400, examples), (0,), "twelve_epochs", "of_the_code")).task
    rows, found = probe_examples(spec, examples), {}
    for name in names:
        model = load(SCHEME + name, dtype="float32", param_dtype="float32")
        found[name] = measure_transferability(model, probe_batch(model, spec, rows))
    return found


def judged(
    table: CurveTable, target: int, scores: Mapping[str, Transferability], weights: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Metrics of every method's order at a size, over the models that were measured there."""
    some = table.select(np.isfinite(table.column(target)))
    means = {
        name: {"logme": float(one.logme.mean()), "h_score": float(one.h_score.mean())} for name, one in scores.items()
    }
    evidence = Evidence({"transferability": means, "weights": weights})
    seen = some.up_to(0)
    return {
        name: evaluate(METHODS[name].predict(seen, target, evidence), some.column(target))
        | {"models": len(some.models)}
        for name in COMPARED
    }


def main(out: Path = RESULTS, examples: int = 200, tasks: tuple[str, ...] = tuple(TASKS)) -> None:
    """Write hidden_states.md.

    Args:
      out: Folder for it.
      examples: Training examples that scores are measured on.
      tasks: Packaged tasks; see `lensjax data fetch`.
    """
    lines = [
        "# Hidden states before fine-tuning, and losses after it",
        "",
        f"LogME and H-score on {examples} training examples; correlations are Spearman's of the predicted order with "
        "the losses, 1 for a perfect one, and relative accuracy is that of the choice.",
        "",
    ]
    every: dict[str, list[tuple[float, float]]] = {name: [] for name in COMPARED}
    for task in tasks:
        with TemporaryDirectory() as folder:
            scores = measured(task, Path(folder), examples)
        lines += [f"## {task}", "", "| model | LogME | H-score | layers | first tokens |", "|---|---|---|---|---|"]
        lines += [
            f"| {name} | {one.logme.mean():.4f} | {one.h_score.mean():.3f} | {len(one.logme)} | {one.classes} |"
            for name, one in scores.items()
        ]
        table = read_curves(RESULTS / f"{task}.csv", unit=NATS_PER_TOKEN)
        table = table.select([i for i, name in enumerate(table.models) if name in scores])
        weights = json.loads((RESULTS / f"{task}.json").read_text(encoding="utf-8"))["weights"]
        head = [f"{name}: Spearman / rel. acc." for name in COMPARED]
        lines += ["", f"| examples | models | {' | '.join(head)} |", "|---" * (len(head) + 2) + "|"]
        for target in (int(size) for size in table.sizes if size > 0):
            if np.isfinite(table.column(target)).sum() < FEWEST:
                continue
            found = judged(table, target, scores, weights)
            cells = []
            for name, one in found.items():
                order = one["spearman"] if name == "zero_shot" else -one["spearman"]
                every[name].append((order, one["relative_accuracy"]))
                cells.append(f"{order:+.2f} / {one['relative_accuracy']:.2f}")
            lines.append(f"| {target:,} | {int(found[COMPARED[0]]['models'])} | {' | '.join(cells)} |")
        lines.append("")
    lines += ["## Means over all sizes of all tasks", "", "| method | Spearman | relative accuracy |", "|---|---|---|"]
    lines += [f"| {name} | {np.nanmean(x):+.2f} | {np.mean(y):.2f} |" for name, x, y in _columns(every)]
    make_folder(out)
    write_files({out / "hidden_states.md": "\n".join([*lines, ""])})


def _columns(every: Mapping[str, list[tuple[float, float]]]) -> list[tuple[str, list[float], list[float]]]:
    return [(name, [x for x, _ in pairs], [y for _, y in pairs]) for name, pairs in every.items()]


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except InputError as error:
        raise SystemExit(str(error)) from error
