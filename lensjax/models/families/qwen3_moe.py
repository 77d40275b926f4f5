"""Qwen 3's mixtures of experts (arXiv 2505.09388): Qwen 3 in which the MLPs of some layers, or all, are many."""

from typing import Any

from flax import nnx

from lensjax.models.decoder import FULL, SLIDING, DecoderLM
from lensjax.models.experts import Experts, top_of_softmax
from lensjax.models.families import llama
from lensjax.models.family import Family, register
from lensjax.models.options import Options
from lensjax.models.sharding import EXPERT_RULES
from lensjax.models.weights import ParameterNames

_DENSE, _SPARSE = "dense", "sparse"


def module(config: Any, options: Options, rngs: nnx.Rngs) -> DecoderLM:
    def experts(rngs: nnx.Rngs) -> Experts:
        return Experts(
            config.hidden_size,
            config.moe_intermediate_size,
            config.num_experts,
            top_of_softmax(config.num_experts_per_tok, normalised=config.norm_topk_prob),
            options,
            rngs,
            act=config.hidden_act,
            std=config.initializer_range,
        )

    kind = FULL if config.sliding_window is None else SLIDING
    return llama.build(
        config,
        options,
        rngs,
        bias=config.attention_bias,
        qk_norm=True,
        layer_types=[kind] * config.num_hidden_layers,
        block_types=block_types(config),
        blocks={_DENSE: {}, _SPARSE: {"make_mlp": experts}},
    )


def block_types(config: Any) -> list[str]:
    """Whether each layer has one MLP or experts."""

    def sparse(layer: int) -> bool:
        among = config.num_experts > 0 and (layer + 1) % config.decoder_sparse_step == 0
        return among and layer not in config.mlp_only_layers

    return [_SPARSE if sparse(layer) else _DENSE for layer in range(config.num_hidden_layers)]


def parameter_names(config: Any) -> ParameterNames:
    moe = "model.layers.{layer}.mlp"
    sparse = {"mlp/router": f"{moe}.gate"} | {
        f"mlp/experts/{name}": f"{moe}.experts.{{expert}}.{name}_proj" for name in ("gate", "up", "down")
    }
    block = llama.block_names()
    return llama.names_of(block_types(config), {_DENSE: block, _SPARSE: block | sparse})


register(
    Family(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        module,
        parameter_names,
        rules=EXPERT_RULES,
        examples=("Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-235B-A22B"),
    )
)
