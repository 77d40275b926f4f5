"""What steps of training take on pods at least, beside what is published; no TPU or GPU is needed.

    pip install 'jax[tpu]'
    python benchmarks/pods.py --out benchmarks/results/pods.json [--case 0 1] [--forecast]
    python benchmarks/pods.py --scaling benchmarks/results/pods_scaling.json --out benchmarks/results/pods.json

Cases are configurations whose model FLOPs utilisation (MFU) MaxText published, and meshes that `lensjax models mesh`
finds for other models. Programs are compiled for TPUs. For GPUs, a program compiled for as many TPU v5p chips, which
have room for it, is counted with the facts about the GPUs. Rows that are there already stay, so that an interrupted run
goes on; `--case` measures anew. With `--forecast`, rows that are not there yet are what the adviser expects before it
compiles (their `basis` is "forecast"), which later runs replace.

`--scaling` forecasts tokens per second and chip from 8 to 512 chips, with as many examples as chips ("weak") and with
256 examples on all together ("strong"), and draws them with the compiled rows of `--out`.

MaxText trains with a kernel of its own for attention. Published configurations are compiled with JAX's older Pallas
kernel ("flash") in its place, whose operations are added: those of the causal half, forwards as often as a
backward pass needs them, and 2.5 times as many backwards.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from cases import parser_of, results_of, run_cases, use_compiler
from figures import panels
from jax.sharding import Mesh, PartitionSpec
from machine import describe
from parts import rounded
from transformers import Gemma3TextConfig, LlamaConfig, Qwen3Config, T5Config

from lensjax.core.devices import topology_devices
from lensjax.core.errors import InputError
from lensjax.core.roofline.chips import CHIPS
from lensjax.core.roofline.counters import count_program
from lensjax.core.roofline.estimate import Layout, StepEstimate, estimate_step
from lensjax.core.topologies import Topology, find_topology
from lensjax.models import layers
from lensjax.models.sharding import make_mesh
from lensjax.train.meshes import Choice, Forecast, Outlook, Workplace, outlooks
from lensjax.train.pods import advise, kept_program
from lensjax.train.spec import TrainingSpec

LLAMA_7B = LlamaConfig(vocab_size=32000, max_position_embeddings=4096, intermediate_size=11008)
LLAMA_70B = LlamaConfig(
    vocab_size=32000,
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    max_position_embeddings=4096,
)
LLAMA_8B = LlamaConfig(
    vocab_size=128256, intermediate_size=14336, num_key_value_heads=8, max_position_embeddings=131072, rope_theta=5e5
)
QWEN3_8B = Qwen3Config(
    vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
    num_key_value_heads=8, head_dim=128,
)  # fmt: skip
GEMMA3_27B = Gemma3TextConfig(
    vocab_size=262208, hidden_size=5376, intermediate_size=21504, num_hidden_layers=62, num_attention_heads=32,
    num_key_value_heads=16, head_dim=128, query_pre_attn_scalar=168, sliding_window=1024,
)  # fmt: skip
T5_11B = T5Config(d_model=1024, d_kv=128, d_ff=65536, num_layers=24, num_heads=128)
TINY = LlamaConfig(vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=2)


@dataclass(frozen=True)
class Published:
    """A configuration of which an MFU is published.

    Attributes:
      name, config: Of the model.
      topology: What the program is compiled for.
      chip: Whose facts are used.
      each: Examples of a chip.
      length: Tokens of an example.
      remat: What is nearest to what was used.
      mfu: Published, attention counted in full.
      source: Where it is published.
    """

    name: str
    config: Any
    topology: str
    chip: str
    each: int
    length: int
    remat: Any
    mfu: float
    source: str

    @property
    def title(self) -> str:
        return f"{self.name}, {self.chip}, published"


@dataclass(frozen=True)
class Advised:
    """A model and a pod whose best mesh is looked for."""

    name: str
    config: Any
    topology: str
    each: int
    lengths: tuple[int, ...]

    @property
    def title(self) -> str:
        return f"{self.name}, {self.topology}, {self.each} × {' + '.join(map(str, self.lengths))} tokens a chip"


CASES: list[Published | Advised] = [
    Published("Llama 2 7B", LLAMA_7B, "v5p:2x2x2", "h100", 4, 4096, "cheap", 492 / 989,
              "AI-Hypercomputer/maxtext, MaxText/configs/a3/llama_2_7b: README.md and 1vm.sh"),
    Published("Llama 2 70B", LLAMA_70B, "v5p:4x8x8", "v5p", 4, 4096, "full", 0.654,
              "AI-Hypercomputer/maxtext, README.md and MaxText/configs/v5p/llama2_70b.sh"),
    Published("Llama 3.1 8B", LLAMA_8B, "v6e:16x16", "v6e", 4, 8192, "full", 417.397 / 918,
              "AI-Hypercomputer/tpu-recipes, training/trillium/Llama3.1-8B-MaxText/v6e-256/README.md"),
    *(Advised(name, config, topology, 1, lengths)
      for name, config, lengths in (("Llama 2 7B", LLAMA_7B, (2048,)), ("Llama 2 70B", LLAMA_70B, (2048,)),
                                    ("Qwen 3 8B", QWEN3_8B, (2048,)), ("Gemma 3 27B", GEMMA3_27B, (2048,)),
                                    ("T5 11B", T5_11B, (512, 128)))
      for topology in ("v5e:16x16", "v5p:4x4x4", "v6e:16x16", "v5p:8x8x8")),
]  # fmt: skip
SHAPES = {
    "v5e": ("4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    "v6e": ("4x4", "4x8", "8x8", "8x16", "16x16"),
}
QUICK_SHAPES = {"v5e": ("2x2", "2x4")}
QUICK: list[Published | Advised] = [
    Published("tiny", TINY, "v5e:2x2", "v5e", 1, 256, "full", 0.01, "nowhere"),
    Advised("tiny", TINY, "v5e:2x2", 1, (256,)),
]


def kernel_attention(mesh: Mesh) -> Any:
    """JAX's Pallas kernel as `jax.nn.dot_product_attention` is called by models."""
    from jax.experimental.pallas.ops.tpu.flash_attention import flash_attention

    spec = PartitionSpec(("data", "fsdp"), None, "tensor", None)

    def attend(q: Any, k: Any, v: Any, bias: Any, mask: Any, *, scale: float, is_causal: bool, **_: Any) -> Any:
        if bias is not None or mask is not None:
            raise NotImplementedError("only causal attention without padding is compiled")

        def local(q: Any, k: Any, v: Any) -> Any:
            k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
            q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
            return jnp.swapaxes(flash_attention(q, k, v, causal=is_causal, sm_scale=scale), 1, 2)

        return jax.shard_map(local, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)(q, k, v)

    return attend


