"""Decoder-only language models with rotary positions: embedding, scanned blocks, norm, head."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lensjax.core.errors import InputError, shorten
from lensjax.models.layers import Bias, Embedding, LanguageModel, Linear, Stack
from lensjax.models.masks import both, positions, self_mask, window_mask
from lensjax.models.options import Options
from lensjax.models.rotary import Rotary

_KINDS = ("full_attention", "sliding_attention")


class DecoderLM(LanguageModel):
    """The skeleton that families with rotary positions share; their blocks differ.

    Blocks are called as block(x, mask, angles). Where layers differ in their attention window or their rotary
    embedding, each layer gets its own.

    Args:
      config: Hugging Face configuration.
      make_block: Makes one block from rngs.
      norm: The norm after the last block.
      rotary: The rotary embedding, or one for each kind of layer.
      layer_types: Whether each layer has "full_attention" or "sliding_attention", which goes back `sliding_window`
        positions; all full where not given.
      embed_scale: Factor of the embeddings.
      softcap: Squash logits to ±softcap through tanh.
      head_bias: Whether the head has a bias.

    Raises:
      InputError: the configuration asks for another kind of attention, or for a window whose size it does not give.
    """

    takes_segments = True

    def __init__(
        self,
        config: Any,
        make_block: Callable[[nnx.Rngs], nnx.Module],
        norm: nnx.Module,
        rotary: Rotary | Mapping[str, Rotary],
        options: Options,
        rngs: nnx.Rngs,
        *,
        layer_types: Sequence[str] | None = None,
        embed_scale: float = 1.0,
        softcap: float | None = None,
        head_bias: bool = False,
    ) -> None:
        width, vocabulary, std = config.hidden_size, config.vocab_size, config.initializer_range
        self.mesh, self.embed_scale, self.softcap = options.mesh, embed_scale, softcap
        self.kinds = _kinds(config, layer_types)
        self.window = config.sliding_window if 1 in self.kinds else None
        self.rotary = tuple(rotary[kind] if isinstance(rotary, Mapping) else rotary for kind in _KINDS)
        self.embed = Embedding(vocabulary, width, options, rngs, std=std)
        self.layers = Stack(make_block, config.num_hidden_layers, options, rngs)
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
        mask = self_mask(batch)
        window = self.window if self.window is not None and self.window < time else None
        masks = mask, mask if window is None else both(mask, window_mask(time, window))
        length = None if "position_ids" in batch or "segment_ids" in batch else time
        angles = [rotary(positions(batch), length) for rotary in self.rotary]
        if len(set(self.kinds)) == 1:
            kind = self.kinds[0]
            x = self.layers(x, masks[kind], angles[kind])
        else:
            dense = [both(mask, window_mask(time, time)) for mask in masks]
            choices = jax.tree.map(lambda *tables: jnp.stack(tables), *zip(dense, angles, strict=True))
            x = self.layers(x, *choices, kinds=jnp.array(self.kinds))
        return self.norm(x)

    def logits(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time vocabulary"]:
        """Scores of every token, given the output of the final norm."""
        y = super().logits(x)
        y = y if self.head_bias is None else self.head_bias(y)
        return y if self.softcap is None else self.softcap * jnp.tanh(y / self.softcap)


def _kinds(config: Any, layer_types: Sequence[str] | None) -> tuple[int, ...]:
    """Every layer's kind, as an index into `_KINDS`."""
    if not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", False):
        raise InputError(
            "is_causal is false or use_bidirectional_attention is true in config.json; LensJAX has decoder-only models "
            "whose tokens see only those before them."
        )
    types = [_KINDS[0]] * config.num_hidden_layers if layer_types is None else layer_types
    unknown = set(types) - set(_KINDS)
    if unknown:
        raise InputError(
            f"layer_types has '{shorten(min(unknown))}' in config.json; LensJAX knows {' and '.join(_KINDS)}."
        )
    if _KINDS[1] in types and config.sliding_window is None:
        raise InputError("layer_types has sliding_attention in config.json and sliding_window is null; give a window.")
    return tuple(_KINDS.index(kind) for kind in types)
