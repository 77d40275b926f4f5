"""BART (arXiv 1910.13461)."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from numpy.typing import NDArray

from lensjax.models.encoder_decoder import EncoderDecoderLM
from lensjax.models.family import Family, embeds_apart, register
from lensjax.models.layers import MLP, Attention, Embedding, LayerNorm, Stack
from lensjax.models.masks import check_length
from lensjax.models.memory import Start
from lensjax.models.options import Options
from lensjax.models.weights import ParameterNames

_LOGITS_BIAS = "final_logits_bias"  # a constant, which training never moves
_FIRST = 2  # row of the first position; the rows before it are not used


class Block(nnx.Module):
    """Attention onto itself, in the decoder also onto the encoder, and an MLP, each with a norm behind it or before."""

    def __init__(self, config: Any, options: Options, rngs: nnx.Rngs, *, decoder: bool, before: bool) -> None:
        self.before = before
        width, std = config.d_model, config.init_std
        heads = config.decoder_attention_heads if decoder else config.encoder_attention_heads
        hidden = config.decoder_ffn_dim if decoder else config.encoder_ffn_dim

        def attention(causal: bool) -> Attention:
            return Attention(width, heads, options, rngs, causal=causal, bias=True, std=std)

        self.attention = attention(decoder)
        self.attention_norm = LayerNorm(width, options)
        self.cross = attention(False) if decoder else None
        self.cross_norm = LayerNorm(width, options) if decoder else None
        self.mlp = MLP(width, hidden, config.activation_function, options, rngs, bias=True, std=std)
        self.mlp_norm = LayerNorm(width, options)

    def __call__(
        self,
        x: Float[Array, "batch time width"],
        mask: Array | None,
        source: Float[Array, "batch source width"] | None = None,
        source_mask: Array | None = None,
    ) -> Array:
        x = self._added(x, self.attention_norm, lambda x: self.attention(x, mask))
        cross = self.cross
        if cross is not None and self.cross_norm is not None:
            x = self._added(x, self.cross_norm, lambda x: cross(x, source_mask, source=source))
        return self._added(x, self.mlp_norm, self.mlp)

    def _added(self, x: Array, norm: LayerNorm, f: Callable[[Array], Array]) -> Array:
        return x + f(norm(x)) if self.before else norm(x + f(x))


class Side(nnx.Module):
    """The encoder or the decoder: positions, a norm, and blocks; a last norm where those have theirs before.

    Positions are learned, and followed by a norm, or sinusoids without one.
    """

    def __init__(
        self, config: Any, options: Options, rngs: nnx.Rngs, *, decoder: bool, before: bool, sinusoids: bool
    ) -> None:
        width, self.length = config.d_model, config.max_position_embeddings
        self.positions = (
            Sinusoids(self.length, width, options)
            if sinusoids
            else Embedding(_FIRST + self.length, width, options, rngs, std=config.init_std)
        )
        self.norm = None if sinusoids else LayerNorm(width, options)
        depth = config.decoder_layers if decoder else config.encoder_layers

        def block(rngs: nnx.Rngs) -> Block:
            return Block(config, options, rngs, decoder=decoder, before=before)

        self.layers = Stack(block, depth, options, rngs)
        self.last_norm = LayerNorm(width, options) if before else None

    def __call__(
        self, x: Float[Array, "batch time width"], mask: Array | None, *source: Array | None
    ) -> Float[Array, "batch time width"]:
        check_length(x.shape[1], self.length)
        memory: Start | None = getattr(self, "memory", None)
        first = (0 if isinstance(self.positions, Sinusoids) else _FIRST) + (0 if memory is None else memory.start[...])
        x = x + self.positions(first + jnp.arange(x.shape[1]))
        x = x if self.norm is None else self.norm(x)
        x = self.layers(x, mask, *source)
        return x if self.last_norm is None else self.last_norm(x)


class Sinusoids(nnx.Module):
    """Sines of every position in the first half of its vector, cosines in the second, from which it is learned.

    `transformers` freezes them in a new model, and trains them in one that is loaded, which is what is fine-tuned.
    """

    def __init__(self, length: int, width: int, options: Options) -> None:
        self.dtype = options.dtype
        self.embedding = nnx.Param(jnp.asarray(sinusoids(length, width), options.param_dtype))

    def __call__(self, positions: Int[Array, " time"]) -> Float[Array, "time width"]:
        return self.embedding[...][positions].astype(self.dtype)


def sinusoids(length: int, width: int) -> NDArray[np.float32]:
    """Sines, then cosines, of position / 10000^(2i / width) (arXiv 1706.03762, section 3.5), [length, width]."""
    angles = np.arange(length)[:, None] / np.power(10_000, 2 * np.arange(-(-width // 2)) / width)
    return np.concatenate([np.sin(angles), np.cos(angles)[:, : width // 2]], axis=1).astype(np.float32)


def module(
    config: Any, options: Options, rngs: nnx.Rngs, *, before: bool = False, sinusoids: bool = False
) -> EncoderDecoderLM:
    """The model; its blocks have their norms `before` attention and MLPs, or behind them; see `Side`."""

    def make_side(decoder: bool) -> Side:
        return Side(config, options, rngs, decoder=decoder, before=before, sinusoids=sinusoids)

    scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0
    return EncoderDecoderLM(config, make_side, options, rngs, std=config.init_std, embed_scale=scale)


def parameter_names(config: Any) -> ParameterNames:
    embed = "model.encoder.embed_tokens" if embeds_apart(config) else "model.shared"
    names = {"embed": embed, "decoder_embed": "model.decoder.embed_tokens", "head": "lm_head"}
    names |= {"logits_bias/bias": _LOGITS_BIAS}
    attention = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
    for side in ("encoder", "decoder"):
        block, theirs = f"{side}/layers/blocks", f"model.{side}.layers.{{layer}}"
        names |= {
            f"{side}/positions": f"model.{side}.embed_positions",
            f"{side}/norm": f"model.{side}.layernorm_embedding",
            f"{side}/last_norm": f"model.{side}.layer_norm",
            f"{block}/attention_norm": f"{theirs}.self_attn_layer_norm",
            f"{block}/cross_norm": f"{theirs}.encoder_attn_layer_norm",
            f"{block}/mlp/up": f"{theirs}.fc1",
            f"{block}/mlp/down": f"{theirs}.fc2",
            f"{block}/mlp_norm": f"{theirs}.final_layer_norm",
        }
        names |= {f"{block}/attention/{name}": f"{theirs}.self_attn.{part}" for name, part in attention.items()}
        names |= {f"{block}/cross/{name}": f"{theirs}.encoder_attn.{part}" for name, part in attention.items()}
    return names


FAMILY = register(
    Family(
        "bart",
        "BartForConditionalGeneration",
        module,
        parameter_names,
        ignored=(r"^lm_head\.weight$", r"(encoder|decoder)\.version$"),
        copies={f"model.{side}.embed_tokens.weight": "model.shared.weight" for side in ("encoder", "decoder")},
        zeros=lambda config: (
            {} if getattr(config, "has_logits_bias", False) else {_LOGITS_BIAS: (1, config.vocab_size)}
        ),
        two_embeddings=True,
        encoder_decoder=True,
        examples=("facebook/bart-base", "facebook/bart-large-cnn"),
    )
)
