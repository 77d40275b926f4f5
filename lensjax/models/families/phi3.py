"""Phi 3, 3.5, 4 and 4-mini (arXiv 2404.14219, 2412.08905): Llama's blocks, with fused tensors in their checkpoints."""

from typing import Any

from flax import nnx

from lensjax.models.decoder import FULL, SLIDING, DecoderLM
from lensjax.models.families import llama
from lensjax.models.family import Family, register
from lensjax.models.options import Options
from lensjax.models.rotary import rotary_from_config
from lensjax.models.weights import ParameterNames, Stored


def module(config: Any, options: Options, rngs: nnx.Rngs) -> DecoderLM:
    kind = FULL if config.sliding_window is None else SLIDING
    rotary = rotary_from_config(config, llama.head_dim(config), partial=True)
    return llama.build(config, options, rngs, rotary=rotary, layer_types=[kind] * config.num_hidden_layers)


def parameter_names(config: Any) -> ParameterNames:
    names: dict[str, str | Stored] = dict(llama.parameter_names(config))
    heads = config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads
    fused = {"attention/q": (0, heads), "attention/k": (1, heads), "attention/v": (2, heads)}
    for ours, (index, shares) in fused.items():
        names[f"layers/blocks/{ours}"] = Stored("model.layers.{layer}.self_attn.qkv_proj", part=(index, shares, 1))
    for index, ours in enumerate(("gate", "up")):
        names[f"layers/blocks/mlp/{ours}"] = Stored("model.layers.{layer}.mlp.gate_up_proj", part=(index, (1, 1), 1))
    return names


register(
    Family(
        "phi3",
        "Phi3ForCausalLM",
        module,
        parameter_names,
        examples=("microsoft/Phi-3-mini-4k-instruct", "microsoft/Phi-4-mini-instruct", "microsoft/phi-4"),
    )
)
