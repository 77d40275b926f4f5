"""What layers keep: those that mix tokens, of the ones that were read before; any, of a position that is asked for."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lensjax.models.masks import window_mask

# Of all layers of a stack: keys and values [layers, batch, slots, kv_heads, head_dim], or a state [layers, batch, …].
Kept = tuple[Array, ...]


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

    @property
    def lent(self) -> "Lent":
        """What other layers attend to, after this one has read; of a stack of a single layer."""
        return Lent(self.keys[...][0], self.values[...][0], self.start[...][0])


class State(nnx.Module):
    """What a layer that mixes tokens otherwise than by attention keeps of those before; see `Memory` for its axes."""

    def __init__(self, state: Array, start: Int[Array, " layers"]) -> None:
        self.state, self.start = Slot(state), Slot(start)


class Source(nnx.Module):
    """Keys and values that a layer attends to in every step: those of an encoder's tokens."""

    def __init__(self, keys: Array, values: Array) -> None:
        self.keys, self.values = Slot(keys), Slot(values)


class Lent(NamedTuple):
    """Keys and values of another layer's memory, where the new tokens' are already, and tokens read before these."""

    keys: Float[Array, "batch slots kv_heads dim"]
    values: Float[Array, "batch slots kv_heads dim"]
    start: Int[Array, ""]


class Start(nnx.Module):
    """Where the new tokens begin, for what depends on positions, and how many a row may have."""

    def __init__(self, start: Int[Array, "..."], slots: int) -> None:
        self.start, self.slots = Slot(start), slots


class Tap(nnx.Module):
    """The output of a layer at one position of each row."""

    def __init__(self, state: Array, at: Int[Array, "layers batch"]) -> None:
        self.state, self.at = Slot(state), Slot(at)


def seen(memory: Memory | Lent, time: int) -> Bool[Array, "1 1 time slots"]:
    """Which slots each of the new tokens may attend to, by causality."""
    slots = memory.keys[...].shape[1]
    return window_mask(time, slots, memory.start[...], slots)


def through(block: Any, x: Float[Array, "batch time width"], *shared: Any) -> Float[Array, "batch time width"]:
    """What a block makes of x, of which its tap keeps a part where it has one."""
    y: Array = block(x, *shared)
    tap: Tap | None = getattr(block, "tap", None)
    if tap is not None:
        tap.state.set_value(y[jnp.arange(len(y)), tap.at[...]])
    return y


def remember(layers: Sequence[Any], kept: Sequence[Kept], start: Int[Array, ""]) -> None:
    """Give layers what they kept.

    Args:
      layers: All parts of a model that keep something; of a stack of layers, one for all.
      kept: By each of them.
      start: Number of tokens read so far.
    """
    for layer, parts in zip(layers, kept, strict=True):
        before = jnp.broadcast_to(start, parts[0].shape[:1])
        layer.memory = State(parts[0], before) if len(parts) == 1 else Memory(parts[0], parts[1], before)


def remembered(layers: Sequence[Any]) -> list[Kept]:
    """What they keep now."""
    memories = [layer.memory for layer in layers]
    return [
        (memory.state[...],) if isinstance(memory, State) else (memory.keys[...], memory.values[...])
        for memory in memories
    ]
