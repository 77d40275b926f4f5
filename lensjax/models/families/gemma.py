"""Gemma (arXiv 2403.08295): Llama's blocks, with scaled embeddings and norms that store scale − 1."""

import math
from typing import Any

from flax import nnx

from lensjax.models.decoder import DecoderLM
from lensjax.models.families import llama
from lensjax.models.family import Family, register
from lensjax.models.options import Options


def module(config: Any, options: Options, rngs: nnx.Rngs) -> DecoderLM:
    scale = math.sqrt(config.hidden_size)
    return llama.build(config, options, rngs, bias=config.attention_bias, embed_scale=scale, norm_offset=1.0)


register(
    Family("gemma", "GemmaForCausalLM", module, llama.parameter_names, examples=("google/gemma-2b", "google/gemma-7b"))
)
