"""Decoder-only language models with rotary positions: embedding, scanned blocks, norm, head."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lensjax.models.layers import Embedding, Linear, Stack, both, padding_mask, window_mask
from lensjax.models.options import Options
from lensjax.models.rotary import Rotary
from lensjax.models.sharding import constrain_activations

_KINDS = ("full_attention", "sliding_attention")  # of layers, as `layer_types` names them


class DecoderLM(nnx.Module):
    """The skeleton shared by the families with rotary positions; what differs is the block.

    Blocks are called as block(x, mask, angles). Where layers differ in their attention window or their rotary
    embedding, each layer is handed its own.

    Args:
      config: Hugging Face configuration; `layer_types`, where it has any, says which layers slide.
      make_block: Makes one block from rngs.
      norm: The norm after the last block.
      rotary: The rotary embedding, or one for each kind of layer.
      embed_scale: What embeddings are multiplied by.
      softcap: Squash logits to ±softcap through tanh.
      head_bias: Whether the head has a bias.
    """

    def __init__(
        self,
        config: Any,
        make_block: Callable[[nnx.Rngs], nnx.Module],
        norm: nnx.Module,
        rotary: Rotary | Mapping[str, Rotary],
        options: Options,
        rngs: nnx.Rngs,
        *,
        embed_scale: float = 1.0,
        softcap: float | None = None,
        head_bias: bool = False,
    ) -> None:
        width, vocabulary, std = config.hidden_size, config.vocab_size, config.initializer_range
        self.mesh, self.embed_scale, self.softcap = options.mesh, embed_scale, softcap
        self.window = getattr(config, "sliding_window", None)
        everywhere = _KINDS[self.window is not None]
        kinds = getattr(config, "layer_types", None) or [everywhere] * config.num_hidden_layers
        self.kinds = tuple(_KINDS.index(kind) for kind in kinds)
        self.rotary = tuple(rotary[kind] if isinstance(rotary, Mapping) else rotary for kind in _KINDS)
        self.embed = Embedding(vocabulary, width, options, rngs, std=std)
        self.layers = Stack(make_block, config.num_hidden_layers, options, rngs)
        self.norm = norm
        tied = config.tie_word_embeddings
        self.head = None if tied else Linear(width, vocabulary, options, rngs, bias=head_bias, std=std)

    def __call__(self, batch: Mapping[str, Array]) -> Float[Array, "batch time vocabulary"]:
        """Logits of the next token at every position of `input_ids`."""
        ids = batch["input_ids"]
        time = ids.shape[1]
        positions = batch.get("position_ids", jnp.arange(time)[None, :])
        x = self.embed(ids)
        x = x * jnp.asarray(self.embed_scale, x.dtype)
        padding = padding_mask(batch)
        window = self.window if self.window is not None and self.window < time else None
        masks = padding, padding if window is None else both(padding, window_mask(time, window))
        angles = [rotary(positions) for rotary in self.rotary]
        if len(set(self.kinds)) == 1:
            kind = self.kinds[0]
            x = self.layers(x, masks[kind], angles[kind])
        else:
            dense = [both(mask, window_mask(time, time)) for mask in masks]
            choices = jax.tree.map(lambda *tables: jnp.stack(tables), *zip(dense, angles, strict=True))
            x = self.layers(x, *choices, kinds=jnp.array(self.kinds))
        return self.logits(self.norm(x))

    def logits(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time vocabulary"]:
        """Scores of every token, from what the final norm gives."""
        y = self.embed.logits(x) if self.head is None else self.head(x)
        y = constrain_activations(y, self.mesh, "tensor")
        return y if self.softcap is None else self.softcap * jnp.tanh(y / self.softcap)
