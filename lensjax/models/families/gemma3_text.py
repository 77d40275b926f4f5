"""Gemma 3 (arXiv 2503.19786), its text models: Gemma 2's blocks with normalised queries and keys in place of caps.

Layers that attend to a window have a rotary embedding of their own.
"""

from typing import Any

from flax import nnx

from lensjax.core.errors import InputError
from lensjax.models.decoder import DecoderLM
from lensjax.models.families import gemma2
from lensjax.models.family import Family, register
from lensjax.models.options import Options
from lensjax.models.rotary import rotary_from_config


def module(config: Any, options: Options, rngs: nnx.Rngs) -> DecoderLM:
    if config.attn_logit_softcapping is not None:
        raise InputError("attn_logit_softcapping is set in config.json, and Gemma 3 caps no scores; set it to null.")
    rotary = {
        kind: rotary_from_config(config, config.head_dim, config.rope_parameters[kind])
        for kind in ("full_attention", "sliding_attention")
    }
    return gemma2.build(config, options, rngs, rotary=rotary, qk_norm=True)


register(
    Family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        module,
        gemma2.parameter_names,
        examples=("google/gemma-3-270m", "google/gemma-3-1b-pt"),
    )
)
