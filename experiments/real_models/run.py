"""Fine-tune two real pretrained models, and what they are to be compared with, on the tasks of LensJAX.

    python experiments/real_models/run.py [--tasks spelling …] [--models NAME …] [--largest 800] [--seeds 0 …]

Stopped or killed, the same command goes on, and it may be given more tasks, models, seeds or examples later. Results
are written after every run; those that are there are kept, and not made again. See README.md beside this file.
"""

import csv
import io
import itertools
import json
from pathlib import Path
from typing import Any

import tyro
from models import GEMMA3, SMOLLM2, UNTRAINED, model
from parity import parity

from lensjax.core.errors import InputError
from lensjax.core.files import make_folder, write_files
from lensjax.models.pocket import SCHEME, bundled
from lensjax.tasks.ready_made import TASKS, write_rows
from lensjax.train.ladder import measure_curve
from lensjax.train.loop import Stopped
from lensjax.train.prepare import rungs
from lensjax.train.results import Result, curves_csv
from lensjax.train.spec import FinetuneSpec

HERE = Path(__file__).parent
REAL = (SMOLLM2, GEMMA3)
LORA, FULL = "lora", "full"
KERNELS_AFTER = 200  # examples: models that are fine-tuned on as many or more, with seed 0, are kept for kernels.py
HELD_OUT = {"validation": 50, "test": 100}
TRAINING = {  # patience is as long as training, so that every run of a size takes the same steps
    LORA: {"method": "lora", "learning_rate": 1e-3, "batch_size": 16, "epochs": 2, "patience": 10, "packing": True},
    FULL: {"method": "full", "learning_rate": 1e-3, "batch_size": 32, "epochs": 12, "min_steps": 1600, "patience": 4},
    UNTRAINED: {"method": "full", "learning_rate": 3e-4, "batch_size": 16, "epochs": 2, "patience": 10},
}


def spec_of(name: str, task: str, build: Path, *, choices: bool = True) -> FinetuneSpec:
    """How a model is fine-tuned on a task; what is trained and tested on is the same for all.

    Without `choices` those of a task are not scored: of 25 that takes 25 times as long as the test itself.
    """
    ready = TASKS[task]
    how = LORA if name in REAL else UNTRAINED if name == UNTRAINED else FULL
    content: dict[str, Any] = {
        "source": {"files": str(build / f"{task}.jsonl")},
        "prompt": ready.prompt,
        "target": ready.target,
        **({"choices": list(ready.choices)} if ready.choices is not None and choices else {}),
        **HELD_OUT,
        # these tokenizers were made for texts, and give nearly every letter and phoneme a token of its own
        "max_prompt_tokens": ready.max_prompt_tokens,
        "max_target_tokens": 2 * ready.max_target_tokens,
        "training": TRAINING[how],
    }
    return FinetuneSpec.model_validate(content)


def measure(
    name: str, task: str, sizes: list[int], seeds: tuple[int, ...], build: Path, results: Path, *, choices: bool = True
) -> None:
    """Fine-tune one model where it has no results, and write those of the task so far after every run."""
    table = results / f"{task}.csv"
    for seed, size in itertools.product(seeds, sizes):
        if (name, str(seed), str(size)) in rows_of(table) or (seed and not size):
            continue
        spec, out = spec_of(name, task, build, choices=choices), folder_of(name, task, build, choices=choices)
        how: dict[str, Any] = {"seeds": [seed], "name": name, "save_models": size >= KERNELS_AFTER and not seed}
        for result in measure_curve(spec, source_of(name, build), out, [size], **how):
            print(f"{task}, {name}, {size:,} examples, seed {seed}: {result.loss}", flush=True)
            keep(table, [result])


def folder_of(name: str, task: str, build: Path, *, choices: bool = True) -> Path:
    """The folder of a model's runs on a task."""
    return build / (task if choices or TASKS[task].choices is None else f"{task}-losses") / name


def rows_of(table: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    """Rows of a table of results, if there is one, by model, seed and number of examples."""
    if not table.exists():
        return {}
    with table.open(newline="") as file:
        return {(row["model"], row["seed"], row["examples"]): row for row in csv.DictReader(file)}


def keep(table: Path, results: list[Result]) -> None:
    """Add results to a table; cells that older rows lack are empty."""
    new = list(csv.DictReader(io.StringIO(curves_csv(results, 0.0))))
    rows = rows_of(table) | {(row["model"], row["seed"], row["examples"]): row for row in new}
    text = io.StringIO()
    writer = csv.DictWriter(text, list(new[0]), restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[key] for key in sorted(rows, key=lambda key: (key[0], int(key[1]), int(key[2]))))
    write_files({table: text.getvalue()})


def source_of(name: str, build: Path) -> str:
    """Where a model is: a folder, a file, or the name of one that is part of LensJAX."""
    return f"{SCHEME}{name}" if name in zoo() else str(model(name, build))


def zoo() -> tuple[str, ...]:
    """Names of the bundled models."""
    return tuple(name.removeprefix(SCHEME) for name in bundled())


def main(
    tasks: tuple[str, ...] = ("spelling",),
    models: tuple[str, ...] = (),
    largest: int = 800,
    seeds: tuple[int, ...] = (0,),
    sizes: tuple[int, ...] = (),
    choices: bool = True,
    build: Path = HERE / "build",
    results: Path = HERE / "results",
) -> None:
    """Compare the pretrained models with torch, then fine-tune all models.

    Args:
        tasks: See `lensjax data fetch`.
        models: The two pretrained ones, the untrained one, and those that are part of LensJAX; all by default.
        largest: Largest number of training examples, 200 times a power of 2.
        seeds: Of the choice and order of examples.
        sizes: Numbers of training examples, in place of all up to the largest.
        choices: Whether tests of tasks with choices score all of them, for choice accuracy.
        build: Where models, data and runs are kept.
        results: Where parity.json and TASK.csv are written.
    """
    make_folder(results)
    compared = results / "parity.json"
    if not compared.exists():
        write_files({compared: json.dumps(parity(build), indent=2) + "\n"})
    for task in tasks:
        if not (build / f"{task}.jsonl").exists():
            write_rows(task, build)
        for name in models or (*zoo(), SMOLLM2, GEMMA3, UNTRAINED):
            measure(name, task, list(sizes) or rungs(largest), seeds, build, results, choices=choices)


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except InputError as error:
        raise SystemExit(str(error)) from error
    except Stopped as stopped:
        raise SystemExit("Stopped; the same command goes on.") from stopped
