"""How right `lensjax plan` is: its FLOPs beside XLA's, its memory beside real arrays', its hours beside a real study's.

    python benchmarks/plan.py [--parts flops memory hours] [--quick] [--out FILE]

Every part runs in a fresh process on the CPU. Only the parts named are measured anew; the others stay in the file, each
with the machine and the versions that it was measured with.
"""

import contextlib
import functools
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import tyro
import yaml
from parts import Json, Promise, run_parts, use_cpu
from spelling import numbers, save_tokenizer
from transformers import GPT2Config, LlamaConfig, T5Config

import lensjax.models
from lensjax.models.lora import add_lora, split_trainable
from lensjax.study.plan import make_plan
from lensjax.study.runner import run_study
from lensjax.study.spec import StudySpec, read_study
from lensjax.train.estimate import AbstractCandidate
from lensjax.train.prepare import read_examples
from lensjax.train.step import make_programs

Part = Literal["flops", "memory", "hours"]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "transformers", "lensjax")
COLUMNS = {"planned s": "planned_s", "taken s": "median_s", "planned / taken": "ratio"}
IDS = {"vocab_size": 4096, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "decoder_start_token_id": 0}

NOTES = {
    "flops": "of a training step and of a batch of evaluation; XLA's are those of `cost_analysis` of the compiled "
    "program, elementwise work and AdamW included, and as it counts the body of a scan once, they are those of models "
    "with 1 and 2 layers that are not scanned, extended to `layers` by their difference",
    "memory": "bytes of a training step, arguments + outputs + temporaries - aliased: planned without weights, and of "
    "the step compiled for real arrays",
    "hours": "seconds: planned, and the sum over the journal of the study that ran right afterwards, of two models "
    "with `steps` steps in every run above 0 examples; each of the `turns` has a new folder; medians are over them",
}


@dataclass(frozen=True)
class Plan:
    """How much is measured, of models of which size."""

    families: tuple[str, ...]  # of `flops` and `memory`
    width: int
    layers: int
    shape: tuple[int, int]  # rows and tokens of a batch whose operations are counted
    small: int  # width of the models of `memory` and `hours`
    steps: int
    turns: int


FULL = Plan(families=("gpt2", "llama", "t5"), width=768, layers=12, shape=(8, 128), small=192, steps=150, turns=3)
QUICK = Plan(families=("gpt2",), width=32, layers=3, shape=(4, 32), small=32, steps=4, turns=1)