def published(case: Published) -> dict[str, Any]:
    """The estimate of a configuration beside its published MFU."""
    devices, chip = topology_devices(case.topology), CHIPS[case.chip]
    chips, pod = len(devices), Topology(case.chip, chip, devices, case.topology)
    training = TrainingSpec(batch_size=case.each * chips, remat=case.remat, attention="xla")
    work = Workplace(case.config, pod, training, (case.length,), fixed=True)
    model_flops, masked = work.model_flops
    mesh = make_mesh(None, devices)
    start = time.process_time()
    with mock.patch.object(layers.jax.nn, "dot_product_attention", kernel_attention(mesh)):
        memory, text = kept_program(work.lower(Choice(1, chips, 1, 1, case.remat)), devices)
    counts = count_program(text, dict(mesh.shape))
    layout = Layout.of(list(mesh.devices.flat), chip)
    # `masked` is the half of the six products of attention, two of them forwards, that causality masks; what it leaves
    # is as much, and a forward pass a third of that. It runs twice, as backward passes keep no scores.
    kernels = (2 + 2.5) / 3 * masked / chips
    found = estimate_step(counts, chip, layout, counts.flops + kernels)
    mfu = found.utilisation(model_flops / chips, chip)
    return {
        "chips": chips,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(work.model(None, case.remat).params)),
        "cpu_seconds": round(time.process_time() - start, 1),
        "memory_gb": memory / 1e9,
        **described(found),
        "tokens_per_second_per_chip": work.tokens / chips / found.seconds,
        "mfu": mfu,
        "mfu_causal": found.utilisation((model_flops - masked) / chips, chip),
        "published_mfu": case.mfu,
        "ratio": mfu / case.mfu,
        "source": case.source,
    }


def described(found: StepEstimate) -> dict[str, Any]:
    """The bounds of a step."""
    return {
        "compute_s": found.compute,
        "memory_s": found.memory,
        "core_s": found.core,
        "networks_s": dict(found.networks),
        "exposed_s": found.exposed,
        "step_s": found.seconds,
        "serial_s": found.serial,
        "binding": found.binding,
    }


def workplace(case: Advised) -> Workplace:
    """The step of a case, with one example on each chip by default."""
    pod = find_topology(case.topology)
    return Workplace(case.config, pod, TrainingSpec(batch_size=case.each * len(pod.devices)), case.lengths)


def advised(case: Advised) -> dict[str, Any]:
    """The best mesh of a pod, compiled, or why there is none."""
    start, work = time.process_time(), workplace(case)
    try:
        advice = advise(work, compiled=1)
    except InputError as error:
        return {"basis": "compiled", "chips": len(work.devices), "problem": str(error)}
    best = advice.best
    assert best.bounds is not None
    assert best.memory is not None
    assert best.forecast_memory is not None
    return {
        "basis": "compiled",
        "chips": len(work.devices),
        "parameters": advice.parameters,
        "cpu_seconds": round(time.process_time() - start, 1),
        "mesh": best.mesh,
        "accumulation": best.accumulation,
        "remat": best.remat,
        "memory_gb": best.memory / 1e9,
        "step_s": best.bounds.seconds,
        "tokens_per_second_per_chip": best.bounds.tokens_per_second,
        "mfu": best.bounds.utilisation,
        "mfu_causal": best.bounds.utilisation_causal,
        "binding": best.bounds.binding,
        "forecast_memory_gb": best.forecast_memory / 1e9,
        "forecast_step_s": best.forecast_seconds,
    }


