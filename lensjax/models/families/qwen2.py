"""Qwen 2 and 2.5 (arXiv 2407.10671, 2412.15115): Llama's blocks, with biases on queries, keys and values."""

from typing import Any

from flax import nnx

from lensjax.models.decoder import DecoderLM
from lensjax.models.families.llama import build, table
from lensjax.models.family import Family
from lensjax.models.options import Options


def module(config: Any, options: Options, rngs: nnx.Rngs) -> DecoderLM:
    return build(config, options, rngs, bias=True, out_bias=False, layer_types=config.layer_types)


FAMILIES = (
    Family(
        "qwen2",
        "Qwen2ForCausalLM",
        module,
        table,
        prefix="model.",
        ignored=(r"^lm_head\.weight$",),
        examples=("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2-1.5B"),
    ),
)
