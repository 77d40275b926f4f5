"""What a study takes besides training, evaluation and curvature: the time of `lensjax run`, part by part.

    python benchmarks/study.py [--parts demo again hessians] [--quick] [--out FILE]

They are studies of the bundled models on the CPU: that of `make demo`, the same once more, when the programs are kept
that it compiled, and one with Hessians and a choice of learning rates. Each is a process of its own.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro
import yaml
from parts import Json, Promise, run_parts
from spelling import numbers

from lensjax.study.folder import read_results, read_searches
from lensjax.study.spec import read_study
from lensjax.study.state import read_state

Part = Literal["demo", "again", "hessians"]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "transformers", "lensjax")
COLUMNS = {"seconds": "median_s"}
DEMO = Path(__file__).parents[1] / "experiments" / "pocket_zoo" / "demo.yaml"

NOTES = {
    "studies": "`lensjax run` of models, training and evidence of experiments/pocket_zoo/demo.yaml, on spelling out "
    "numbers; `again` finds the programs of `demo` compiled, the others find none; `hessians` has two learning rates "
    "to choose from, Hessians, and larger rungs",
    "seconds": "of the whole process: `training` is what results say, tests and runs that chose learning rates "
    "included; `curvature` is of the cells of kernels, Hessians and weight metrics, loading and compiling included; "
    "`inside_runs` is what fine-tuning cells take besides, such as loading, tokenising, and saving models; "
    "`outside_cells` are the start, decisions and the report",
    "overhead": "(inside_runs + outside_cells) / whole",
}


@dataclass(frozen=True)
class Plan:
    """Largest numbers of training examples, and how many models."""

    demo: int
    again: int
    hessians: int
    models: int


FULL = Plan(demo=800, again=800, hessians=1600, models=5)
QUICK = Plan(demo=400, again=400, hessians=400, models=2)


def benchmark(
    parts: tuple[Part, ...] = ("demo", "again", "hessians"),
    quick: bool = False,
    out: Path = Path("benchmarks/results/study.json"),
) -> None:
    """Measure, print a table, and write JSON.

    Args:
        parts: What is measured.
        quick: Only try the script on small studies; the numbers mean nothing.
        out: File to write.
    """
    run_parts(
        "study",
        MEASURES,
        QUICK if quick else FULL,
        parts,
        out,
        quick=quick,
        notes=NOTES,
        packages=PACKAGES,
        targets=targets,
        columns=COLUMNS,
    )


def measure(part: Part, plan: Plan) -> Json:
    """Seconds of a study's parts."""
    content = yaml.safe_load(DEMO.read_text(encoding="utf-8"))
    content["candidates"] = content["candidates"][: plan.models]
    content["task"] |= {"source": {"files": "rows.jsonl"}, "prompt": "{number}:", "target": " {words}"}
    content |= {"budget": getattr(plan, part)}
    if part == "hessians":
        content["evidence"]["hessian"] = {"examples": 32}
        content["training"]["learning_rate"] = [1e-3, 3e-3]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        rows = numbers(content["task"]["validation"] + content["task"]["test"] + content["budget"])
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        file = folder / "study.yaml"
        file.write_text(yaml.safe_dump(content | {"target": content["budget"]}), encoding="utf-8")
        if part == "again":
            seconds_of(file, folder / "before", folder)
        return told(file, seconds_of(file, file.with_suffix(""), folder if part == "again" else None))


def seconds_of(file: Path, out: Path, cache: Path | None) -> float:
    """Wall time of running a study, with the user's cache in a folder, or without any."""
    settings = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "true" if cache else "false"}
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-m", "lensjax", "run", str(file), "--out", str(out)]
    start = time.perf_counter()
    ended = subprocess.run(
        command, capture_output=True, text=True, env=environment | settings | {"XDG_CACHE_HOME": str(cache)}
    )
    seconds = time.perf_counter() - start
    if ended.returncode:
        raise SystemExit(ended.stderr)
    return seconds


def told(file: Path, whole: float) -> Json:
    """What a finished study's folder says of its time."""
    spec, out = read_study(file), file.with_suffix("")
    results = read_results(spec, out)
    searches = [result for candidate in spec.candidates for result in read_searches(out, candidate, results)]
    cells = [entry for entry in read_state(spec, out).journal if entry.cell is not None]
    assert all(entry.status == "ok" for entry in cells)
    kinds = {
        kind: [entry.seconds for entry in cells if entry.cell.kind == kind]
        for kind in ("finetune", "ntk", "weights", "hessian")
    }
    training = sum(result.seconds for result in (*results, *searches))
    curvature = sum(sum(seconds) for kind, seconds in kinds.items() if kind != "finetune")
    inside = sum(kinds["finetune"]) - training
    outside = whole - sum(kinds["finetune"]) - curvature
    return {
        "runs": len(results) + len(searches),
        "cells": len(cells),
        "whole": {"median_s": whole},
        "training": {"median_s": training},
        "curvature": {"median_s": curvature},
        "inside_runs": {"median_s": inside},
        "outside_cells": {"median_s": outside},
        "overhead": (inside + outside) / whole,
    }


def targets(parts: Mapping[str, Json]) -> list[Promise]:
    """What we promised ourselves, beside what was measured."""
    return [(f"{name}: overhead", 0.05, part["overhead"]) for name, part in parts.items()]


MEASURES: Mapping[Part, Callable[[Plan], Any]] = {
    "demo": partial(measure, "demo"),
    "again": partial(measure, "again"),
    "hessians": partial(measure, "hessians"),
}


if __name__ == "__main__":
    tyro.cli(benchmark)
