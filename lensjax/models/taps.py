"""States between a model's layers, at one position of each row."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from lensjax.models.layers import LanguageModel, Stack
from lensjax.models.memory import Tap


def layer_states(
    module: LanguageModel, batch: Mapping[str, Array], at: Int[Array, " batch"]
) -> Float[Array, "layers batch width"]:
    """Output of every layer at one position of each row; of the decoder's layers where there is an encoder too.

    Args:
      module: A model of its own, which is given taps.
      batch: What its `hidden` takes.
      at: Positions.
    """
    side: Any = getattr(module, "decoder", module)
    layers = side.layers
    taps = [_tapped(stack, at) for stack in ([layers] if isinstance(layers, Stack) else layers.stacks)]
    module.hidden(batch)
    found = [jnp.stack([tap.state[...] for tap in group], axis=1) for group in taps]  # [groups, layers of each, …]
    return jnp.concatenate([states.reshape(-1, *states.shape[2:]) for states in found])


def _tapped(stack: Stack, at: Int[Array, " batch"]) -> list[Tap]:
    """Taps of the blocks of a stack: of one, or of each in a group that repeats."""
    depth = jax.tree.leaves(nnx.state(stack.blocks))[0].shape[0]
    blocks: list[Any] = list(getattr(stack.blocks, "blocks", [stack.blocks]))
    for block in blocks:
        block.tap = Tap(jnp.zeros(depth), jnp.broadcast_to(at, (depth, *at.shape)))
    return [block.tap for block in blocks]
