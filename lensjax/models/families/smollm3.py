"""SmolLM 3: Llama's blocks, of which every fourth does not rotate its queries and keys (NoPE, arXiv 2305.19466)."""

from typing import Any

from flax import nnx

from lensjax.models.decoder import DecoderLM
from lensjax.models.families import llama
from lensjax.models.family import Family, register
from lensjax.models.options import Options
from lensjax.models.rotary import rotary_from_config


def module(config: Any, options: Options, rngs: nnx.Rngs) -> DecoderLM:
    rotary = {"rotary": rotary_from_config(config, llama.head_dim(config)), "none": None}
    return llama.build(
        config,
        options,
        rngs,
        rotary=rotary,
        rotary_types=["rotary" if turned else "none" for turned in config.no_rope_layers[: config.num_hidden_layers]],
        layer_types=config.layer_types,
        bias=config.attention_bias,
        mlp_bias=config.mlp_bias,
    )


register(Family("smollm3", "SmolLM3ForCausalLM", module, llama.parameter_names, examples=("HuggingFaceTB/SmolLM3-3B",)))
