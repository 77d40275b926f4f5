"""Gemma 2 (arXiv 2408.00118): norms before and after attention and MLP, capped scores, windows in every other layer."""

import math
from typing import Any

from flax import nnx

from lensjax.models.decoder import DecoderLM
from lensjax.models.families import llama
from lensjax.models.family import Family, register
from lensjax.models.options import Options
from lensjax.models.weights import ParameterNames


def build(config: Any, options: Options, rngs: nnx.Rngs, **settings: Any) -> DecoderLM:
    """A model of Gemma 2's blocks, with the settings of `llama.build` that differ in Gemma 3."""
    return llama.build(
        config,
        options,
        rngs,
        layer_types=config.layer_types,
        embed_scale=math.sqrt(config.hidden_size),
        softcap=config.final_logit_softcapping,
        norm_offset=1.0,
        act=config.hidden_activation,
        after=True,
        bias=config.attention_bias,
        scale=config.query_pre_attn_scalar**-0.5,
        **settings,
    )


def module(config: Any, options: Options, rngs: nnx.Rngs) -> DecoderLM:
    return build(config, options, rngs, score_softcap=config.attn_logit_softcapping)


def parameter_names(config: Any) -> ParameterNames:
    return {**llama.parameter_names(config), "layers/blocks/mlp_norm": "model.layers.{layer}.pre_feedforward_layernorm"}


register(
    Family("gemma2", "Gemma2ForCausalLM", module, parameter_names, examples=("google/gemma-2-2b", "google/gemma-2-9b"))
)
