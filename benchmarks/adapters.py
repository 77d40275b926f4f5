"""What int8 and NF4 kernels under LoRA cost in loss on a real task, and save in memory.

    lensjax data fetch spelling --out DATA
    python benchmarks/adapters.py --rows DATA/spelling.jsonl [--quick] [--out FILE]
    python benchmarks/adapters.py --rows DATA/topics.jsonl --task topics --models MODEL.gguf --examples 200 --epochs 2

Models learn a task of `lensjax data fetch` in bfloat16, with adapters of rank 8 on every linear map of their blocks:
over kernels in bfloat16, in int8, and in NF4, with the same examples and order, and with several random starts of the
adapters, which alone move losses by hundredths of a nat. Losses are of one test set; memory is that of all parameters
that stay frozen. Runs that FILE has are not made again.
"""

import itertools
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine
import numpy as np
import tyro

from lensjax.core.pytrees import device_bytes
from lensjax.models import load
from lensjax.tasks.ready_made import TASKS
from lensjax.tasks.spec import read_spec
from lensjax.train.ladder import measure_curve
from lensjax.train.runs import model_name
from lensjax.train.spec import FinetuneSpec

MODELS = ("pocket:gpt2-0.2m", "pocket:llama-0.3m", "pocket:opt-0.5m")
BASES = ("bfloat16", "nf4", "int8")
MOST = 0.02  # nats per token that a mean loss may be above that over bfloat16
TRAINING = {"method": "lora", "dtype": "bfloat16", "learning_rate": 3e-3, "patience": 8, "packing": True}
QUICK = {"examples": 64, "epochs": 1, "starts": (0, 1), "test": 16, "validation": 16}


def benchmark(
    rows: Path,
    task: str = "spelling",
    models: tuple[str, ...] = MODELS,
    bases: tuple[str, ...] = BASES,
    starts: tuple[int, ...] = (0, 1, 2),
    examples: int = 1600,
    epochs: int = 8,
    learning_rate: float = 3e-3,
    validation: int = 200,
    test: int = 1000,
    quick: bool = False,
    out: Path = Path("benchmarks/results/adapters.json"),
) -> None:
    """Measure, print every result, and write JSON after each.

    Args:
        rows: Rows of the task, as `lensjax data fetch` writes them.
        task: The task's name.
        models: Bundled models, folders, or GGUF files.
        bases: How kernels are held.
        starts: Seeds of the adapters' starts.
        examples: Number of training examples.
        epochs: Passes over them.
        learning_rate: The peak.
        validation: Number of examples.
        test: Number of examples.
        quick: Only try the script; the numbers mean nothing.
        out: File to write.
    """
    chosen = {"examples": examples, "epochs": epochs, "starts": starts, "test": test, "validation": validation}
    chosen |= QUICK if quick else {}
    models = models[:1] if quick else models
    about = {name: value for name, value in chosen.items() if name != "starts"}
    known = json.loads(out.read_text(encoding="utf-8"))["measured"] if out.exists() else []
    for model, start, base in itertools.product(models, chosen["starts"], bases):
        key = {"task": task, "model": model_name(model), "kernels": base, "start": start} | about
        key |= {"learning_rate": learning_rate}
        if any(one.items() >= key.items() for one in known):
            continue
        held = None if base == "bfloat16" else base
        result = run(rows, task, model, key, held)
        frozen = device_bytes(load(model, dtype="bfloat16", quantise=held).params)  # type: ignore[arg-type]
        one = {"loss": result.loss, "standard_error": result.standard_error, "steps": result.steps, "bytes": frozen}
        known.append(key | one | {"parameters": result.size, "note": result.note})
        print(known[-1], flush=True)
        write(known, quick, out)


def run(rows: Path, task: str, model: str, key: dict[str, Any], held: str | None) -> Any:
    """The result of a run."""
    ready = TASKS[task]
    training = TRAINING | {"epochs": key["epochs"], "learning_rate": key["learning_rate"], "lora_seed": key["start"]}
    content = {
        "source": {"files": str(rows.absolute())},
        "prompt": ready.prompt,
        "target": ready.target,
        "max_prompt_tokens": ready.max_prompt_tokens,
        "max_target_tokens": 2 * ready.max_target_tokens,  # of tokenizers that give nearly every phoneme its own
        "validation": key["validation"],
        "test": key["test"],
        "training": training | ({} if held is None else {"quantise": held}),
    }
    with tempfile.TemporaryDirectory() as made:
        (Path(made) / "task.yaml").write_text(json.dumps(content), encoding="utf-8")
        spec = read_spec(Path(made) / "task.yaml", FinetuneSpec)
        (result,) = measure_curve(spec, model, Path(made) / "out", [key["examples"]])
    return result


def write(measured: Sequence[dict[str, Any]], quick: bool, out: Path) -> None:
    """Compare what is measured so far with bfloat16, and write it."""
    compared = compare(measured)
    targets = [
        {
            "what": f"{one['kernels']}, {one['model']} on {one['task']}: mean loss above that over bfloat16",
            "at_most": MOST,
            "measured": one["above_bfloat16"],
            "met": one["above_bfloat16"] <= MOST,
        }
        for one in compared
        if one["kernels"] != "bfloat16"
    ]
    settings = {"training": TRAINING, "quick": quick}
    content = {**machine.describe("jax", "flax", "lensjax"), "settings": settings, "measured": measured}
    content |= {"compared": compared, "targets": targets}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def compare(measured: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over starts by task, model and kernels, and how far they are above that over bfloat16.

    The standard error of a difference is that over starts, each of which is shared by two runs.
    """
    found: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = {}
    own = ("kernels", "start", "loss", "standard_error", "steps", "bytes", "note")
    for one in measured:
        key = tuple(value for name, value in one.items() if name not in own)
        found.setdefault(key, {}).setdefault(one["kernels"], []).append(one)
    compared = []
    for bases in found.values():
        by = {base: {one["start"]: one["loss"] for one in of} for base, of in bases.items()}
        shared = sorted(set.intersection(*map(set, by.values())))
        losses = {base: np.array([of[start] for start in shared]) for base, of in by.items()}
        if "bfloat16" not in losses or not shared:
            continue
        for base, of in losses.items():
            one, usual = bases[base][0], losses["bfloat16"]
            compared.append(
                {name: one[name] for name in ("task", "model", "parameters", "examples", "kernels", "bytes")}
                | {"starts": len(of), "mean_loss": float(of.mean()), "spread": float(np.ptp(of))}
                | {"above_bfloat16": float((of - usual).mean())}
            )
            if len(of) > 1:
                compared[-1]["error"] = float((of - usual).std(ddof=1) / math.sqrt(len(of)))
    return compared


if __name__ == "__main__":
    tyro.cli(benchmark)
