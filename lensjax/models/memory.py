"""What layers keep: attention, of the tokens that were read before; any, of a position that is asked for."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lensjax.models.masks import window_mask

Kept = tuple[Array, Array]  # keys and values of all layers of a stack, [layers, batch, slots, kv_heads, head_dim]


class Slot(nnx.Variable[Any]):
    """Keys, values, and the number of tokens that were read before these; or a state and its positions."""


class Memory(nnx.Module):
    """Keys and values of an attention layer, in as many slots as a row may have tokens.

    Variables of a stack of layers have a leading axis of them, as its parameters do.
    """

    def __init__(self, keys: Array, values: Array, start: Int[Array, " layers"]) -> None:
        self.keys, self.values, self.start = Slot(keys), Slot(values), Slot(start)

    def extended(
        self, k: Float[Array, "batch time kv_heads dim"], v: Float[Array, "batch time kv_heads dim"]
    ) -> tuple[Float[Array, "batch slots kv_heads dim"], Float[Array, "batch slots kv_heads dim"]]:
        """Those of all slots, after the new ones are written where the last ones end."""
        at = (0, self.start[...], 0, 0)
        self.keys[...] = jax.lax.dynamic_update_slice(self.keys[...], k.astype(self.keys[...].dtype), at)
        self.values[...] = jax.lax.dynamic_update_slice(self.values[...], v.astype(self.values[...].dtype), at)
        return self.keys[...], self.values[...]

    def seen(self, time: int) -> Bool[Array, "1 1 time slots"]:
        """Which slots each of the new tokens may attend to, by causality."""
        slots = self.keys[...].shape[1]
        return window_mask(time, slots, self.start[...], slots)


class Source(nnx.Module):
    """Keys and values that a layer attends to in every step: those of an encoder's tokens."""

    def __init__(self, keys: Array, values: Array) -> None:
        self.keys, self.values = Slot(keys), Slot(values)


class Start(nnx.Module):
    """Where the new tokens begin, for what depends on positions, and how many a row may have."""

    def __init__(self, start: Int[Array, "..."], slots: int) -> None:
        self.start, self.slots = Slot(start), slots


class Tap(nnx.Module):
    """The output of a layer at one position of each row."""

    def __init__(self, state: Array, at: Int[Array, "layers batch"]) -> None:
        self.state, self.at = Slot(state), Slot(at)


def through(block: Any, x: Float[Array, "batch time width"], *shared: Any) -> Float[Array, "batch time width"]:
    """What a block makes of x, of which its tap keeps a part where it has one."""
    y: Array = block(x, *shared)
    tap: Tap | None = getattr(block, "tap", None)
    if tap is not None:
        tap.state.set_value(y[jnp.arange(len(y)), tap.at[...]])
    return y


def remember(layers: Sequence[Any], kept: Sequence[Kept], start: Int[Array, ""]) -> None:
    """Give attention layers the keys and values that they kept.

    Args:
      layers: The causal attention of a model; of a stack of layers, one for all.
      kept: Of each of them.
      start: Number of tokens read so far.
    """
    for layer, (keys, values) in zip(layers, kept, strict=True):
        layer.memory = Memory(keys, values, jnp.broadcast_to(start, keys.shape[:1]))


def remembered(layers: Sequence[Any]) -> list[Kept]:
    """What they keep now."""
    return [(layer.memory.keys[...], layer.memory.values[...]) for layer in layers]
