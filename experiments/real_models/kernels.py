"""Kernels of the losses of a task's first training examples, before fine-tuning and after, of every model.

    python experiments/real_models/kernels.py [--tasks topics …] [--models NAME …] [--examples 16]

Models that run.py fine-tuned on 200 examples are measured again after that. Kernels in results/kernels.json are
not measured again. Run it after run.py.
"""

import json
import time
from pathlib import Path
from typing import Any

import tyro
from models import GEMMA3, SMOLLM2, UNTRAINED
from run import HERE, KERNELS_AFTER, source_of, spec_of, zoo

import lensjax.models
from lensjax.core.errors import InputError
from lensjax.core.files import write_files
from lensjax.measure.kernel import measure_kernel, moved
from lensjax.measure.probes import probe_batch, probe_examples
from lensjax.tasks.ready_made import write_rows
from lensjax.train.runs import MODEL


def kernels(name: str, task: str, count: int, build: Path) -> dict[str, Any]:
    """What describes a model's kernel on a task: see `MeasuredKernel.summary` and `lensjax.measure.kernel.moved`."""
    began, spec = time.perf_counter(), spec_of(name, task, build)
    loaded = lensjax.models.load(source_of(name, build))
    batch = probe_batch(loaded, spec, probe_examples(spec, count))
    before = measure_kernel(loaded, batch)
    row = {"task": task, "model": name, "examples": count} | before.summary()
    del loaded
    tuned = build / task / name / name / f"examples-{KERNELS_AFTER}-seed-0" / MODEL
    if tuned.exists():
        row["after"] = {"trained_on": KERNELS_AFTER} | moved(before, measure_kernel(lensjax.models.load(tuned), batch))
    return row | {"seconds": round(time.perf_counter() - began, 1)}


def main(
    tasks: tuple[str, ...] = ("spelling",),
    models: tuple[str, ...] = (),
    examples: int = 16,
    build: Path = HERE / "build",
    results: Path = HERE / "results",
) -> None:
    """Measure kernels, and write results/kernels.json after each.

    Args:
        tasks: See `lensjax data fetch`.
        models: See run.py.
        examples: Number of training examples.
        build: Where models, data and runs are.
        results: Where kernels.json is written.
    """
    table = results / "kernels.json"
    rows = json.loads(table.read_text()) if table.exists() else []
    for task in tasks:
        if not (build / f"{task}.jsonl").exists():
            write_rows(task, build)
        for name in models or (*zoo(), SMOLLM2, UNTRAINED, GEMMA3):
            if any((row["task"], row["model"], row["examples"]) == (task, name, examples) for row in rows):
                continue
            rows.append(kernels(name, task, examples, build))
            write_files({table: json.dumps(rows, indent=1) + "\n"})
            print(rows[-1], flush=True)


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except InputError as error:
        raise SystemExit(str(error)) from error
