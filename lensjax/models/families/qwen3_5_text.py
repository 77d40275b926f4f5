"""Qwen 3.5 and 3.6, their dense text models: three layers in four have a gated delta rule in place of attention."""

from typing import Any

from flax import nnx

from lensjax.core.errors import InputError, shorten
from lensjax.models.decoder import FULL, DecoderLM
from lensjax.models.delta_rule import GatedDeltaNet
from lensjax.models.families import llama
from lensjax.models.family import Family, register
from lensjax.models.options import Options
from lensjax.models.rotary import rotary_from_config
from lensjax.models.weights import ParameterNames, Stored

_LINEAR = "linear_attention"


def module(config: Any, options: Options, rngs: nnx.Rngs) -> DecoderLM:
    unknown = set(config.layer_types) - {FULL, _LINEAR}
    if unknown:
        raise InputError(
            f"layer_types has '{shorten(min(unknown))}' in config.json; LensJAX has Qwen 3.5 of {FULL} and {_LINEAR}."
        )

    def delta_net(rngs: nnx.Rngs) -> GatedDeltaNet:
        return GatedDeltaNet(
            config.hidden_size,
            config.linear_num_key_heads,
            config.linear_num_value_heads,
            config.linear_key_head_dim,
            config.linear_value_head_dim,
            config.linear_conv_kernel_dim,
            options,
            rngs,
            act=config.hidden_act,
            eps=config.rms_norm_eps,
            std=config.initializer_range,
        )

    attention = {"bias": config.attention_bias, "qk_norm": True, "gated": True}
    return llama.build(
        config,
        options,
        rngs,
        rotary=rotary_from_config(config, llama.head_dim(config), partial=True),
        norm_offset=1.0,
        block_types=config.layer_types,
        blocks={FULL: attention, _LINEAR: {"make_mixer": delta_net}},
    )


def parameter_names(config: Any) -> ParameterNames:
    layer, heads = "model.layers.{layer}", config.num_attention_heads
    block = llama.block_names()
    full = block | {
        f"attention/{ours}": Stored(f"{layer}.self_attn.q_proj", part=(index, (1, 1), heads))
        for index, ours in enumerate(("q", "gate"))
    }
    keys = config.linear_num_key_heads * config.linear_key_head_dim
    shares = keys, keys, config.linear_num_value_heads * config.linear_value_head_dim
    theirs = {
        "gate": "in_proj_z",
        "rate": "in_proj_b",
        "forget": "in_proj_a",
        "forget_log": "A_log",
        "forget_bias": "dt_bias",
        "norm": "norm",
        "o": "out_proj",
    }
    linear = block | {f"attention/{ours}": f"{layer}.linear_attn.{name}" for ours, name in theirs.items()}
    for index, name in enumerate("qkv"):
        part = (index, shares, 1)
        linear[f"attention/{name}"] = Stored(f"{layer}.linear_attn.in_proj_qkv", part=part)
        linear[f"attention/{name}_conv/kernel"] = Stored(f"{layer}.linear_attn.conv1d.weight", part=part)
    return llama.names_of(config.layer_types, {FULL: full, _LINEAR: linear})


register(
    Family(
        "qwen3_5_text",
        "Qwen3_5ForCausalLM",
        module,
        parameter_names,
        examples=("Qwen/Qwen3.5-0.8B-Base", "Qwen/Qwen3.5-2B"),
    )
)
