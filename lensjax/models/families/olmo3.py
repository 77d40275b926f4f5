"""OLMo 3 (arXiv 2512.13961): OLMo 2's blocks, of which three in four attend to a window."""

from typing import Any

from flax import nnx

from lensjax.models.decoder import FULL, SLIDING, DecoderLM
from lensjax.models.families import llama
from lensjax.models.family import Family, register
from lensjax.models.options import Options
from lensjax.models.rotary import rotary_from_config


def module(config: Any, options: Options, rngs: nnx.Rngs) -> DecoderLM:
    dim = llama.head_dim(config)
    return llama.build(
        config,
        options,
        rngs,
        rotary={kind: rotary_from_config(config, dim, config.rope_parameters[kind]) for kind in (FULL, SLIDING)},
        layer_types=config.layer_types,
        before=False,
        after=True,
        bias=config.attention_bias,
        qk_norm=True,
        norm_heads=False,
    )


register(
    Family(
        "olmo3",
        "Olmo3ForCausalLM",
        module,
        llama.parameter_names,
        examples=("allenai/Olmo-3-1025-7B", "allenai/Olmo-3-7B-Instruct"),
    )
)
