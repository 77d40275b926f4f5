"""OLMo 2 (arXiv 2501.00656): norms after attention and MLP, and on all queries and all keys together."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from lensjax.models.decoder import DecoderLM
from lensjax.models.families import llama
from lensjax.models.family import Family
from lensjax.models.layers import Angles, Attention, GatedMLP, RMSNorm
from lensjax.models.options import Options
from lensjax.models.rotary import rotary_from_config
from lensjax.models.weights import Table


class Block(nnx.Module):
    def __init__(self, config: Any, options: Options, rngs: nnx.Rngs) -> None:
        width, eps, std = config.hidden_size, config.rms_norm_eps, config.initializer_range
        self.attention = Attention(
            width,
            config.num_attention_heads,
            options,
            rngs,
            kv_heads=config.num_key_value_heads,
            head_dim=llama.head_dim(config),
            bias=config.attention_bias,
            qk_norm=lambda size: RMSNorm(size, options, eps=eps),
            norm_heads=False,
            std=std,
        )
        self.attention_post_norm = RMSNorm(width, options, eps=eps)
        self.mlp = GatedMLP(width, config.intermediate_size, config.hidden_act, options, rngs, std=std)
        self.mlp_post_norm = RMSNorm(width, options, eps=eps)

    def __call__(self, x: Float[Array, "batch time width"], mask: Array | None, angles: Angles) -> Array:
        x = x + self.attention_post_norm(self.attention(x, mask, angles=angles))
        return x + self.mlp_post_norm(self.mlp(x))


def module(config: Any, options: Options, rngs: nnx.Rngs) -> DecoderLM:
    norm = RMSNorm(config.hidden_size, options, eps=config.rms_norm_eps)
    rotary = rotary_from_config(config, llama.head_dim(config))
    return DecoderLM(config, lambda rngs: Block(config, options, rngs), norm, rotary, options, rngs)


def table(config: Any) -> Table:
    return {
        **llama.table(config),
        "layers/blocks/attention/q_norm": "model.layers.{layer}.self_attn.q_norm",
        "layers/blocks/attention/k_norm": "model.layers.{layer}.self_attn.k_norm",
        "layers/blocks/attention_post_norm": "model.layers.{layer}.post_attention_layernorm",
        "layers/blocks/mlp_post_norm": "model.layers.{layer}.post_feedforward_layernorm",
    }


FAMILIES = (
    Family(
        "olmo2",
        "Olmo2ForCausalLM",
        module,
        table,
        prefix="model.",
        ignored=(r"^lm_head\.weight$",),
        examples=("allenai/OLMo-2-0425-1B", "allenai/OLMo-2-1124-7B"),
    ),
)
