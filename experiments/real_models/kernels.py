"""Kernels of the losses of a task's first training examples, before fine-tuning and after, of every model.

    python experiments/real_models/kernels.py [--tasks topics …] [--models NAME …] [--examples 16]

They are measured again at every model that run.py kept after fine-tuning, and there the forms of the Hessian along
what fine-tuning changed. Rows in results/kernels.json stay until run.py has kept more models. Run it after run.py.
"""

import json
import time
from pathlib import Path
from typing import Any

import tyro
from models import GEMMA3, SMOLLM2, UNTRAINED
from run import HERE, folder_of, source_of, spec_of, zoo

import lensjax.models
from lensjax.core.errors import InputError
from lensjax.core.files import write_files
from lensjax.curvature.dynamics import residual_modes
from lensjax.measure.kernel import MeasuredKernel, measure_kernel, moved
from lensjax.measure.probes import probe_batch, probe_examples
from lensjax.measure.rungs import FinetuneRun, find_runs, ladder_summary, measure_rungs
from lensjax.tasks.ready_made import write_rows
from lensjax.train.runs import MODEL

_OF_RUNG = ("examples", "train_loss", "test_loss", "sum_of_largest", "sum_of_means", "squared_distance")


def kept(name: str, task: str, build: Path) -> list[FinetuneRun]:
    """The runs on a task, by number of examples, whose models run.py kept."""
    where = {folder_of(name, task, build, choices=choices) / name for choices in (True, False)}
    folders = [path.parent for one in where for path in one.glob(f"examples-*-seed-0/{MODEL}")]
    return find_runs(folders, source_of(name, build))


def kernels(name: str, task: str, count: int, build: Path, runs: list[FinetuneRun]) -> dict[str, Any]:
    """What describes a model's kernel on a task, and what fine-tuning did to it.

    See `MeasuredKernel.summary`, `lensjax.curvature.dynamics.residual_modes`, `lensjax.measure.kernel.moved` and, of
    `forms`, `lensjax.measure.rungs.ladder_summary`.
    """
    began, spec = time.perf_counter(), spec_of(name, task, build)
    loaded = lensjax.models.load(source_of(name, build))
    batch = probe_batch(loaded, spec, probe_examples(spec, count))
    before = measure_kernel(loaded, batch)
    row = {"task": task, "model": name, "examples": count} | before.summary() | modes(before)
    row["after"] = [
        {"trained_on": run.result.examples}
        | moved(before, measure_kernel(lensjax.models.load(run.folder / MODEL), batch))
        for run in runs
    ]
    if runs:
        each = [{key: value[i : i + 1] for key, value in batch.items()} for i in range(count)]
        forms = ladder_summary(measure_rungs(loaded, each, runs, block="joint"))
        row["forms"] = [{key: rung[key] for key in _OF_RUNG} for rung in forms["rungs"]]
        row["decay"] = forms["decay"]
    return row | {"seconds": round(time.perf_counter() - began, 1)}


def modes(kernel: MeasuredKernel) -> dict[str, list[float]]:
    """How fast each direction of the residual is learned, and its share."""
    assert kernel.f0 is not None
    assert kernel.y is not None
    rates, weights = residual_modes(kernel.theta, kernel.f0, kernel.y)
    return {"rates": rates.tolist(), "weights": weights.tolist()}


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
            of = [row for row in rows if (row["task"], row["model"], row["examples"]) == (task, name, examples)]
            runs = kept(name, task, build)
            if (
                of
                and "rates" in of[0]
                and {run.result.examples for run in runs} <= {one["trained_on"] for one in of[0]["after"]}
            ):
                continue
            rows = [row for row in rows if row not in of] + [kernels(name, task, examples, build, runs)]
            write_files({table: json.dumps(rows, indent=1) + "\n"})
            print(rows[-1], flush=True)


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except InputError as error:
        raise SystemExit(str(error)) from error
