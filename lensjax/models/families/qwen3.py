"""Qwen 3 (arXiv 2505.09388): Llama's blocks, with queries and keys normalised."""

from typing import Any

from flax import nnx

from lensjax.models.decoder import DecoderLM
from lensjax.models.families import llama
from lensjax.models.family import Family, register
from lensjax.models.options import Options


def module(config: Any, options: Options, rngs: nnx.Rngs) -> DecoderLM:
    bias = config.attention_bias
    return llama.build(config, options, rngs, bias=bias, qk_norm=True, layer_types=config.layer_types)


register(
    Family("qwen3", "Qwen3ForCausalLM", module, llama.parameter_names, examples=("Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B"))
)
