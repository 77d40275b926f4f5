"""Qwen 3 (arXiv 2505.09388): Llama's blocks, with queries and keys normalised."""

from typing import Any

from flax import nnx

from lensjax.models.decoder import DecoderLM
from lensjax.models.families import llama
from lensjax.models.family import Family
from lensjax.models.options import Options
from lensjax.models.weights import Table


def module(config: Any, options: Options, rngs: nnx.Rngs) -> DecoderLM:
    bias = config.attention_bias
    return llama.build(config, options, rngs, bias=bias, qk_norm=True, layer_types=config.layer_types)


def table(config: Any) -> Table:
    return {
        **llama.table(config),
        "layers/blocks/attention/q_norm": "model.layers.{layer}.self_attn.q_norm",
        "layers/blocks/attention/k_norm": "model.layers.{layer}.self_attn.k_norm",
    }


FAMILIES = (
    Family(
        "qwen3",
        "Qwen3ForCausalLM",
        module,
        table,
        prefix="model.",
        ignored=(r"^lm_head\.weight$",),
        examples=("Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B"),
    ),
)
