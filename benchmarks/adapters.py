"""What int8 and NF4 kernels under LoRA cost in loss on a real task, and save in memory.

    lensjax data fetch spelling --out DATA
    python benchmarks/adapters.py --rows DATA/spelling.jsonl [--quick] [--out FILE]

Models that are part of LensJAX learn how English words sound, in bfloat16, with adapters of rank 8 on every linear map
of their blocks: over kernels in bfloat16, in int8, and in NF4, with the same examples, order and first adapters. Losses
are of one test set; memory is that of all parameters that stay frozen.
"""

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import machine
import tyro

from lensjax.core.pytrees import device_bytes
from lensjax.models import load
from lensjax.tasks.spec import read_spec
from lensjax.train.ladder import measure_curve
from lensjax.train.spec import FinetuneSpec

MODELS = ("pocket:gpt2-0.2m", "pocket:llama-0.3m", "pocket:opt-0.5m")
BASES = (None, "int8", "nf4")
MOST = 0.02  # nats per token that a loss may be above that over bfloat16
SETTINGS = {"prompt": "{letters} :", "target": " {phonemes}", "max_prompt_tokens": 32, "max_target_tokens": 40}
TRAINING = {"method": "lora", "dtype": "bfloat16", "learning_rate": 3e-3, "epochs": 8, "patience": 3}


def benchmark(rows: Path, quick: bool = False, out: Path = Path("benchmarks/results/adapters.json")) -> None:
    """Measure, print every result, and write JSON after each.

    Args:
        rows: Rows of the task, as `lensjax data fetch spelling` writes them.
        quick: Only try the script; the numbers mean nothing.
        out: File to write.
    """
    models, seeds, examples = (MODELS[:1], (0,), 64) if quick else (MODELS, (0, 1), 3200)
    limits = {"validation": 16, "test": 16} if quick else {"validation": 500, "test": 2000}
    found: dict[str, dict[str, Any]] = {}
    for model, base in itertools.product(models, BASES):
        training = TRAINING | {"quantise": base} | ({"epochs": 1} if quick else {})
        results = curve(
            {**SETTINGS, **limits, "source": {"files": str(rows.absolute())}, "training": training},
            model,
            examples,
            seeds,
        )
        frozen = load(model, dtype="bfloat16", quantise=base).params
        of = {"losses": [one.loss for one in results], "errors": [one.standard_error for one in results]}
        found.setdefault(model, {})[base or "bfloat16"] = of | {"bytes": device_bytes(frozen)}
        print(model, base, of, device_bytes(frozen), flush=True)
        write(found, {"examples": examples, "seeds": seeds, "training": TRAINING, "quick": quick}, out)


def write(found: dict[str, dict[str, Any]], settings: dict[str, Any], out: Path) -> None:
    """Compare what is measured so far with bfloat16, and write it."""
    whole = {model: bases for model, bases in found.items() if len(bases) == len(BASES)}
    for bases in whole.values():
        for base in bases.values():
            pairs = zip(base["losses"], bases["bfloat16"]["losses"], strict=True)
            base["above_bfloat16"] = [loss - usual for loss, usual in pairs]
    targets = [
        {"what": f"{base}, {model}", "at_most": MOST, "measured": worst, "met": worst <= MOST}
        for model, bases in whole.items()
        for base in ("int8", "nf4")
        for worst in [max(bases[base]["above_bfloat16"])]
    ]
    content = {**machine.describe("jax", "flax", "lensjax"), "settings": settings, "models": whole, "targets": targets}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def curve(content: dict[str, Any], model: str, examples: int, seeds: tuple[int, ...]) -> list[Any]:
    """The results of a model on a number of examples."""
    with tempfile.TemporaryDirectory() as made:
        (Path(made) / "task.yaml").write_text(json.dumps(content), encoding="utf-8")
        spec = read_spec(Path(made) / "task.yaml", FinetuneSpec)
        return list(measure_curve(spec, model, Path(made) / "out", [examples], seeds=seeds))


if __name__ == "__main__":
    tyro.cli(benchmark)
