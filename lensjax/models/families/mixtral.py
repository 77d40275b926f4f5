"""Mixtral (arXiv 2401.04088): Mistral in which the MLP of every layer is many, and every token passes through a few."""

from typing import Any

from flax import nnx

from lensjax.models.decoder import FULL, SLIDING, DecoderLM
from lensjax.models.experts import Experts, top_of_softmax
from lensjax.models.families import llama
from lensjax.models.family import Family, register
from lensjax.models.options import Options
from lensjax.models.sharding import EXPERT_RULES
from lensjax.models.weights import ParameterNames


def module(config: Any, options: Options, rngs: nnx.Rngs) -> DecoderLM:
    def experts(rngs: nnx.Rngs) -> Experts:
        return Experts(
            config.hidden_size,
            config.intermediate_size,
            config.num_local_experts,
            top_of_softmax(config.num_experts_per_tok, normalised=True),
            options,
            rngs,
            act=config.hidden_act,
            std=config.initializer_range,
        )

    kind = FULL if config.sliding_window is None else SLIDING
    return llama.build(config, options, rngs, layer_types=[kind] * config.num_hidden_layers, make_mlp=experts)


def parameter_names(config: Any) -> ParameterNames:
    theirs = {"gate": "w1", "down": "w2", "up": "w3"}
    moe = "model.layers.{layer}.block_sparse_moe"
    experts = {f"layers/blocks/mlp/experts/{ours}": f"{moe}.experts.{{expert}}.{name}" for ours, name in theirs.items()}
    return {**llama.parameter_names(config), "layers/blocks/mlp/router": f"{moe}.gate", **experts}


register(
    Family(
        "mixtral",
        "MixtralForCausalLM",
        module,
        parameter_names,
        rules=EXPERT_RULES,
        examples=("mistralai/Mixtral-8x7B-v0.1", "mistralai/Mixtral-8x22B-v0.1"),
    )
)