def benchmark(
    parts: tuple[Part, ...] = ("flops", "memory", "hours"),
    quick: bool = False,
    out: Path = Path("benchmarks/results/plan.json"),
) -> None:
    """Measure, print a table, and write JSON.

    Args:
        parts: What is measured.
        quick: Only try the script on tiny models; one process does all parts, and the numbers mean nothing.
        out: File to write.
    """
    run_parts(
        "plan",
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


def flops(plan: Plan) -> Json:
    """Operations of steps and evaluations, ours and XLA's."""
    use_cpu()
    found: Json = {"layers": plan.layers, "batch": list(plan.shape)}
    for family in plan.families:
        make = FAMILIES[family]
        with planned_for(make(plan.width, plan.layers), plan) as candidate:
            (planned,) = {candidate.step_flops(shape) for shape in candidate.lengths}
            evaluation = candidate.evaluation_flops
        with unrolled():
            (step_1, losses_1), (step_2, losses_2) = (xla_flops(make(plan.width, n), plan) for n in (1, 2))
        for what, ours, first, second in (
            ("step", planned, step_1, step_2),
            ("evaluation", evaluation, losses_1, losses_2),
        ):
            found[f"{family}, {what}"] = compared_with(ours, first + (plan.layers - 1) * (second - first))
    return found


def memory(plan: Plan) -> Json:
    """Bytes of a training step, planned and of real arrays."""
    use_cpu()
    found: Json = {"batch": list(plan.shape)}
    cases: Mapping[tuple[str, str], Mapping[str, Any]] = {
        ("gpt2", "full"): {},
        ("llama", "rematerialised, accumulated"): {"remat": "full", "accumulation": 2},
        ("t5", "adapters"): {"method": "lora"},
    }
    for (family, name), settings in cases.items():
        if family not in plan.families:
            continue
        with planned_for(FAMILIES[family](plan.small, 2), plan, **settings) as candidate:
            found[f"{family}, {name}"] = compared_with(candidate.memory.step, real_bytes(candidate))
    return found


def hours(plan: Plan) -> Json:
    """Seconds of a study, planned and taken."""
    use_cpu()
    training = {"max_steps": plan.steps, "epochs": 1000, "patience": 1000, "learning_rate": 1e-4, "batch_size": 16}
    found: Json = {"steps": plan.steps, "rungs": [0, 200, 400], "turns": []}
    configs = {name: FAMILIES[name](plan.small, 4) for name in ("gpt2", "llama")}
    for _ in range(plan.turns):
        with study(configs, {"training": training, "budget": 400}, weights=True) as spec:
            planned = make_plan(spec).budgets[-1].seconds
            assert planned is not None
            with tempfile.TemporaryDirectory() as out:
                journal = run_study(spec, Path(out) / "study")
            assert all(entry.status == "ok" for entry in journal.entries if entry.cell is not None)
            taken = sum(entry.seconds for entry in journal.entries if entry.cell is not None)
            found["turns"].append(compared_with(planned, taken))
    planned_s, taken_s = (statistics.median(turn[name] for turn in found["turns"]) for name in ("planned", "measured"))
    ratio = statistics.median(turn["ratio"] for turn in found["turns"])
    return found | {"study": {"planned_s": planned_s, "median_s": taken_s, "ratio": ratio}}


def compared_with(planned: float, measured: float) -> Json:
    return {"planned": float(planned), "measured": float(measured), "ratio": planned / measured}


@contextlib.contextmanager
def planned_for(config: Any, plan: Plan, **training: Any) -> Iterator[AbstractCandidate]:
    """A candidate without weights whose examples all take a row of the plan's shape."""
    rows, tokens = plan.shape
    content = {
        "training": {"batch_size": rows, "evaluation_batch_size": rows, **training},
        "budget": 400,
    }
    half = {"max_prompt_tokens": tokens // 2, "max_target_tokens": tokens - tokens // 2}
    with study({"model": config, "other": config}, content, half, long=tokens) as spec:
        finetuning = spec.finetune_spec(spec.candidates[0])
        mesh = lensjax.models.make_mesh("fsdp=1", jax.devices()[:1])
        examples = read_examples(finetuning, [200], [0])
        yield AbstractCandidate(finetuning, spec.candidates[0].source, examples, mesh)


@contextlib.contextmanager
def study(
    configs: Mapping[str, Any],
    content: Mapping[str, Any],
    limits: Mapping[str, int] | None = None,
    *,
    long: int = 1,
    weights: bool = False,
) -> Iterator[StudySpec]:
    """A study of models on spelling out numbers, `long` times each, in a folder that goes away."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        rows = ({name: text * long for name, text in row.items()} for row in numbers(600))
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        for name, config in configs.items():
            if weights:
                lensjax.models.from_config(config).save(folder / name)
            else:
                config.save_pretrained(folder / name)
            save_tokenizer(folder / name)
        task = {"source": {"files": "rows.jsonl"}, "prompt": "{number}:", "target": " {words}", **(limits or {})}
        whole = {"candidates": list(configs), "task": task | {"validation": 32, "test": 64}, **content}
        (folder / "study.yaml").write_text(yaml.safe_dump({"evidence": {"ntk": False}, **whole}), encoding="utf-8")
        yield read_study(folder / "study.yaml")


def xla_flops(config: Any, plan: Plan) -> tuple[float, float]:
    """Operations that XLA counts in a compiled step and in a compiled evaluation."""
    with planned_for(config, plan, remat="none") as candidate:  # what is recomputed is no work of the model
        step = candidate.compiled_step(candidate.lengths[1]).cost_analysis()["flops"]
        return float(step), float(candidate.compiled_losses.cost_analysis()["flops"])


@contextlib.contextmanager
def unrolled() -> Iterator[None]:
    """Within it, scans are unrolled, whose bodies XLA would count once."""
    scan = jax.lax.scan
    jax.lax.scan = functools.partial(scan, unroll=True)
    try:
        yield
    finally:
        jax.lax.scan = scan


def real_bytes(candidate: AbstractCandidate) -> int:
    """What the compiler says of a step whose arguments are real."""
    training, options = candidate.spec.training, candidate.abstract.options
    model = lensjax.models.from_config(
        candidate.abstract.config,
        dtype=options.dtype,
        param_dtype=options.param_dtype,
        mesh=candidate.mesh,
        remat=options.remat,
    )
    if training.method == "lora":
        model = add_lora(model, training.lora_rank, training.lora_alpha)
    programs: Any = make_programs(model, training, candidate.mesh)
    trained, frozen = split_trainable(model.params)
    state = programs.start(trained)
    shapes = candidate.placement.shapes(candidate.lengths[1])
    zeros = {name: jax.numpy.zeros(leaf.shape, leaf.dtype, device=leaf.sharding) for name, leaf in shapes.items()}
    found = programs.step.lower(state, frozen, zeros, 0.0).compile().memory_analysis()
    kept = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return int(kept + found.temp_size_in_bytes)


def gpt2(width: int, layers: int) -> Any:
    return GPT2Config(n_embd=width, n_layer=layers, n_head=heads(width), n_positions=512, **IDS)


def llama(width: int, layers: int) -> Any:
    shared = {"num_attention_heads": heads(width), "num_key_value_heads": heads(width)}
    return LlamaConfig(hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers, **shared, **IDS)


def t5(width: int, layers: int) -> Any:
    each = width // heads(width)
    return T5Config(d_model=width, d_ff=4 * width, d_kv=each, num_layers=layers, num_heads=heads(width), **IDS)


def heads(width: int) -> int:
    """Of 64 numbers each, where the model is wide enough."""
    return max(width // 64, 2)


def targets(parts: Mapping[str, Json]) -> list[Promise]:
    """What we promised ourselves, beside what was measured."""
    limits = {"flops": 0.02, "memory": 0.1, "hours": 0.25}
    promised: list[Promise] = []
    for part, limit in limits.items():
        ratios = [case["ratio"] for case in parts.get(part, {}).values() if isinstance(case, dict) and "ratio" in case]
        if ratios:
            promised.append((f"{part}: planned / measured, from 1", limit, max(abs(ratio - 1) for ratio in ratios)))
    return promised


FAMILIES: Mapping[str, Callable[[int, int], Any]] = {"gpt2": gpt2, "llama": llama, "t5": t5}
MEASURES: Mapping[Part, Callable[[Plan], Json | None]] = {"flops": flops, "memory": memory, "hours": hours}


if __name__ == "__main__":
    tyro.cli(benchmark)
