"""The end of a language model in chunks of tokens, so that no logits of a whole batch are held.

They are the largest array there is: those of GPT-2 for 8 × 512 tokens take 0.8 GB, and a product with the Hessian has
five arrays of that size at a time. Wherever logits are only a means, those of a chunk are computed, used, and
forgotten; the backward pass computes them again, or, in a training step, is done with them at once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from lensjax.core.pytrees import PyTree
from lensjax.models.losses import IGNORED

# Logits that a device holds at a time. Gradients of the head are summed up chunk by chunk, which reads and writes all
# of it: an accelerator needs more tokens than a CPU to take longer over the products themselves.
_HELD = {"cpu": 2**25}
_ACCELERATOR = 2**28


@dataclass(frozen=True)
class Chunks:
    """Tokens of a batch, [batch, time], in chunks.

    Attributes:
      batch, time: Shape of the batch.
      shards: Number of devices that share its rows; each has its part of every chunk.
      count: Number of chunks.
      size: Tokens of a chunk and a device; the last chunk is filled up with tokens that are no targets.
    """

    batch: int
    time: int
    shards: int
    count: int
    size: int

    def split(self, x: Array, fill: int = 0) -> Array:
        """[batch, time, …] → [count, shards, size, …]."""
        each = self.batch // self.shards * self.time
        flat = x.reshape(self.shards, each, *x.shape[2:])
        widths = [(0, 0), (0, self.count * self.size - each), *[(0, 0)] * (x.ndim - 2)]
        padded = jnp.pad(flat, widths, constant_values=fill)
        return jnp.moveaxis(padded.reshape(self.shards, self.count, self.size, *x.shape[2:]), 1, 0)

    def join(self, y: Array) -> Array:
        """[count, shards, size, …] → [batch, time, …]."""
        each = self.batch // self.shards * self.time
        flat = jnp.moveaxis(y, 0, 1).reshape(self.shards, self.count * self.size, *y.shape[3:])
        return flat[:, :each].reshape(self.batch, self.time, *y.shape[3:])


def chunks_of(shape: tuple[int, ...], vocabulary: int, mesh: Mesh | None) -> Chunks | None:
    """The chunks of a batch of that shape, of about equal size; None where its logits may be held as a whole.

    Args:
      shape: (batch, time).
      vocabulary: Number of logits of a token.
      mesh: See `Options`.
    """
    batch, time = shape
    split = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    shards = split if batch % split == 0 else 1
    tokens = batch // shards * time
    count = -(-tokens // _most_tokens(vocabulary, mesh))
    return None if count < 2 else Chunks(batch, time, shards, count, -(-tokens // count))


def by_chunks(f: Callable[..., PyTree], chunks: Chunks | None, x: Array, targets: Array, *more: Array) -> PyTree:
    """f(x, targets, *more) of all tokens, whose results have axes [batch, time], a chunk at a time.

    The backward pass computes f again. All derivatives of all orders are exact: it is a loop like any other.

    Args:
      f: (what the head reads, targets, *more) → pytree of arrays with their first two axes.
      chunks: See `chunks_of`.
      x, targets: [batch, time, width] and [batch, time].
      more: What else belongs to tokens, [batch, time, …].
    """
    if chunks is None:
        return f(x, targets, *more)
    again = jax.checkpoint(f, prevent_cse=False)
    others = tuple(chunks.split(each) for each in more)
    made = jax.lax.map(lambda chunk: again(*chunk), (chunks.split(x), chunks.split(targets, IGNORED), *others))
    return jax.tree.map(chunks.join, made)


def summed_wide(head: PyTree) -> PyTree:
    """Parameters in float32 or wider, so that sums of their gradients over chunks are; values stay as they are."""
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), head)


def _most_tokens(vocabulary: int, mesh: Mesh | None) -> int:
    """Tokens of a chunk on a device, at most."""
    platform = mesh.devices.flat[0].platform if isinstance(mesh, Mesh) else jax.default_backend()
    parts = 1 if mesh is None or vocabulary % mesh.shape["tensor"] else mesh.shape["tensor"]
    return max(1, _HELD.get(platform, _ACCELERATOR) * parts // vocabulary)