def expected(case: Advised) -> dict[str, Any]:
    """The best mesh of a pod as it is expected before anything is compiled, or why there is none."""
    start, work = time.process_time(), workplace(case)
    forecast = Forecast(work)
    try:
        best = outlooks(forecast)[0]
    except InputError as error:
        return {"basis": "forecast", "chips": len(work.devices), "problem": str(error)}
    flops, masked = work.model_flops
    at_peak = best.seconds * work.chip.peak * len(work.devices)
    return {
        "basis": "forecast",
        "chips": len(work.devices),
        "parameters": forecast.parameters,
        "cpu_seconds": round(time.process_time() - start, 1),
        **outlined(best, work.tokens / len(work.devices)),
        "mfu": flops / at_peak,
        "mfu_causal": (flops - masked) / at_peak,
    }


def outlined(best: Outlook, tokens: float) -> dict[str, Any]:
    """What is expected of a choice, with so many tokens on each chip."""
    return {
        "mesh": best.choice.mesh,
        "accumulation": best.choice.accumulation,
        "remat": best.choice.remat,
        "memory_gb": best.memory / 1e9,
        "step_s": best.seconds,
        "tokens_per_second_per_chip": tokens / best.seconds,
        "binding": "links" if best.links >= best.seconds else "compute",
    }


def scaling(cases: Sequence[Advised], shapes: Mapping[str, Sequence[str]], together: int) -> dict[str, Any]:
    """Forecasts for each model and kind of chip, of growing numbers of chips."""
    found: dict[str, Any] = {}
    for case in {case.name: case for case in cases}.values():
        forecast = Forecast(workplace(case))
        for kind, each in shapes.items():
            for shape in each:
                pod = find_topology(f"{kind}:{shape}")
                chips = len(pod.devices)
                for way, batch in (("weak", chips), ("strong", together)):
                    row: dict[str, Any] = {"chips": chips, "topology": pod.name, "examples": batch}
                    try:
                        best = outlooks(forecast.on(pod, batch))[0]
                        row |= outlined(best, batch * sum(case.lengths) / chips)
                    except InputError as error:
                        row["problem"] = str(error)
                    found.setdefault(case.name, {}).setdefault(kind, {}).setdefault(way, []).append(row)
    return found


def draw(found: Mapping[str, Any], compiled: Mapping[str, Any], file: Path) -> None:
    """Tokens per second and chip against chips: lines are forecasts, crosses compiled programs."""
    colours = {kind: f"C{number}" for number, kind in enumerate(SHAPES)}
    with panels(len(found), (2.6 * len(found), 3.2), file, "tokens/s a chip", shared=False) as axes:
        for axis, (name, kinds) in zip(axes, found.items(), strict=True):
            for kind, ways in kinds.items():
                for way, style in (("weak", "-"), ("strong", "--")):
                    rows = [row for row in ways[way] if "problem" not in row]
                    chips, rates = ([row[key] for row in rows] for key in ("chips", "tokens_per_second_per_chip"))
                    axis.plot(chips, rates, style, color=colours[kind], label=f"{kind}, {way}", linewidth=1.2)
            for title, row in compiled.items():
                if title.startswith(f"{name}, ") and row.get("basis") == "compiled" and "problem" not in row:
                    colour = colours[title.split(", ")[1].partition(":")[0]]
                    axis.plot(row["chips"], row["tokens_per_second_per_chip"], "x", color=colour)
            axis.set(title=name, xscale="log", xlabel="chips", ylim=(0, None))
            axis.set_xticks([8, 32, 128, 512], labels=["8", "32", "128", "512"])
        axes[min(1, len(found) - 1)].legend(fontsize=6, frameon=False, loc="lower left")


def measured(case: Published | Advised, *, forecast: bool) -> dict[str, Any]:
    """The row of a case."""
    if isinstance(case, Published):
        return published(case)
    return expected(case) if forecast else advised(case)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--forecast", action="store_true", help="forecast what is not there yet, and compile nothing")
    parser.add_argument("--scaling", type=Path, help="write forecasts for growing numbers of chips to this JSON file")
    arguments = parser.parse_args()
    cases, packages = QUICK if arguments.quick else CASES, ("jax", "jaxlib", "libtpu", "flax")
    if arguments.scaling is None:
        run_cases(
            arguments,
            cases,
            partial(measured, forecast=arguments.forecast),
            packages,
            missing=lambda row: not row or (row.get("basis") == "forecast" and not arguments.forecast),
        )
        return
    use_compiler(cases[0].topology)
    few = [case for case in cases if isinstance(case, Advised)]
    described = describe(*packages)
    found = scaling(few, QUICK_SHAPES, 4) if arguments.quick else scaling(few, SHAPES, 256)
    whole = {"basis": "forecast", "models": found} | described
    arguments.scaling.write_text(json.dumps(rounded(whole), indent=1) + "\n", encoding="utf-8")
    draw(found, results_of(arguments.out), arguments.scaling.with_suffix(".svg"))


if __name__ == "__main__":
    main()
