"""OLMo 2 (arXiv 2501.00656): norms after attention and MLP, and on all queries and all keys together."""

from typing import Any

from flax import nnx

from lensjax.models.decoder import DecoderLM
from lensjax.models.families import llama
from lensjax.models.family import Family, register
from lensjax.models.options import Options


def module(config: Any, options: Options, rngs: nnx.Rngs) -> DecoderLM:
    bias = config.attention_bias
    return llama.build(config, options, rngs, before=False, after=True, bias=bias, qk_norm=True, norm_heads=False)


register(
    Family(
        "olmo2",
        "Olmo2ForCausalLM",
        module,
        llama.parameter_names,
        examples=("allenai/OLMo-2-0425-1B", "allenai/OLMo-2-1124-7B"),
    )
)
