"""Where tokens are in their rows, and what each may attend to."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int

from lensjax.core.errors import InputError


def check_length(time: int, positions: int) -> None:
    """Refuse a sequence of more tokens than a model has learned positions.

    Raises:
      InputError: it is longer.
    """
    if time > positions:
        raise InputError(
            f"A sequence has {time} tokens, and the model has learned {positions} positions; shorten it, or pad less."
        )


def check_positions(batch: Mapping[str, Array], learned: int) -> None:
    """Refuse a batch with tokens beyond the positions that a model has learned.

    Where the batch says itself where tokens are, and is being traced, nobody knows; such tokens make NaN.

    Raises:
      InputError: there are such tokens.
    """
    if "position_ids" not in batch and "segment_ids" not in batch:
        check_length(batch["input_ids"].shape[1], learned)
        return
    places = positions(batch)
    if not isinstance(places, jax.core.Tracer) and int(places.max()) >= learned:
        raise InputError(
            f"A token is at position {int(places.max())}, and the model has learned {learned}, from 0 on; lower "
            f"{'position_ids' if 'position_ids' in batch else 'the length of segments'}."
        )


def check_causal(config: Any) -> None:
    """Refuse a configuration whose decoder sees tokens to come, which `transformers` makes of any model.

    Raises:
      InputError: it asks for that.
    """
    both_ways = getattr(config, "use_bidirectional_attention", False) not in (None, False, "vision")  # of images only
    if both_ways or not getattr(config, "is_causal", True):
        raise InputError(
            "is_causal is false or use_bidirectional_attention is true in config.json; LensJAX has decoders whose "
            "tokens see only those before them."
        )


def padding_mask(batch: Mapping[str, Array], key: str = "attention_mask") -> Bool[Array, "batch 1 1 source"] | None:
    """The positions that may be attended to: those that `attention_mask` marks; None where the batch has no mask."""
    return None if batch.get(key) is None else batch[key][:, None, None, :].astype(bool)


def self_mask(batch: Mapping[str, Array]) -> Bool[Array, "batch 1 #time time"] | None:
    """What the positions of a decoder may attend to, besides causality; None where that is everything.

    It is where `attention_mask` marks, and, in rows that hold several examples, within the segment that `segment_ids`
    numbers.
    """
    segments = batch.get("segment_ids")
    same = None if segments is None else (segments[:, :, None] == segments[:, None, :])[:, None]
    return both(padding_mask(batch), same)


def positions(batch: Mapping[str, Array]) -> Int[Array, "#batch time"]:
    """The position of every token: `position_ids`, or its place in the row, or in its segment, and 0 at padding."""
    if "position_ids" in batch:
        return batch["position_ids"]
    places = jnp.arange(batch["input_ids"].shape[1])[None, :]
    if "segment_ids" not in batch:
        return places
    segments = batch["segment_ids"]
    first = (segments != jnp.roll(segments, 1, axis=1)) & (places > 0)
    return jnp.where(segments > 0, places - jax.lax.cummax(jnp.where(first, places, 0), axis=1), 0)


def window_mask(
    time: int, window: int, start: Int[ArrayLike, ""] = 0, source: int | None = None
) -> Bool[Array, "1 1 time source"]:
    """Causal attention to the last `window` positions, including a position itself.

    Args:
      time: Number of positions that attend.
      window: See above.
      start: The first of them, among those that are attended to.
      source: Number of these; `time` where not given.
    """
    distance = (jnp.asarray(start) + jnp.arange(time))[:, None] - jnp.arange(time if source is None else source)[
        None, :
    ]
    return ((distance >= 0) & (distance < window))[None, None]


def both(first: Array | None, second: Array | None) -> Array | None:
    """The conjunction of two masks; None allows everything."""
    return second if first is None else first if second is None else first & second


@partial(jax.tree_util.register_dataclass, data_fields=("queries", "keys", "sliding"), meta_fields=("window",))
@dataclass(frozen=True)
class Sight:
    """What the positions of attention may attend to besides causality, without a mask of all pairs.

    Attributes:
      queries, keys: Numbers of positions, [batch, time] and [batch, source]: a position attends to those of its number.
        All queries have number 1 where there are none, and everything is attended to where there are no `keys`.
      window: Positions that one attends to at most, itself included; None for all.
      sliding: Whether the window counts, where that differs between layers.
    """

    queries: Int[Array, "batch time"] | None = None
    keys: Int[Array, "batch source"] | None = None
    sliding: Bool[Array, ""] | None = None
    window: int | None = None

    def dense(self, time: int, source: int | None = None) -> Bool[Array, "#batch 1 #time source"] | None:
        """The mask of all pairs; None where everything may be attended to."""
        same = None
        if self.keys is not None:
            queries = jnp.ones((1, 1), self.keys.dtype) if self.queries is None else self.queries
            same = (queries[:, :, None] == self.keys[:, None, :])[:, None]
        if self.window is None:
            return same
        near = window_mask(time, self.window, 0, source)
        if self.sliding is not None:
            near = near | ~self.sliding
        return both(same, near)


def sight(batch: Mapping[str, Array | None]) -> Sight:
    """What `self_mask` says, as a `Sight`."""
    padding, segments = batch.get("attention_mask"), batch.get("segment_ids")
    marked = None if padding is None else padding.astype(bool)
    if segments is None:
        return Sight(keys=None if marked is None else marked.astype(jnp.int32))
    return Sight(segments, segments if marked is None else jnp.where(marked, segments, -1))
