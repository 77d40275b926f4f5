"""Ministral (2024): Mistral with layers that attend to a window among others, as `layer_types` says."""

from typing import Any

from flax import nnx

from lensjax.models.decoder import DecoderLM
from lensjax.models.families import llama
from lensjax.models.family import Family, register
from lensjax.models.options import Options


def module(config: Any, options: Options, rngs: nnx.Rngs) -> DecoderLM:
    return llama.build(config, options, rngs, layer_types=config.layer_types)


register(
    Family(
        "ministral",
        "MinistralForCausalLM",
        module,
        llama.parameter_names,
        ignored=(r"^lm_head\.weight$", r"rotary_emb\.inv_freq$"),
        examples=("mistralai/Ministral-8B-Instruct-2410",),
    )
)
