"""Decoder-only language models with rotary positions: embedding, scanned blocks, norm, head."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lensjax.core.errors import InputError, shorten
from lensjax.models.layers import Bias, Embedding, LanguageModel, Linear, Stack
from lensjax.models.masks import both, check_causal, positions, self_mask, sight, window_mask
from lensjax.models.options import Options
from lensjax.models.rotary import Rotary
from lensjax.models.segments import Segments

FULL, SLIDING = "full_attention", "sliding_attention"


class DecoderLM(LanguageModel):
    """The skeleton that families with rotary positions share; their blocks differ.

    Blocks are called as block(x, mask, angles). Where layers differ in their attention window or their rotary
    embedding, each layer gets its own; layers whose blocks are of one type have the same there.

    Args:
      config: Hugging Face configuration.
      make_block: Makes one block from rngs, or does so for each type of block; or all blocks, called as
        blocks(x, input_ids, {type of layer: (mask, angles)}).
      norm: The norm after the last block.
      rotary: The rotary embedding, or one for each type of layer, of which None rotates nothing.
      layer_types: Whether each layer has "full_attention" or "sliding_attention", which goes back `sliding_window`
        positions; all full where not given.
      rotary_types: The type of every layer for `rotary`, where that is not `layer_types`.
      block_types: The type of every layer for `make_block`, where there are several.
      embed_scale: Factor of the embeddings.
      logit_scale: Factor of the logits.
      softcap: Squash logits to ±softcap through tanh.
      head_bias: Whether the head has a bias.

    Raises:
      InputError: the configuration asks for another kind of attention, or for a window whose size it does not give.
    """

    takes_segments = True

    def __init__(
        self,
        config: Any,
        make_block: Callable[[nnx.Rngs], nnx.Module] | Mapping[str, Callable[[nnx.Rngs], nnx.Module]] | nnx.Module,
        norm: nnx.Module,
        rotary: Rotary | Mapping[str, Rotary | None],
        options: Options,
        rngs: nnx.Rngs,
        *,
        layer_types: Sequence[str] | None = None,
        rotary_types: Sequence[str] | None = None,
        block_types: Sequence[str] | None = None,
        embed_scale: float = 1.0,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        head_bias: bool = False,
    ) -> None:
        width, vocabulary, std = config.hidden_size, config.vocab_size, config.initializer_range
        self.mesh, self.embed_scale, self.logit_scale, self.softcap = options.mesh, embed_scale, logit_scale, softcap
        types = _checked_types(config, layer_types)
        self.types = tuple(types)
        self.window = config.sliding_window if SLIDING in types else None
        rotary_types = types if rotary_types is None else rotary_types
        layers = [
            (kind == SLIDING, rotary[turned] if isinstance(rotary, Mapping) else rotary)
            for kind, turned in zip(types, rotary_types, strict=True)
        ]
        self.kinds = tuple(dict.fromkeys(layers))  # whether attention has a window, and what rotates: each once
        self.kind_of_layer = tuple(self.kinds.index(layer) for layer in layers)
        self.embed = Embedding(vocabulary, width, options, rngs, std=std)
        self.block_types = () if block_types is None else tuple(block_types)
        several = isinstance(make_block, nnx.Module) or len(set(self.block_types)) > 1
        self.fused = options.attention == "splash" and not several  # layers of other kinds read masks too
        self.layers: Any
        if isinstance(make_block, nnx.Module):
            self.layers = make_block
        elif isinstance(make_block, Mapping) and len(set(self.block_types)) > 1:
            self.layers = Segments(self.block_types, make_block, options, rngs)
        else:
            only = make_block[self.block_types[0]] if isinstance(make_block, Mapping) else make_block
            self.layers = Stack(only, config.num_hidden_layers, options, rngs)
        self.norm = norm
        tied = config.tie_word_embeddings
        self.head = None if tied else Linear(width, vocabulary, options, rngs, bias=head_bias, std=std)
        self.head_bias = Bias((vocabulary,), options) if tied and head_bias else None

    def hidden(self, batch: Mapping[str, Array]) -> Float[Array, "batch time width"]:
        """What the head reads at every position of `input_ids`."""
        ids = batch["input_ids"]
        time = ids.shape[1]
        x = self.embed(ids)
        x = x * jnp.asarray(self.embed_scale, x.dtype)
        fused = self.fused and "start" not in batch
        mask: Any = sight(batch) if fused else self_mask(batch)
        start, source = batch.get("start", 0), time if "start" not in batch else batch["attention_mask"].shape[1]
        window = self.window if self.window is not None and self.window < source else None
        if fused:
            masks = mask, replace(mask, window=window)
        else:
            masks = mask, mask if window is None else both(mask, window_mask(time, window, start, source))
        length = None if "position_ids" in batch or "segment_ids" in batch else time
        angles = {rotary: rotary(positions(batch), length) for _, rotary in self.kinds if rotary is not None}
        own = [(masks[sliding], None if rotary is None else angles[rotary]) for sliding, rotary in self.kinds]
        if isinstance(self.layers, Segments):
            kinds = zip(self.block_types, self.kind_of_layer, strict=True)
            x = self.layers(x, {block: own[kind] for block, kind in kinds})
        elif not isinstance(self.layers, Stack):
            kinds = zip(self.types, self.kind_of_layer, strict=True)
            x = self.layers(x, ids, {type_of_layer: own[kind] for type_of_layer, kind in kinds})
        elif len(self.kinds) == 1:
            x = self.layers(x, *own[0])
        else:
            still = jax.tree.map(jnp.zeros_like, next(iter(angles.values())))
            still = jnp.ones_like(still[0]), *still[1:]  # cosines and sines that rotate nothing
            if fused:
                each = [replace(masks[1], sliding=jnp.asarray(slides)) for slides in (False, True)]
            else:  # of the same shape
                each = [both(mask, window_mask(time, source, start, source)) for mask in masks]
            tables = [(each[sliding], still if rotary is None else angles[rotary]) for sliding, rotary in self.kinds]
            choices = jax.tree.map(lambda *tables: jnp.stack(tables), *tables)
            x = self.layers(x, *choices, kinds=jnp.array(self.kind_of_layer))
        return self.norm(x)

    def logits(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time vocabulary"]:
        """Scores of every token, given the output of the final norm."""
        y = super().logits(x)
        y = y if self.head_bias is None else self.head_bias(y)
        y = y if self.logit_scale == 1 else y * jnp.asarray(self.logit_scale, y.dtype)
        return y if self.softcap is None else self.softcap * jnp.tanh(y / self.softcap)


def _checked_types(config: Any, layer_types: Sequence[str] | None) -> Sequence[str]:
    """Every layer's type of attention."""
    check_causal(config)
    types = [FULL] * config.num_hidden_layers if layer_types is None else layer_types
    unknown = set(types) - {FULL, SLIDING}
    if unknown:
        raise InputError(
            f"layer_types has '{shorten(min(unknown))}' in config.json; LensJAX knows {FULL} and {SLIDING}."
        )
    if SLIDING in types and config.sliding_window is None:
        raise InputError("layer_types has sliding_attention in config.json and sliding_window is null; give a window.")
    return types
