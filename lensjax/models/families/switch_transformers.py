"""Switch Transformer (arXiv 2101.03961): T5 in which some MLPs are many, and every token passes through one."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from lensjax.core.pytrees import PyTree
from lensjax.models.encoder_decoder import EncoderDecoderLM
from lensjax.models.families.t5 import COPIES, Block, block_names, build, dense, side_names
from lensjax.models.family import Family, embeds_apart, register
from lensjax.models.layers import Linear, Stack
from lensjax.models.memory import through
from lensjax.models.options import Options
from lensjax.models.weights import ParameterNames, Stored

_DENSE = {"up": "mlp.wi", "down": "mlp.wo"}
_SPARSE = {"router": "mlp.router.classifier"} | {
    f"experts/{ours}": f"mlp.experts.expert_{{expert}}.{theirs}" for ours, theirs in (("up", "wi"), ("down", "wo"))
}


class Experts(nnx.Module):
    """Passes every token through the MLP that a router finds most probable, times that probability.

    An expert has room for the first `expert_capacity` tokens of a sequence that choose it, padding included; its output
    for the others is 0. There is no jitter, and the losses that balance experts are not part of the model's loss.
    """

    def __init__(self, config: Any, options: Options, rngs: nnx.Rngs) -> None:
        wide = replace(options, dtype=jnp.promote_types(options.dtype, config.router_dtype))
        self.capacity = config.expert_capacity
        std = config.initializer_factor
        self.router = Linear(config.d_model, config.num_experts, wide, rngs, bias=config.router_bias, std=std)
        make = nnx.vmap(lambda rngs: dense(config, options, rngs))
        self.experts = nnx.split_rngs(splits=config.num_experts)(make)(rngs)

    def __call__(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
        probabilities = jax.nn.softmax(self.router(x)).astype(x.dtype)
        experts = probabilities.shape[-1]
        expert = jnp.argmax(probabilities, axis=-1)
        chosen = jax.nn.one_hot(expert, experts, dtype=jnp.int32)
        slot = (jnp.cumsum(chosen, axis=1) * chosen).sum(-1) - 1  # how many tokens before chose the same expert
        size = experts, min(self.capacity, x.shape[1]), x.shape[2]

        def dispatch(x: Array, expert: Int[Array, " time"], slot: Int[Array, " time"]) -> Array:
            return jnp.zeros(size, x.dtype).at[expert, slot].add(x, mode="drop", unique_indices=True)

        def combine(y: Array, expert: Int[Array, " time"], slot: Int[Array, " time"]) -> Array:
            return y.at[expert, slot].get(mode="fill", fill_value=0, unique_indices=True)

        graphdef, params = nnx.split(self.experts)
        y = jax.vmap(dispatch)(x, expert, slot)
        y = jax.vmap(lambda params, y: nnx.merge(graphdef, params)(y), in_axes=(0, 1), out_axes=1)(params, y)
        y = jax.vmap(combine)(y, expert, slot)
        return y * jnp.take_along_axis(probabilities, expert[..., None], axis=-1)


class Group(nnx.Module):
    """Blocks one after another."""

    def __init__(self, blocks: list[Block]) -> None:
        self.blocks = nnx.List(blocks)

    def __call__(self, x: Float[Array, "batch time width"], *shared: PyTree) -> Float[Array, "batch time width"]:
        for block in self.blocks:
            x = through(block, x, *shared)
        return x


class Layers(nnx.Module):
    """Layers of which one in every few has experts: a stack of equal groups, and the layers left over."""

    def __init__(self, config: Any, decoder: bool, options: Options, rngs: nnx.Rngs) -> None:
        def group(kinds: tuple[bool, ...], rngs: nnx.Rngs) -> Group:
            mlps = [Experts(config, options, rngs) if kind else dense(config, options, rngs) for kind in kinds]
            return Group([Block(config, mlp, options, rngs, decoder=decoder) for mlp in mlps])

        kinds, count, rest = pattern(config, decoder)
        self.groups = Stack(lambda rngs: group(kinds, rngs), count, options, rngs)
        self.rest = Stack(lambda rngs: group(kinds[:rest], rngs), 1, options, rngs) if rest else None

    @property
    def stacks(self) -> list[Stack]:
        """In the order of layers."""
        return [self.groups] if self.rest is None else [self.groups, self.rest]

    def __call__(self, x: Float[Array, "batch time width"], *shared: PyTree) -> Float[Array, "batch time width"]:
        for stack in self.stacks:
            x = stack(x, *shared)
        return x


def pattern(config: Any, decoder: bool) -> tuple[tuple[bool, ...], int, int]:
    """Whether each layer of a group has experts, the number of such groups, and that of the layers after them.

    With a sparse step of 2, layers 1, 3, … have experts; with 3, layers 1, 4, …; with 1 all, with 0 none.
    """
    side = "decoder" if decoder else "encoder"
    step, depth = getattr(config, f"{side}_sparse_step"), config.num_decoder_layers if decoder else config.num_layers
    size = min(max(step, 1), depth)
    kinds = tuple(step == 1 or (step > 1 and layer % step == 1) for layer in range(size))
    return kinds, depth // size, depth % size


def module(config: Any, options: Options, rngs: nnx.Rngs) -> EncoderDecoderLM:
    def make_layers(decoder: bool) -> Layers:
        return Layers(config, decoder, options, rngs)

    scaled = config.tie_word_embeddings or getattr(config, "one_embedding", False)  # or its head alone is its own
    return build(config, make_layers, options, rngs, scaled=scaled)


def parameter_names(config: Any) -> ParameterNames:
    embed = "encoder.embed_tokens" if embeds_apart(config) else "shared"
    names: dict[str, str | Stored] = {"embed": embed, "decoder_embed": "decoder.embed_tokens", "head": "lm_head"}
    for side in ("encoder", "decoder"):
        names |= side_names(side)
        kinds, count, rest = pattern(config, side == "decoder")
        for group, first, held in (("groups", 0, kinds), ("rest", len(kinds) * count, kinds[:rest])):
            for layer, kind in enumerate(held):
                path = f"{side}/layers/{group}/blocks/blocks/{layer}"
                names |= block_names(path, side, _SPARSE if kind else _DENSE, first + layer, len(kinds))
    return names


register(
    Family(
        "switch_transformers",
        "SwitchTransformersForConditionalGeneration",
        module,
        parameter_names,
        prefix="",
        ignored=(r"^lm_head\.weight$",),
        copies=COPIES,
        two_embeddings=True,
        scales_tied=True,
        encoder_decoder=True,
        examples=("google/switch-base-8", "google/switch-base-128"),
    )
)
