"""Llama 2 and 3, SmolLM2, TinyLlama and their like (arXiv 2307.09288, 2407.21783)."""

from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from lensjax.models.decoder import DecoderLM
from lensjax.models.family import Family
from lensjax.models.layers import Angles, Attention, GatedMLP, RMSNorm
from lensjax.models.options import Options
from lensjax.models.rotary import rotary_from_config
from lensjax.models.weights import Table


class Block(nnx.Module):
    """Attention and a gated MLP, each with its norm in front.

    Args:
      norm: Makes a norm of the given size.
      bias, out_bias, mlp_bias: Whether q, k and v, the output of attention, and the MLP have biases.
      qk_norm: Whether queries and keys are normalised, each head by itself.
    """

    def __init__(
        self,
        config: Any,
        norm: Callable[[int], RMSNorm],
        options: Options,
        rngs: nnx.Rngs,
        *,
        bias: bool = False,
        out_bias: bool | None = None,
        mlp_bias: bool = False,
        qk_norm: bool = False,
    ) -> None:
        width, std = config.hidden_size, config.initializer_range
        self.attention_norm = norm(width)
        self.attention = Attention(
            width,
            config.num_attention_heads,
            options,
            rngs,
            kv_heads=config.num_key_value_heads,
            head_dim=head_dim(config),
            bias=bias,
            out_bias=out_bias,
            qk_norm=norm if qk_norm else None,
            std=std,
        )
        self.mlp_norm = norm(width)
        self.mlp = GatedMLP(width, config.intermediate_size, config.hidden_act, options, rngs, bias=mlp_bias, std=std)

    def __call__(self, x: Float[Array, "batch time width"], mask: Array | None, angles: Angles) -> Array:
        x = x + self.attention(self.attention_norm(x), mask, angles=angles)
        return x + self.mlp(self.mlp_norm(x))


def head_dim(config: Any) -> int:
    """Size of a head, which configurations may leave to be width / heads."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def build(
    config: Any,
    options: Options,
    rngs: nnx.Rngs,
    *,
    layer_types: Sequence[str] | None = None,
    embed_scale: float = 1.0,
    norm_offset: float = 0.0,
    **block: Any,
) -> DecoderLM:
    """A model of such blocks, which are given the arguments in `block`."""

    def norm(size: int) -> RMSNorm:
        return RMSNorm(size, options, eps=config.rms_norm_eps, offset=norm_offset)

    return DecoderLM(
        config,
        lambda rngs: Block(config, norm, options, rngs, **block),
        norm(config.hidden_size),
        rotary_from_config(config, head_dim(config)),
        options,
        rngs,
        layer_types=layer_types,
        embed_scale=embed_scale,
    )


def module(config: Any, options: Options, rngs: nnx.Rngs) -> DecoderLM:
    return build(config, options, rngs, bias=config.attention_bias, mlp_bias=config.mlp_bias)


def table(config: Any) -> Table:
    return {
        "embed": "model.embed_tokens",
        "layers/blocks/attention_norm": "model.layers.{layer}.input_layernorm",
        "layers/blocks/attention/q": "model.layers.{layer}.self_attn.q_proj",
        "layers/blocks/attention/k": "model.layers.{layer}.self_attn.k_proj",
        "layers/blocks/attention/v": "model.layers.{layer}.self_attn.v_proj",
        "layers/blocks/attention/o": "model.layers.{layer}.self_attn.o_proj",
        "layers/blocks/mlp_norm": "model.layers.{layer}.post_attention_layernorm",
        "layers/blocks/mlp/gate": "model.layers.{layer}.mlp.gate_proj",
        "layers/blocks/mlp/up": "model.layers.{layer}.mlp.up_proj",
        "layers/blocks/mlp/down": "model.layers.{layer}.mlp.down_proj",
        "norm": "model.norm",
        "head": "lm_head",
    }


FAMILIES = (
    Family(
        "llama",
        "LlamaForCausalLM",
        module,
        table,
        prefix="model.",
        ignored=(r"^lm_head\.weight$", r"rotary_emb\.inv_freq$"),
        examples=("meta-llama/Llama-3.2-1B", "HuggingFaceTB/SmolLM2-135M"),
    ),
)
