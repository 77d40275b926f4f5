"""Gemma 2 (arXiv 2408.00118): norms before and after attention and MLP, capped scores, windows in every other layer."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from lensjax.models.decoder import DecoderLM
from lensjax.models.families import llama
from lensjax.models.family import Family
from lensjax.models.layers import Angles, Attention, GatedMLP, RMSNorm
from lensjax.models.options import Options
from lensjax.models.rotary import Rotary, rotary_from_config
from lensjax.models.weights import Table


class Block(nnx.Module):
    def __init__(
        self,
        config: Any,
        norm: Callable[[int], RMSNorm],
        options: Options,
        rngs: nnx.Rngs,
        qk_norm: Callable[[int], RMSNorm] | None,
    ) -> None:
        width, std = config.hidden_size, config.initializer_range
        self.attention_norm = norm(width)
        self.attention = Attention(
            width,
            config.num_attention_heads,
            options,
            rngs,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            bias=config.attention_bias,
            scale=config.query_pre_attn_scalar**-0.5,
            softcap=config.attn_logit_softcapping,
            qk_norm=qk_norm,
            std=std,
        )
        self.attention_post_norm = norm(width)
        self.mlp_norm = norm(width)
        self.mlp = GatedMLP(width, config.intermediate_size, config.hidden_activation, options, rngs, std=std)
        self.mlp_post_norm = norm(width)

    def __call__(self, x: Float[Array, "batch time width"], mask: Array | None, angles: Angles) -> Array:
        x = x + self.attention_post_norm(self.attention(self.attention_norm(x), mask, angles=angles))
        return x + self.mlp_post_norm(self.mlp(self.mlp_norm(x)))


def build(
    config: Any, rotary: Rotary | Mapping[str, Rotary], options: Options, rngs: nnx.Rngs, *, qk_norm: bool = False
) -> DecoderLM:
    """A model of such blocks; `qk_norm` says whether queries and keys are normalised, each head by itself."""

    def norm(size: int) -> RMSNorm:
        return RMSNorm(size, options, eps=config.rms_norm_eps, offset=1.0)

    return DecoderLM(
        config,
        lambda rngs: Block(config, norm, options, rngs, norm if qk_norm else None),
        norm(config.hidden_size),
        rotary,
        options,
        rngs,
        layer_types=config.layer_types,
        embed_scale=math.sqrt(config.hidden_size),
        softcap=config.final_logit_softcapping,
    )


def module(config: Any, options: Options, rngs: nnx.Rngs) -> DecoderLM:
    return build(config, rotary_from_config(config, config.head_dim), options, rngs)


def table(config: Any) -> Table:
    return {
        **llama.table(config),
        "layers/blocks/attention_post_norm": "model.layers.{layer}.post_attention_layernorm",
        "layers/blocks/mlp_norm": "model.layers.{layer}.pre_feedforward_layernorm",
        "layers/blocks/mlp_post_norm": "model.layers.{layer}.post_feedforward_layernorm",
    }


FAMILIES = (
    Family(
        "gemma2",
        "Gemma2ForCausalLM",
        module,
        table,
        prefix="model.",
        ignored=(r"^lm_head\.weight$",),
        examples=("google/gemma-2-2b", "google/gemma-2-9b"),
    ),
)
