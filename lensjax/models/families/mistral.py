"""Mistral (arXiv 2310.06825): Llama's blocks, with attention to a sliding window in its first version."""

from typing import Any

from flax import nnx

from lensjax.core.errors import InputError
from lensjax.models.decoder import DecoderLM
from lensjax.models.families import llama
from lensjax.models.family import Family, register
from lensjax.models.options import Options


def module(config: Any, options: Options, rngs: nnx.Rngs) -> DecoderLM:
    if getattr(config, "layer_types", None) is not None:
        raise InputError(
            "layer_types is in the configuration, and Mistral has layers of one kind, which sliding_window alone "
            "decides; make it a MinistralConfig, or remove layer_types where all layers are of that kind."
        )
    kind = "full_attention" if config.sliding_window is None else "sliding_attention"
    return llama.build(config, options, rngs, layer_types=[kind] * config.num_hidden_layers)


register(
    Family(
        "mistral",
        "MistralForCausalLM",
        module,
        llama.parameter_names,
        ignored=(r"^lm_head\.weight$", r"rotary_emb\.inv_freq$"),
        examples=("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-v0.3"),
    )
)
