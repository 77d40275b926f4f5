"""Granite 3 (IBM): Llama's blocks, with factors of embeddings, scores, residual branches and logits."""

from typing import Any

from flax import nnx

from lensjax.models.decoder import DecoderLM
from lensjax.models.families import llama
from lensjax.models.family import Family, register
from lensjax.models.options import Options


def module(config: Any, options: Options, rngs: nnx.Rngs) -> DecoderLM:
    return llama.build(
        config,
        options,
        rngs,
        bias=config.attention_bias,
        mlp_bias=config.mlp_bias,
        scale=config.attention_multiplier,
        residual_scale=config.residual_multiplier,
        embed_scale=config.embedding_multiplier,
        logit_scale=1 / config.logits_scaling,
    )


register(
    Family(
        "granite",
        "GraniteForCausalLM",
        module,
        llama.parameter_names,
        examples=("ibm-granite/granite-3.3-2b-base", "ibm-granite/granite-3.1-8b-instruct"),
    )
)
