"""Does training fit the chips of a TPU pod? Compiles for the pod's topology; no TPU is needed.

    pip install 'jax[tpu]'
    python benchmarks/tpu_compile.py --out benchmarks/results/tpu_compile.json

Cases are a forward and backward pass, or a whole step of fine-tuning: those, clipping and AdamW, with its two moments
of every parameter. Parameters are float32, matrix products bfloat16, every layer is rematerialised, attention is XLA's.
Memory is the compiler's own account.
"""

import math
import re
import time
from dataclasses import dataclass
from typing import Any

import jax
from cases import parser_of, run_cases
from transformers import LlamaConfig, MixtralConfig, T5Config

from lensjax.core.devices import CHIP_GB, topology_devices
from lensjax.models import model as base
from lensjax.models import sharding
from lensjax.models.model import abstract_model
from lensjax.models.options import make_options
from lensjax.tasks.batches import Lengths
from lensjax.train.placement import BatchPlacement
from lensjax.train.spec import TrainingSpec
from lensjax.train.step import make_programs, state_shapes

LLAMA_7B = LlamaConfig(vocab_size=32000, max_position_embeddings=4096, intermediate_size=11008)  # as Llama 2 7B
MIXTRAL = MixtralConfig(vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_key_value_heads=8)  # as 8x7B
T5_11B = T5Config(d_model=1024, d_kv=128, d_ff=65536, num_layers=24, num_heads=128)  # as T5 v1.0 11B

TINY = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
LLAMA_TINY = LlamaConfig(**TINY)
MIXTRAL_TINY = MixtralConfig(**TINY, num_attention_heads=4, num_key_value_heads=2)
PASS, TRAINING = "forward and backward", "training step"


@dataclass(frozen=True)
class Case:
    """What is compiled: one example per shard of the batch."""

    model: str
    config: Any
    topology: str
    mesh: str
    time: int  # tokens of an example
    what: str = PASS

    @property
    def title(self) -> str:
        what = "" if self.what == PASS else f" {self.what}"
        return f"{self.model}{what}, {self.topology}, {self.mesh}, {self.time} tokens"


CASES = [
    Case("Llama 7B", LLAMA_7B, "v5e:16x16", "fsdp=256", 2048),
    Case("Llama 7B", LLAMA_7B, "v5e:16x16", "fsdp=64,tensor=4", 2048),
    Case("T5 11B", T5_11B, "v5e:16x16", "fsdp=256", 512),
    Case("T5 11B", T5_11B, "v5e:16x16", "fsdp=64,tensor=4", 512),
    Case("Mixtral 8x7B", MIXTRAL, "v5e:16x16", "fsdp=32,tensor=8", 2048),
    Case("Llama 7B", LLAMA_7B, "v5e:16x16", "fsdp=256", 2048, TRAINING),
    Case("Llama 7B", LLAMA_7B, "v5p:8x8x8", "fsdp=512", 2048, TRAINING),
]
QUICK = [
    Case("tiny Llama", LLAMA_TINY, "v5e:2x2", "fsdp=2,tensor=2", 16),
    Case("tiny Mixtral", MIXTRAL_TINY, "v5e:2x2", "fsdp=2,tensor=2", 16),
    Case("tiny Llama", LLAMA_TINY, "v5e:2x2", "fsdp=4", 16, TRAINING),
]
BYTES = {"f32": 4, "bf16": 2, "s32": 4, "pred": 1, "u32": 4, "f16": 2}


def compile_case(case: Case) -> dict[str, Any]:
    """Compile for the pod; sizes are per chip, in GB of 10^9 bytes."""
    chips = topology_devices(case.topology)
    mesh = sharding.make_mesh(case.mesh, chips)
    model = abstract_model(case.config, make_options("bfloat16", "float32", remat="full", mesh=mesh))
    sizes = dict(mesh.shape)
    examples = sizes["data"] * sizes["fsdp"]
    lengths = (case.time, case.time // 4) if model.family.encoder_decoder else (case.time,)
    start = time.perf_counter()
    lowered = (lower_training if case.what == TRAINING else lower_pass)(model, examples, lengths)
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    gb = {
        "arguments_gb": memory.argument_size_in_bytes / 1e9,
        "outputs_gb": memory.output_size_in_bytes / 1e9,
        "temporaries_gb": memory.temp_size_in_bytes / 1e9,
        "aliased_gb": memory.alias_size_in_bytes / 1e9,  # outputs that take the place of arguments
    }
    leaves = jax.tree.leaves(model.params)
    whole = [math.prod(leaf.shape) for leaf in leaves if leaf.sharding.is_fully_replicated]
    name, largest = largest_buffer(compiled.as_text())
    return {
        "what": case.what,
        "parameters": sum(math.prod(leaf.shape) for leaf in leaves),
        "chips": len(chips),
        "examples": examples,
        "compile_seconds": round(seconds, 1),
        **gb,
        "total_gb": gb["arguments_gb"] + gb["outputs_gb"] + gb["temporaries_gb"] - gb["aliased_gb"],
        "chip_gb": CHIP_GB[case.topology.partition(":")[0]],
        "largest_replicated_parameter": max(whole, default=0),
        "largest_buffer": name,
        "largest_buffer_gb": largest / 1e9,
    }


def lower_pass(model: base.Model, examples: int, lengths: Lengths) -> Any:
    """Value and gradient of the loss; without labels the loss of a decoder is on every token."""
    batch = BatchPlacement(model.options.mesh, examples).shapes(lengths)
    unused = ("attention_mask",) if model.family.encoder_decoder else ("attention_mask", "labels")
    batch = {name: shape for name, shape in batch.items() if name not in unused}
    placed = jax.tree.map(lambda leaf: leaf.sharding, model.params)
    return jax.jit(jax.value_and_grad(model.loss), out_shardings=(None, placed)).lower(model.params, batch)


def lower_training(model: base.Model, examples: int, lengths: Lengths) -> Any:
    """The step that `lensjax finetune` takes: the state is donated."""
    spec, mesh = TrainingSpec(batch_size=examples, remat="full"), model.options.mesh
    programs, state = make_programs(model, spec, mesh), state_shapes(model, spec, mesh)
    return programs.step.lower(state, {}, BatchPlacement(mesh, examples).shapes(lengths), 0.0)


def largest_buffer(program: str) -> tuple[str, int]:
    """The largest array that one chip computes, as its type and shape, and its bytes."""
    found = {
        f"{kind}[{shape}]": BYTES[kind] * math.prod(map(int, shape.split(",")))
        for kind, shape in re.findall(r"\b(f32|bf16|f16|s32|u32|pred)\[([\d,]+)\]", program)
    }
    name = max(found, key=lambda key: found[key])
    return name, found[name]


if __name__ == "__main__":
    arguments = parser_of(__doc__).parse_args()
    run_cases(arguments, QUICK if arguments.quick else CASES, compile_case, ("jax", "flax", "libtpu"))
