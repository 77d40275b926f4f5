"""LFM2 (arXiv 2511.23404): blocks of short convolutions between two gates, and a few of attention."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from lensjax.core.errors import InputError, shorten
from lensjax.models.convolution import CausalConvolution, seen_tokens
from lensjax.models.decoder import FULL, DecoderLM
from lensjax.models.families import llama
from lensjax.models.family import Family, register
from lensjax.models.layers import MLP, Angles, Attention, Linear, RMSNorm
from lensjax.models.options import Options
from lensjax.models.rotary import rotary_from_config
from lensjax.models.weights import ParameterNames, Stored

_CONV = "conv"


class ShortConvolution(nnx.Module):
    """o(q(x) · convolution(k(x) · v(x))), each factor a linear map of x, which is 0 at padding."""

    mixes_tokens = True  # with what its convolution keeps; see `lensjax.models.generate`

    def __init__(self, config: Any, options: Options, rngs: nnx.Rngs) -> None:
        width, bias, std = config.hidden_size, config.conv_bias, config.initializer_range
        self.q, self.k, self.v, self.o = (Linear(width, width, options, rngs, bias=bias, std=std) for _ in range(4))
        self.convolution = CausalConvolution(width, config.conv_L_cache, options, rngs, bias=bias, std=std)

    def __call__(
        self, x: Float[Array, "batch time width"], mask: Bool[Array, "batch 1 #time time"] | None, *, angles: Any
    ) -> Float[Array, "batch time width"]:
        seen = seen_tokens(mask, x.shape[1], getattr(self.convolution, "memory", None))
        x = x if seen is None else jnp.where(seen[..., None], x, 0)
        return self.o(self.q(x) * self.convolution(self.k(x) * self.v(x), mask))


class Block(nnx.Module):
    """Attention or a short convolution, and a gated MLP, each with its norm in front."""

    def __init__(self, config: Any, options: Options, rngs: nnx.Rngs, *, attends: bool) -> None:
        width, eps, std = config.hidden_size, config.norm_eps, config.initializer_range
        self.mixer_norm = RMSNorm(width, options, eps=eps)
        self.mixer = (
            Attention(
                width,
                config.num_attention_heads,
                options,
                rngs,
                kv_heads=config.num_key_value_heads,
                head_dim=llama.head_dim(config),
                qk_norm=lambda size: RMSNorm(size, options, eps=eps),
                std=std,
            )
            if attends
            else ShortConvolution(config, options, rngs)
        )
        self.mlp_norm = RMSNorm(width, options, eps=eps)
        self.mlp = MLP(width, _hidden(config), "silu", options, rngs, gated=True, std=std)

    def __call__(self, x: Float[Array, "batch time width"], mask: Array | None, angles: Angles) -> Array:
        x = x + self.mixer(self.mixer_norm(x), mask, angles=angles)
        return x + self.mlp(self.mlp_norm(x))


def module(config: Any, options: Options, rngs: nnx.Rngs) -> DecoderLM:
    unknown = set(config.layer_types) - {FULL, _CONV}
    if unknown:
        raise InputError(
            f"layer_types has '{shorten(min(unknown))}' in config.json; LensJAX has LFM2 of {FULL} and {_CONV}."
        )

    def maker(attends: bool) -> Any:
        return lambda rngs: Block(config, options, rngs, attends=attends)

    return DecoderLM(
        config,
        {FULL: maker(True), _CONV: maker(False)},
        RMSNorm(config.hidden_size, options, eps=config.norm_eps),
        rotary_from_config(config, llama.head_dim(config)),
        options,
        rngs,
        block_types=config.layer_types,
    )


def parameter_names(config: Any) -> ParameterNames:
    layer = "model.layers.{layer}"
    shared = {
        "mixer_norm": f"{layer}.operator_norm",
        "mlp_norm": f"{layer}.ffn_norm",
        "mlp/gate": f"{layer}.feed_forward.w1",
        "mlp/down": f"{layer}.feed_forward.w2",
        "mlp/up": f"{layer}.feed_forward.w3",
    }
    attention = {
        **{f"mixer/{name}": f"{layer}.self_attn.{name}_proj" for name in "qkv"},
        **{f"mixer/{name}_norm": f"{layer}.self_attn.{name}_layernorm" for name in "qk"},
        "mixer/o": f"{layer}.self_attn.out_proj",
    }
    convolution: dict[str, str | Stored] = {
        **{
            f"mixer/{name}": Stored(f"{layer}.conv.in_proj", part=(index, (1, 1, 1), 1))
            for index, name in enumerate("kqv")
        },
        "mixer/convolution/kernel": f"{layer}.conv.conv.weight",
        "mixer/convolution/bias": f"{layer}.conv.conv.bias",
        "mixer/o": f"{layer}.conv.out_proj",
    }
    names = llama.names_of(config.layer_types, {FULL: shared | attention, _CONV: shared | convolution})
    return names | {"norm": "model.embedding_norm"}


def _hidden(config: Any) -> int:
    """Size of the MLP's hidden layer, which the configuration may give before it is adjusted."""
    if not config.block_auto_adjust_ff_dim:
        return int(config.intermediate_size)
    size = int(config.block_ffn_dim_multiplier * int(2 * config.intermediate_size / 3))
    return int(config.block_multiple_of * -(-size // config.block_multiple_of))


register(
    Family("lfm2", "Lfm2ForCausalLM", module, parameter_names, examples=("LiquidAI/LFM2-350M", "LiquidAI/LFM2-1.2B"))
)
