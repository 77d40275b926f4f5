"""Phi 1, 1.5 and 2 (arXiv 2306.11644, 2309.05463): attention and MLP side by side behind one norm, all with biases."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from lensjax.core.errors import InputError
from lensjax.models.decoder import DecoderLM
from lensjax.models.family import Family
from lensjax.models.layers import MLP, Angles, Attention, LayerNorm
from lensjax.models.options import Options
from lensjax.models.rotary import rotary_from_config
from lensjax.models.weights import Table


class Block(nnx.Module):
    def __init__(self, config: Any, options: Options, rngs: nnx.Rngs) -> None:
        width, eps, std = config.hidden_size, config.layer_norm_eps, config.initializer_range
        self.norm = LayerNorm(width, options, eps=eps)
        self.attention = Attention(
            width,
            config.num_attention_heads,
            options,
            rngs,
            kv_heads=config.num_key_value_heads,
            bias=True,
            qk_norm=(lambda size: LayerNorm(size, options, eps=eps)) if config.qk_layernorm else None,
            std=std,
        )
        self.mlp = MLP(width, config.intermediate_size, config.hidden_act, options, rngs, bias=True, std=std)

    def __call__(self, x: Float[Array, "batch time width"], mask: Array | None, angles: Angles) -> Array:
        y = self.norm(x)
        return x + self.attention(y, mask, angles=angles) + self.mlp(y)


def module(config: Any, options: Options, rngs: nnx.Rngs) -> DecoderLM:
    if config.tie_word_embeddings:
        raise InputError("tie_word_embeddings is true in config.json; LensJAX has Phi with a head of its own.")
    norm = LayerNorm(config.hidden_size, options, eps=config.layer_norm_eps)
    rotary = rotary_from_config(config, config.hidden_size // config.num_attention_heads)
    return DecoderLM(config, lambda rngs: Block(config, options, rngs), norm, rotary, options, rngs, head_bias=True)


def table(config: Any) -> Table:
    return {
        "embed": "model.embed_tokens",
        "layers/blocks/norm": "model.layers.{layer}.input_layernorm",
        "layers/blocks/attention/q": "model.layers.{layer}.self_attn.q_proj",
        "layers/blocks/attention/k": "model.layers.{layer}.self_attn.k_proj",
        "layers/blocks/attention/v": "model.layers.{layer}.self_attn.v_proj",
        "layers/blocks/attention/o": "model.layers.{layer}.self_attn.dense",
        "layers/blocks/attention/q_norm": "model.layers.{layer}.self_attn.q_layernorm",
        "layers/blocks/attention/k_norm": "model.layers.{layer}.self_attn.k_layernorm",
        "layers/blocks/mlp/up": "model.layers.{layer}.mlp.fc1",
        "layers/blocks/mlp/down": "model.layers.{layer}.mlp.fc2",
        "norm": "model.final_layernorm",
        "head": "lm_head",
    }


FAMILIES = (
    Family(
        "phi",
        "PhiForCausalLM",
        module,
        table,
        prefix="model.",
        ignored=(r"rotary_emb\.inv_freq$",),
        examples=("microsoft/phi-1", "microsoft/phi-1_5", "microsoft/phi-2"),
    ),
)
