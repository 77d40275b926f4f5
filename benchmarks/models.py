"""How fast models compute, load and compile, beside torch doing the same, and what they reach of a GPU's peak.

    python benchmarks/models.py [--parts computing loading compiling gpu] [--quick] [--out FILE]

Every part runs in a fresh process, all but `gpu` on the CPU. Only the parts named are measured anew; the others stay
in the file, each with the machine and the versions that it was measured with. Contenders take turns, so that other
work on the machine slows all of them alike.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import torch
import transformers
import tyro
from parts import RATIO, Json, Promise, run_parts, summary, timed, use_cpu, utilisations, warm
from transformers import GPT2Config, LlamaConfig

import lensjax.models
from lensjax.core.devices import peak_flops
from lensjax.models.model import Model, abstract_model
from lensjax.models.options import make_options
from lensjax.train.step import masked_flops

Part = Literal["computing", "loading", "compiling", "gpu"]
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "transformers", "safetensors", "lensjax")

COLUMNS = {"median s": "median_s", "least s": "min_s", "ratio": "ratio_within_turns", "of peak": "utilisation"}
ATTENTION = ("eager", "sdpa")  # of transformers

NOTES = {
    "times": "wall seconds, warm: everything was called once before",
    "ratio": RATIO,
    "computing": "float32 on the CPU with as many threads as cores, from the same weights, without dropout; `forward` "
    "gives all logits, `gradient` the loss and the gradient of every parameter",
    "loading": "a folder saved by transformers in float32, in the page cache; `reading` is np.fromfile of the weights "
    "into fresh memory; from_pretrained maps the file and leaves values on disk until they are used",
    "compiling": "lowering and compiling loss and gradient of a shallow Llama and a deep one of the same widths; its "
    "ratio is that of deep over shallow",
    "gpu": "loss and gradient in bfloat16 from float32 parameters; model FLOPs are 6 × parameters in matrix products "
    "+ 12 × layers × width × time, per token (arXiv 2204.02311, appendix B), whatever causality saves; `causal` is the "
    "utilisation without the half of attention that causality masks, and fused attention leaves out",
}


@dataclass(frozen=True)
class Plan:
    """How much is measured, of models of which size."""

    gpt2: Mapping[str, Any]
    llama: Mapping[str, Any]
    shape: tuple[int, int]  # of a batch on the CPU
    widths: Mapping[str, Any]  # of the Llama that is compiled
    depths: tuple[int, int]
    gpu: Mapping[str, tuple[Any, int]]  # configuration and examples of 1,024 tokens
    repeats: int


SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
    "tie_word_embeddings": True,
}
SMALL = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FULL = Plan(
    gpt2={},
    llama=SMOLLM2,
    shape=(8, 128),
    widths=SMALL,
    depths=(4, 32),
    gpu={"GPT-2 small": (GPT2Config(), 32), "SmolLM2-135M": (LlamaConfig(**SMOLLM2), 32)},
    repeats=11,
)
QUICK = Plan(
    gpt2={"vocab_size": 512, "n_embd": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0},
    llama=SMALL | {"num_hidden_layers": 2},
    shape=(2, 16),
    widths=SMALL,
    depths=(1, 2),
    gpu={"Llama": (LlamaConfig(**SMALL, num_hidden_layers=2, head_dim=64), 1)},
    repeats=1,
)


def benchmark(
    parts: tuple[Part, ...] = ("computing", "loading", "compiling", "gpu"),
    quick: bool = False,
    out: Path = Path("benchmarks/results/models.json"),
) -> None:
    """Measure, print a table, and write JSON.

    Args:
        parts: What is measured: computing, loading and compiling on the CPU, and, where JAX has one, on a GPU.
        quick: Only try the script on tiny models; one process does all parts, and the times mean nothing.
        out: File to write.
    """
    run_parts(
        "models",
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


def computing(plan: Plan) -> Json:
    """Times of GPT-2's forward pass, and of its loss and gradient, ours and torch's."""
    use_cpu()
    config = GPT2Config(**plan.gpt2)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, plan.shape)
    peers = {name: transformers.GPT2LMHeadModel._from_config(config, attn_implementation=name) for name in ATTENTION}
    with tempfile.TemporaryDirectory() as folder:
        peers["eager"].save_pretrained(folder)
        model = lensjax.models.load(folder)
    peers["sdpa"].load_state_dict(peers["eager"].state_dict())
    apply, gradient, batch = jax.jit(model.apply), jax.jit(jax.value_and_grad(model.loss)), {"input_ids": ids}
    forward: dict[str, Callable[[], Any]] = {
        "lensjax": lambda: jax.block_until_ready(apply(model.params, batch)),
    }
    backward: dict[str, Callable[[], Any]] = {
        "lensjax": lambda: jax.block_until_ready(gradient(model.params, batch))[0],
    }
    for name, peer in peers.items():
        forward[f"torch, {name}"] = partial(torch_forward, peer.eval(), torch.from_numpy(ids))
        backward[f"torch, {name}"] = partial(torch_gradient, peer.eval(), torch.from_numpy(ids))
    losses = [float(call()) for call in backward.values()]
    assert np.allclose(losses, losses[0], rtol=1e-5), f"the contenders do not compute the same: {losses}"
    return {
        "repeats": plan.repeats,
        "model": "GPT-2 small" if not plan.gpt2 else "tiny GPT-2",
        "parameters": parameters(model.params),
        "batch": list(plan.shape),
        "threads": torch.get_num_threads(),
        "forward": warm(forward, plan.repeats),
        "gradient": warm(backward, plan.repeats),
    }


def torch_forward(model: Any, ids: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def torch_gradient(model: Any, ids: Any) -> Any:
    model.zero_grad(set_to_none=True)
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return loss.detach()


def loading(plan: Plan) -> Json:
    """Times of loading a model stored as ours are, and of one whose kernels are stored transposed."""
    use_cpu()
    configs = {"gpt2": GPT2Config(**plan.gpt2), "llama": LlamaConfig(**plan.llama)}
    return {"repeats": plan.repeats} | {name: load_times(config, plan.repeats) for name, config in configs.items()}


def load_times(config: Any, repeats: int) -> Json:
    made = transformers.AutoModelForCausalLM.from_config(config)
    kind = type(made)
    with tempfile.TemporaryDirectory() as folder:
        made.save_pretrained(folder)
        del made
        weights = Path(folder) / "model.safetensors"
        contenders: dict[str, Callable[[], Any]] = {
            "lensjax": lambda: jax.block_until_ready(lensjax.models.load(folder).params),
            "reading": lambda: np.fromfile(weights, np.uint8),
            "from_pretrained": lambda: kind.from_pretrained(folder, dtype=torch.float32),
        }
        return {"gigabytes": weights.stat().st_size / 1e9} | warm(contenders, repeats)


def compiling(plan: Plan) -> Json:
    """Times of compiling loss and gradient of a shallow and of a deep model."""
    batch = {"input_ids": np.zeros(plan.shape, int)}

    models = [
        abstract_model(LlamaConfig(**plan.widths, num_hidden_layers=depth), make_options()) for depth in plan.depths
    ]

    def compile_step(model: Model) -> Any:
        return jax.jit(jax.value_and_grad(model.loss)).lower(model.params, batch).compile()

    shallow, deep = (partial(compile_step, model) for model in models)
    return {
        "repeats": plan.repeats,
        "layers": list(plan.depths),
        "parameters": [parameters(model.params) for model in models],
        **warm({"shallow": shallow, "deep": deep}, plan.repeats),
    }


def gpu(plan: Plan) -> Json | None:
    """Times of loss and gradient on a GPU, and the share of its peak that they reach; None without a GPU."""
    if jax.default_backend() != "gpu":
        return None
    device = jax.devices()[0].device_kind
    peak = peak_flops(jax.devices()[0], "bfloat16")
    cases = {
        f"{name}, {attention}": gpu_case(config, examples, attention, peak, plan.repeats)
        for name, (config, examples) in plan.gpu.items()
        for attention in ("cudnn", "xla")
    }
    return {"repeats": plan.repeats, "device": device, "peak_flops": peak, **cases}


def gpu_case(config: Any, examples: int, attention: Any, peak: float | None, repeats: int, tokens: int = 1024) -> Json:
    model = lensjax.models.from_config(config, dtype="bfloat16", param_dtype="float32", attention=attention)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (examples, tokens))
    batch = jax.device_put({"input_ids": ids})
    step = jax.jit(jax.value_and_grad(model.loss)).lower(model.params, batch).compile()
    memory = step.memory_analysis()
    jax.block_until_ready(step(model.params, batch))
    times = [timed(lambda: jax.block_until_ready(step(model.params, batch)))[0] for _ in range(repeats)]
    flops = model_flops(model, tokens) * examples * tokens
    seconds = summary(times)
    return {
        "batch": [examples, tokens],
        **seconds,
        "tokens_per_second": examples * tokens / seconds["median_s"],
        "temporaries_gb": memory.temp_size_in_bytes / 1e9,
        "model_flops": float(flops),
        **utilisations(flops, flops - masked_flops(model, {"input_ids": ids}), seconds["median_s"], peak),
    }


def model_flops(model: Model, tokens: int) -> int:
    """FLOPs of loss and gradient per token of a sequence of that many; see `NOTES`."""
    config = model.config
    leaves = jax.tree_util.tree_flatten_with_path(model.params)[0]
    kernels = sum(leaf.size for path, leaf in leaves if path[-1].key == "kernel")
    head = config.vocab_size * config.hidden_size if config.tie_word_embeddings else 0
    return 6 * (kernels + head) + 12 * config.num_hidden_layers * config.hidden_size * tokens


def parameters(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def targets(parts: Mapping[str, Json]) -> list[Promise]:
    """What we promised ourselves, beside what was measured, in turns."""
    promised: list[Promise] = []
    if "computing" in parts:
        for what in ("forward", "gradient"):
            ratios_to_torch = [parts["computing"][what][f"torch, {name}"]["ratio_within_turns"] for name in ATTENTION]
            promised.append((f"{what} of GPT-2, over torch's faster one", 1.0, 1 / min(ratios_to_torch)))
    if "loading" in parts:
        for model in ("gpt2", "llama"):
            ratio = parts["loading"][model]["reading"]["ratio_within_turns"]
            promised.append((f"loading {model}, over reading its bytes", 1.5, 1 / ratio))
    if "compiling" in parts:
        shallow, deep = parts["compiling"]["layers"]
        what, ratio = f"compiling {deep} layers, over {shallow}", parts["compiling"]["deep"]["ratio_within_turns"]
        promised.append((what, 1.5, ratio))
    return promised


MEASURES: Mapping[Part, Callable[[Plan], Json | None]] = {
    "computing": computing,
    "loading": loading,
    "compiling": compiling,
    "gpu": gpu,
}


if __name__ == "__main__":
    tyro.cli(benchmark)
