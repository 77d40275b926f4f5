"""Qwen 2 and 2.5 (arXiv 2407.10671, 2412.15115): Llama's blocks, with biases on queries, keys and values."""

from typing import Any

from flax import nnx

from lensjax.models.decoder import DecoderLM
from lensjax.models.families import llama
from lensjax.models.family import Family, register
from lensjax.models.options import Options


def module(config: Any, options: Options, rngs: nnx.Rngs) -> DecoderLM:
    return llama.build(config, options, rngs, bias=True, out_bias=False, layer_types=config.layer_types)


register(
    Family(
        "qwen2", "Qwen2ForCausalLM", module, llama.parameter_names, examples=("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2-1.5B")
    )
)
