"""gpt-oss (arXiv 2508.10925): experts with biases and a clamped gate, and attention that may go to a sink of each head.

Its published checkpoints are in MXFP4, which LensJAX does not read; those that `transformers` has dequantised it does.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from lensjax.models.decoder import DecoderLM
from lensjax.models.experts import Experts, softmax_of_top
from lensjax.models.families import llama
from lensjax.models.family import Family, register
from lensjax.models.options import Options
from lensjax.models.sharding import EXPERT_RULES
from lensjax.models.weights import ParameterNames, Stored


def module(config: Any, options: Options, rngs: nnx.Rngs) -> DecoderLM:
    limit, alpha = config.swiglu_limit, config.swiglu_alpha

    def gating(gate: Array, up: Array) -> Array:
        gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
        return (up + 1) * (gate * jax.nn.sigmoid(gate * alpha))

    def experts(rngs: nnx.Rngs) -> Experts:
        return Experts(
            config.hidden_size,
            config.intermediate_size,
            config.num_local_experts,
            softmax_of_top(config.num_experts_per_tok),
            options,
            rngs,
            gating=gating,
            bias=True,
            std=config.initializer_range,
        )

    return llama.build(
        config,
        options,
        rngs,
        bias=config.attention_bias,
        sinks=True,
        layer_types=config.layer_types,
        make_mlp=experts,
    )


def parameter_names(config: Any) -> ParameterNames:
    moe = "model.layers.{layer}.mlp"
    names = llama.block_names() | {
        "attention/sinks": "model.layers.{layer}.self_attn.sinks",
        "mlp/router": f"{moe}.router",
    }
    for index, ours in enumerate(("gate", "up")):  # in turns
        part = (index, (1, 1), config.intermediate_size)
        names[f"mlp/experts/{ours}/kernel"] = Stored(f"{moe}.experts.gate_up_proj", transposed=False, part=part)
        names[f"mlp/experts/{ours}/bias"] = Stored(f"{moe}.experts.gate_up_proj_bias", part=part)
    names["mlp/experts/down/kernel"] = Stored(f"{moe}.experts.down_proj", transposed=False)
    names["mlp/experts/down/bias"] = f"{moe}.experts.down_proj_bias"
    return llama.names_of([""] * config.num_hidden_layers, {"": names})


register(
    Family(
        "gpt_oss",
        "GptOssForCausalLM",
        module,
        parameter_names,
        rules=EXPERT_RULES,
        examples=("openai/gpt-oss-20b", "openai/gpt-oss-120b"),
    )
)
