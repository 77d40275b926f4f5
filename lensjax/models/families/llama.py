"""Llama 2 and 3, SmolLM2, TinyLlama and their like (arXiv 2307.09288, 2407.21783)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lensjax.models.decoder import DecoderLM
from lensjax.models.family import Family, register
from lensjax.models.layers import MLP, Angles, Attention, RMSNorm
from lensjax.models.options import Options
from lensjax.models.rotary import Rotary, rotary_from_config
from lensjax.models.segments import layer_names
from lensjax.models.weights import ParameterNames, Stored


class Block(nnx.Module):
    """Attention and a gated MLP, each with a norm before it, after it, or both.

    Args:
      norm: Makes a norm of the given size.
      act: Name of the activation; `config.hidden_act` where not given.
      before, after: Whether there is a norm before, and after, attention and MLP.
      mlp_bias: Whether the MLP has biases.
      qk_norm: Whether queries and keys are normalised.
      score_softcap: The `softcap` of `Attention`.
      residual_scale: Factor of what attention and MLP add to x.
      make_mlp: Makes what is there in place of a gated MLP.
      make_mixer: Makes what is there in place of attention.
      attention: Other arguments of `Attention`.
    """

    def __init__(
        self,
        config: Any,
        norm: Callable[[int], RMSNorm],
        options: Options,
        rngs: nnx.Rngs,
        *,
        act: str | None = None,
        before: bool = True,
        after: bool = False,
        mlp_bias: bool = False,
        qk_norm: bool = False,
        score_softcap: float | None = None,
        residual_scale: float = 1.0,
        make_mlp: Callable[[nnx.Rngs], nnx.Module] | None = None,
        make_mixer: Callable[[nnx.Rngs], nnx.Module] | None = None,
        **attention: Any,
    ) -> None:
        width, std = config.hidden_size, config.initializer_range
        self.residual_scale = residual_scale
        self.attention_norm = norm(width) if before else None
        self.attention: nnx.Module
        if make_mixer is None:
            self.attention = Attention(
                width,
                config.num_attention_heads,
                options,
                rngs,
                kv_heads=config.num_key_value_heads,
                head_dim=head_dim(config),
                qk_norm=norm if qk_norm else None,
                softcap=score_softcap,
                std=std,
                **attention,
            )
        else:
            self.attention = make_mixer(rngs)
        self.attention_post_norm = norm(width) if after else None
        self.mlp_norm = norm(width) if before else None
        self.mlp: nnx.Module
        if make_mlp is None:
            act = config.hidden_act if act is None else act
            self.mlp = MLP(width, config.intermediate_size, act, options, rngs, gated=True, bias=mlp_bias, std=std)
        else:
            self.mlp = make_mlp(rngs)
        self.mlp_post_norm = norm(width) if after else None

    def __call__(self, x: Float[Array, "batch time width"], mask: Array | None, angles: Angles) -> Array:
        attended = self.attention(normed(self.attention_norm, x), mask, angles=angles)
        x = x + self._scaled(normed(self.attention_post_norm, attended))
        return x + self._scaled(normed(self.mlp_post_norm, self.mlp(normed(self.mlp_norm, x))))

    def _scaled(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
        return x if self.residual_scale == 1 else x * jnp.asarray(self.residual_scale, x.dtype)


def head_dim(config: Any) -> int:
    """Size of a head, which is width / heads where the configuration does not say it."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def build(
    config: Any,
    options: Options,
    rngs: nnx.Rngs,
    *,
    rotary: Rotary | Mapping[str, Rotary | None] | None = None,
    layer_types: Sequence[str] | None = None,
    rotary_types: Sequence[str] | None = None,
    embed_scale: float = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    norm_offset: float = 0.0,
    block_types: Sequence[str] | None = None,
    blocks: Mapping[str, Mapping[str, Any]] | None = None,
    **block: Any,
) -> DecoderLM:
    """A model of such blocks, which get the arguments in `block`.

    Args:
      blocks: Further arguments of the blocks of each type, of which `block_types` gives every layer one.
      rotary: The rotary embedding, by default the one that the configuration describes.
      layer_types, rotary_types, embed_scale, logit_scale, softcap: See `DecoderLM`.
      norm_offset: See `RMSNorm`.
    """

    def norm(size: int) -> RMSNorm:
        return RMSNorm(size, options, eps=config.rms_norm_eps, offset=norm_offset)

    def maker(**own: Any) -> Callable[[nnx.Rngs], Block]:
        return lambda rngs: Block(config, norm, options, rngs, **block, **own)

    return DecoderLM(
        config,
        maker() if blocks is None else {kind: maker(**own) for kind, own in blocks.items()},
        norm(config.hidden_size),
        rotary_from_config(config, head_dim(config)) if rotary is None else rotary,
        options,
        rngs,
        layer_types=layer_types,
        rotary_types=rotary_types,
        block_types=block_types,
        embed_scale=embed_scale,
        logit_scale=logit_scale,
        softcap=softcap,
    )


def module(config: Any, options: Options, rngs: nnx.Rngs) -> DecoderLM:
    return build(config, options, rngs, bias=config.attention_bias, mlp_bias=config.mlp_bias)


def parameter_names(config: Any) -> ParameterNames:
    """The names of such blocks' parameters, those included that only some families have."""
    return names_of([""] * config.num_hidden_layers, {"": block_names()})


def names_of(types: Sequence[str], blocks: Mapping[str, Mapping[str, str | Stored]]) -> dict[str, str | Stored]:
    """The names of a model's parameters, given those of each type of block; see `segments.layer_names`."""
    return {
        "embed": "model.embed_tokens",
        **dict(layer_names(types, blocks)),
        "norm": "model.norm",
        "head": "lm_head",
    }


def block_names() -> dict[str, str | Stored]:
    """The names of a block's parameters, those included that only some families have."""
    block = {
        "attention_norm": "input_layernorm",
        **{f"attention/{name}": f"self_attn.{name}_proj" for name in "qkvo"},
        **{f"attention/{name}_norm": f"self_attn.{name}_norm" for name in "qk"},
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "post_attention_layernorm",
        **{f"mlp/{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
        "mlp_post_norm": "post_feedforward_layernorm",
    }
    return {ours: f"model.layers.{{layer}}.{theirs}" for ours, theirs in block.items()}


def normed(norm: RMSNorm | None, x: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
    return x if norm is None else norm(x)


register(
    Family(
        "llama",
        "LlamaForCausalLM",
        module,
        parameter_names,
        ignored=(r"^lm_head\.weight$", r"rotary_emb\.inv_freq$"),
        examples=("meta-llama/Llama-3.2-1B", "HuggingFaceTB/SmolLM2-135M"),
    )
)
