"""OPT (arXiv 2205.01068), and Galactica, which is built on it."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from lensjax.models.family import Family, register
from lensjax.models.layers import MLP, Attention, Embedding, LanguageModel, LayerNorm, Linear, Stack
from lensjax.models.masks import check_causal, check_positions, positions, self_mask, sight
from lensjax.models.options import Options
from lensjax.models.weights import ParameterNames

_OFFSET = 2  # rows of the position table before that of position 0


class Block(nnx.Module):
    def __init__(self, config: Any, options: Options, rngs: nnx.Rngs) -> None:
        width, bias, std = config.hidden_size, config.enable_bias, config.init_std
        self.norm_first = config.do_layer_norm_before
        self.attention_norm = layer_norm(config, options)
        self.attention = Attention(width, config.num_attention_heads, options, rngs, bias=bias, std=std)
        self.mlp_norm = layer_norm(config, options)
        self.mlp = MLP(width, config.ffn_dim, config.activation_function, options, rngs, bias=bias, std=std)

    def __call__(self, x: Float[Array, "batch time width"], mask: Array | None) -> Array:
        if self.norm_first:
            x = x + self.attention(self.attention_norm(x), mask)
            return x + self.mlp(self.mlp_norm(x))
        x = self.attention_norm(x + self.attention(x, mask))
        return self.mlp_norm(x + self.mlp(x))


class OPT(LanguageModel):
    """Learned positions, embeddings that may be narrower than the blocks, and norms before or (350m) after."""

    takes_segments = True

    def __init__(self, config: Any, options: Options, rngs: nnx.Rngs) -> None:
        check_causal(config)
        width, embed_width, std = config.hidden_size, config.word_embed_proj_dim, config.init_std
        self.mesh, self.length = options.mesh, config.max_position_embeddings
        self.fused = options.attention == "splash"
        self.embed = Embedding(config.vocab_size, embed_width, options, rngs, std=std)
        self.positions = Embedding(config.max_position_embeddings + _OFFSET, width, options, rngs, std=std)
        projected = embed_width != width
        self.project_in = Linear(embed_width, width, options, rngs, std=std) if projected else None
        self.layers = Stack(lambda rngs: Block(config, options, rngs), config.num_hidden_layers, options, rngs)
        normed = config.do_layer_norm_before and not config._remove_final_layer_norm
        self.norm = layer_norm(config, options) if normed else None
        self.project_out = Linear(width, embed_width, options, rngs, std=std) if projected else None
        tied = config.tie_word_embeddings
        self.head = None if tied else Linear(embed_width, config.vocab_size, options, rngs, std=std)

    def hidden(self, batch: Mapping[str, Array]) -> Float[Array, "batch time width"]:
        """What the head reads at every position of `input_ids`."""
        check_positions(batch, self.length)
        x = self.embed(batch["input_ids"])
        x = x if self.project_in is None else self.project_in(x)
        mask = sight(batch) if self.fused else self_mask(batch)
        x = self.layers(x + self.positions(_positions(batch) + _OFFSET), mask)
        x = x if self.norm is None else self.norm(x)
        return x if self.project_out is None else self.project_out(x)


def layer_norm(config: Any, options: Options) -> LayerNorm:
    affine = config.layer_norm_elementwise_affine
    return LayerNorm(config.hidden_size, options, scale=affine, bias=affine)


def parameter_names(config: Any) -> ParameterNames:
    block = {
        "attention_norm": "self_attn_layer_norm",
        **{f"attention/{name}": f"self_attn.{name}_proj" for name in "qkv"},
        "attention/o": "self_attn.out_proj",
        "mlp_norm": "final_layer_norm",
        "mlp/up": "fc1",
        "mlp/down": "fc2",
    }
    ends = {
        "embed": "embed_tokens",
        "positions": "embed_positions",
        "project_in": "project_in",
        "norm": "final_layer_norm",
        "project_out": "project_out",
    }
    layers = {f"layers/blocks/{ours}": f"model.decoder.layers.{{layer}}.{theirs}" for ours, theirs in block.items()}
    return {**layers, **{ours: f"model.decoder.{theirs}" for ours, theirs in ends.items()}, "head": "lm_head"}


def _positions(batch: Mapping[str, Array]) -> Int[Array, "#batch time"]:
    """Each token's position, by default how many tokens `attention_mask` marks before it, and −1 at padding."""
    if "attention_mask" not in batch or "position_ids" in batch or "segment_ids" in batch:
        return positions(batch)
    marked = batch["attention_mask"].astype(jnp.int32)
    return jnp.cumsum(marked, axis=1) * marked - 1


register(
    Family(
        "opt",
        "OPTForCausalLM",
        OPT,
        parameter_names,
        examples=("facebook/opt-125m", "facebook/opt-350m", "facebook/galactica-125m"),
    )
)
