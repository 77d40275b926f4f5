"""T5 and Flan-T5 (arXiv 1910.10683, 2210.11416)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from numpy.typing import NDArray

from lensjax.models.encoder_decoder import EncoderDecoderLM
from lensjax.models.family import Family, register
from lensjax.models.layers import MLP, Attention, Embedding, Linear, RMSNorm, Stack
from lensjax.models.memory import Start
from lensjax.models.options import Options
from lensjax.models.weights import ParameterNames, Stored

_WIDE = jnp.float32
Heads = Float[Array, "1 heads time source"]


class RelativeBias(Embedding):
    """What each head adds to the score of two positions, by the bucket that their distance is in."""

    memory: Start  # only where a model writes

    def __init__(self, config: Any, options: Options, rngs: nnx.Rngs, *, causal: bool) -> None:
        buckets, std = config.relative_attention_num_buckets, config.initializer_factor * config.d_model**-0.5
        super().__init__(buckets, config.num_heads, options, rngs, std=std)
        self.causal, self.buckets, self.furthest = causal, buckets, config.relative_attention_max_distance

    def scores(self, time: int) -> Heads:
        """The bias of every pair of `time` positions, or of these and all slots of a decoder that remembers."""
        memory: Start | None = getattr(self, "memory", None)
        slots, start = (time, 0) if memory is None else (memory.slots, memory.start[...])
        distances = np.arange(1 - slots, slots)
        biases = self(jnp.asarray(relative_buckets(distances, self.buckets, self.furthest, causal=self.causal)))
        places = start + jnp.arange(time)
        return biases[jnp.arange(slots)[None, :] - places[:, None] + slots - 1].transpose(2, 0, 1)[None]


class Block(nnx.Module):
    """Attention onto itself, in the decoder also onto the encoder, and an MLP, each with its norm in front.

    With `biased` it has a relative bias of its own in place of one that all layers share.
    """

    def __init__(
        self,
        config: Any,
        mlp: nnx.Module,
        options: Options,
        rngs: nnx.Rngs,
        *,
        decoder: bool,
        biased: bool = False,
    ) -> None:
        def norm() -> RMSNorm:
            return RMSNorm(config.d_model, options, eps=config.layer_norm_epsilon)

        self.bias = RelativeBias(config, options, rngs, causal=decoder) if biased else None
        self.attention_norm = norm()
        self.attention = attention(config, options, rngs, causal=decoder)
        self.cross_norm = norm() if decoder else None
        self.cross = attention(config, options, rngs, causal=False) if decoder else None
        self.mlp_norm = norm()
        self.mlp = mlp

    def __call__(
        self,
        x: Float[Array, "batch time width"],
        mask: Array | None,
        bias: Heads | None,
        source: Float[Array, "batch source width"] | None = None,
        source_mask: Array | None = None,
    ) -> Array:
        bias = bias if self.bias is None else self.bias.scores(x.shape[1])
        x = x + _clamped(self.attention(self.attention_norm(x), mask, bias=bias))
        if self.cross is not None and self.cross_norm is not None:
            x = x + _clamped(self.cross(self.cross_norm(x), source_mask, source=source))
        return x + self.mlp(self.mlp_norm(x))


class Side(nnx.Module):
    """The encoder or the decoder: layers, a bias for relative positions if they share one, and a norm."""

    def __init__(
        self, config: Any, layers: nnx.Module, options: Options, rngs: nnx.Rngs, *, decoder: bool, biased: bool
    ) -> None:
        self.bias = RelativeBias(config, options, rngs, causal=decoder) if biased else None
        self.layers = layers
        self.norm = RMSNorm(config.d_model, options, eps=config.layer_norm_epsilon)

    def __call__(
        self, x: Float[Array, "batch time width"], mask: Array | None, *source: Array | None
    ) -> Float[Array, "batch time width"]:
        x = x.astype(_WIDE) if x.dtype == jnp.float16 else x  # as the sum is from the first MLP on
        bias = None if self.bias is None else self.bias.scores(x.shape[1])
        return self.norm(self.layers(x, mask, bias, *source))


def attention(config: Any, options: Options, rngs: nnx.Rngs, *, causal: bool) -> Attention:
    """Attention whose scores are not scaled, and whose queries start small instead."""
    width, heads, dim = config.d_model, config.num_heads, config.d_kv
    std = config.initializer_factor * width**-0.5
    made = Attention(width, heads, options, rngs, head_dim=dim, causal=causal, scale=1.0, std=std)
    made.q.kernel[...] *= dim**-0.5
    made.o.kernel[...] *= math.sqrt(width / (heads * dim))
    return made


def dense(config: Any, options: Options, rngs: nnx.Rngs, *, gated: bool = False, wide_out: bool = False) -> MLP:
    """The MLP of a block; `wide_out` keeps its last map in float32 where all else is in float16, which it exceeds."""
    width, hidden, std = config.d_model, config.d_ff, config.initializer_factor * config.d_model**-0.5
    made = MLP(width, hidden, config.dense_act_fn, options, rngs, gated=gated, std=std)
    if wide_out and options.dtype == jnp.float16:
        made.down = Linear(hidden, width, _wide(options), rngs, std=std)
    made.down.kernel[...] *= math.sqrt(width / hidden)
    return made


def _wide(options: Options) -> Options:
    return replace(options, dtype=np.dtype(_WIDE), param_dtype=np.promote_types(options.param_dtype, _WIDE))


def _clamped(x: Array) -> Array:
    """The same, with what is beyond float16 at its ends."""
    return jnp.clip(x, jnp.finfo(x.dtype).min, jnp.finfo(x.dtype).max) if x.dtype == jnp.float16 else x


def relative_buckets(distances: NDArray[np.int_], buckets: int, furthest: int, *, causal: bool) -> NDArray[np.int_]:
    """The bucket of every distance, from a position to the one it attends to.

    Half of the buckets are single distances, the others grow logarithmically up to `furthest`; all beyond share the
    last. Where attention is causal, all buckets are for the past, and else half of them for either direction.
    """
    half = 0 if causal else buckets // 2
    steps = np.maximum(-distances, 0) if causal else np.abs(distances)
    count = buckets - half
    single = count // 2
    growth = np.log(np.maximum(steps, single) / single) / math.log(furthest / single)
    far = np.minimum(single + (growth * (count - single)).astype(int), count - 1)
    return half * (distances > 0) + np.where(steps < single, steps, far)


def side_names(side: str) -> ParameterNames:
    """The names of an encoder's or a decoder's parameters outside its layers."""
    return {
        f"{side}/bias": f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias",
        f"{side}/norm": f"{side}.final_layer_norm",
    }


def block_names(path: str, side: str, mlp: Mapping[str, str], first: int = 0, step: int = 1) -> ParameterNames:
    """The names of the parameters of the blocks at `path`, which are number first + step·i of the checkpoint's side.

    `mlp` maps the parts of our MLP to those of Hugging Face's.
    """
    parts = {"attention_norm": "layer.0.layer_norm"}
    parts |= {f"attention/{name}": f"layer.0.SelfAttention.{name}" for name in "qkvo"}
    if side == "decoder":
        parts |= {"cross_norm": "layer.1.layer_norm"}
        parts |= {f"cross/{name}": f"layer.1.EncDecAttention.{name}" for name in "qkvo"}
    last = "layer.2" if side == "decoder" else "layer.1"
    parts |= {"mlp_norm": f"{last}.layer_norm"} | {f"mlp/{ours}": f"{last}.{theirs}" for ours, theirs in mlp.items()}
    return {
        f"{path}/{ours}": Stored(f"{side}.block.{{layer}}.{theirs}", first=first, step=step)
        for ours, theirs in parts.items()
    }


def build(
    config: Any,
    make_layers: Callable[[bool], nnx.Module],
    options: Options,
    rngs: nnx.Rngs,
    *,
    scaled: bool,
    shared_bias: bool = True,
) -> EncoderDecoderLM:
    """A model whose layers `make_layers` makes, of the decoder if its argument is true, else of the encoder.

    `scaled` says whether the decoder's output is divided by √width for the head, and `shared_bias` whether the layers
    of a side share their relative bias.
    """

    def make_side(decoder: bool) -> Side:
        return Side(config, make_layers(decoder), options, rngs, decoder=decoder, biased=shared_bias)

    scale = config.d_model**-0.5 if scaled else 1.0
    return EncoderDecoderLM(config, make_side, options, rngs, std=config.initializer_factor, head_scale=scale)


def module(config: Any, options: Options, rngs: nnx.Rngs, *, shared_bias: bool = True) -> EncoderDecoderLM:
    """See `build`."""

    def make_layers(decoder: bool) -> Stack:
        def block(rngs: nnx.Rngs) -> Block:
            mlp = dense(config, options, rngs, gated=config.is_gated_act, wide_out=True)
            return Block(config, mlp, options, rngs, decoder=decoder, biased=not shared_bias)

        return Stack(block, config.num_decoder_layers if decoder else config.num_layers, options, rngs)

    # T5 1.1 and mT5 do not scale what their head reads; only T5's configuration can ask for it.
    scaled = getattr(config, "scale_decoder_outputs", False)
    return build(config, make_layers, options, rngs, scaled=scaled, shared_bias=shared_bias)


def parameter_names(config: Any) -> ParameterNames:
    gated = {"gate": "DenseReluDense.wi_0", "up": "DenseReluDense.wi_1"}
    mlp = (gated if config.is_gated_act else {"up": "DenseReluDense.wi"}) | {"down": "DenseReluDense.wo"}
    names: dict[str, str | Stored] = {"embed": "shared", "head": "lm_head"}
    for side in ("encoder", "decoder"):
        names |= side_names(side)
        names |= block_names(f"{side}/layers/blocks", side, mlp)
    return names


COPIES = {f"{side}.embed_tokens.weight": "shared.weight" for side in ("encoder", "decoder")}

FAMILY = register(
    Family(
        "t5",
        "T5ForConditionalGeneration",
        module,
        parameter_names,
        prefix="",
        ignored=(
            r"^lm_head\.weight$",
            r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",
        ),
        copies=COPIES,
        encoder_decoder=True,
        examples=("google-t5/t5-small", "google/flan-t5-base", "MBZUAI/LaMini-Flan-T5-248M"),
    )
)
