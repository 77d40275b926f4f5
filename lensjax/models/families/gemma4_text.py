"""Gemma 4, its text models: Gemma 3 with heads of two sizes, layers that share keys and values, and inputs of layers.

Full attention has heads of a size of its own, and may take keys for values. The last layers may have no keys and values
but those of the last layer of their type before them. Every layer may add embeddings of the tokens that are its own,
and may have experts beside its MLP. Of checkpoints that read images or sound too (`gemma4`), the text model is loaded.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from lensjax.core.errors import InputError
from lensjax.core.pytrees import PyTree
from lensjax.models.decoder import FULL, DecoderLM
from lensjax.models.experts import Experts, top_of_softmax
from lensjax.models.families import llama
from lensjax.models.family import Family, register
from lensjax.models.layers import MLP, Attention, Embedding, Linear, RMSNorm, Stack, activation
from lensjax.models.memory import Memory, Source
from lensjax.models.options import Options
from lensjax.models.rotary import rotary_from_config
from lensjax.models.segments import Segments, layer_names
from lensjax.models.sharding import EXPERT_RULES
from lensjax.models.weights import ParameterNames, Stored

_LENDS, _BORROWS = "/lends", "/borrows"  # ends of the kinds of blocks whose keys and values others use, and of those
_OF_A_TYPE = ("head_dim", "num_key_value_heads")  # what the layers of a type have in common, and not with others


class SharingAttention(Attention):
    """Attention with unscaled scores and normalised values, which may be its keys, or those of another layer.

    Args:
      config: Of this layer.
      kind: Of the block.
      norm: Makes a norm of the given size.
    """

    lent: Source  # keys and values for other layers, once there are any; where a model writes, those of its memory

    def __init__(self, config: Any, kind: str, norm: Any, options: Options, rngs: nnx.Rngs) -> None:
        width, std, bias = config.hidden_size, config.initializer_range, config.attention_bias
        self.head_dim = config.head_dim
        self.causal, self.softcap, self.norm_heads, self.scale = True, None, True, 1.0
        self.implementation, self.mesh = options.attention, options.mesh
        self.gate = self.sinks = None
        self.type, _, _ = kind.partition("/")
        self.lends, borrows = kind.endswith(_LENDS), kind.endswith(_BORROWS)
        inner, kv_inner = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim

        def linear(inputs: int, outputs: int, there: bool = True) -> Any:
            return Linear(inputs, outputs, options, rngs, bias=bias, std=std) if there else None

        self.q, self.o = linear(width, inner), linear(inner, width)
        self.k = linear(width, kv_inner, not borrows)
        self.v = linear(width, kv_inner, not borrows and not (config.attention_k_eq_v and self.type == FULL))
        self.q_norm = norm(self.head_dim)
        self.k_norm = None if borrows else norm(self.head_dim)
        self.v_norm = RMSNorm(self.head_dim, options, eps=config.rms_norm_eps, scale=False)

    def keys_and_values(self, x: Any) -> tuple[Array, Array]:
        """Of every head, [batch, source, heads, dim]; for layers that have none, x is what is lent to them."""
        if self.k is None:
            keys, values = x
            return keys, values
        raw = self.k(x)
        made = self._heads(raw, self.k_norm), self._heads(raw if self.v is None else self.v(x), self.v_norm)
        if self.lends:
            self.lent.keys[...], self.lent.values[...] = made
        return made


class Scale(nnx.Module):
    """A factor of every channel.

    Args:
      learned: Whether gradients reach it.
    """

    def __init__(self, size: int, options: Options, *, learned: bool = True) -> None:
        self.learned = learned
        self.scale = nnx.Param(jnp.ones(size, options.param_dtype))

    def __call__(self, x: Float[Array, "... size"]) -> Float[Array, "... size"]:
        return x * self.factors(x.dtype)

    def factors(self, dtype: Any) -> Float[Array, " size"]:
        scale = self.scale[...].astype(dtype)
        return scale if self.learned else jax.lax.stop_gradient(scale)


class LayerInput(nnx.Module):
    """What a layer adds of its own embeddings of the tokens: norm(projection(act(input_gate(x)) · embeddings))."""

    def __init__(self, config: Any, norm: Any, options: Options, rngs: nnx.Rngs) -> None:
        width, size, std = config.hidden_size, config.hidden_size_per_layer_input, config.initializer_range
        self.act = activation(config.hidden_activation)
        self.input_gate = Linear(width, size, options, rngs, std=std)
        self.projection = Linear(size, width, options, rngs, std=std)
        self.norm = norm(width)

    def __call__(self, x: Float[Array, "batch time width"], own: Float[Array, "batch time size"]) -> Array:
        made: Array = self.norm(self.projection(self.act(self.input_gate(x)) * own))
        return made


class Mixture(nnx.Module):
    """Experts beside an MLP, with a norm after either; router and experts read what the MLP's norm reads."""

    def __init__(self, config: Any, norm: Any, options: Options, rngs: nnx.Rngs) -> None:
        width = config.hidden_size
        self.mlp_norm, self.before, self.after = norm(width), norm(width), norm(width)
        self.router_norm = RMSNorm(width, options, eps=config.rms_norm_eps, scale=False)
        self.router_scale, self.expert_scale = Scale(width, options), Scale(config.num_experts, options)
        self.experts = Experts(
            width,
            config.moe_intermediate_size,
            config.num_experts,
            top_of_softmax(config.top_k_experts, normalised=True),
            options,
            rngs,
            act=config.hidden_activation,
            std=config.initializer_range,
        )

    def __call__(self, x: Float[Array, "batch time width"], mlp: Float[Array, "batch time width"]) -> Array:
        """The sum of the MLP's output `mlp` and that of the experts for x."""
        read = self.router_scale(self.router_norm(x)) * x.shape[-1] ** -0.5
        weights, experts = self.experts.route(self.experts.router(read))
        weights = weights * self.expert_scale.factors(weights.dtype)[experts]
        made: Array = self.mlp_norm(mlp) + self.after(self.experts.mixed(self.before(x), weights, experts))
        return made


class Block(llama.Block):
    """Gemma 2's block, with what Gemma 4 adds to it.

    Args:
      config: Of this layer.
      kind: Of the block.
      norm: Makes a norm of the given size.
    """

    def __init__(self, config: Any, kind: str, norm: Any, options: Options, rngs: nnx.Rngs) -> None:
        width, std, act = config.hidden_size, config.initializer_range, config.hidden_activation
        hidden = config.intermediate_size * (2 if config.use_double_wide_mlp and kind.endswith(_BORROWS) else 1)
        super().__init__(
            config,
            norm,
            options,
            rngs,
            after=True,
            make_mixer=lambda rngs: SharingAttention(config, kind, norm, options, rngs),
            make_mlp=lambda rngs: MLP(width, hidden, act, options, rngs, gated=True, std=std),
        )
        self.mixture = Mixture(config, norm, options, rngs) if config.enable_moe_block else None
        self.input = LayerInput(config, norm, options, rngs) if config.hidden_size_per_layer_input else None
        self.scalar = Scale(1, options, learned=False)  # which torch holds as a constant

    def __call__(  # type: ignore[override]
        self, x: Float[Array, "batch time width"], mask: Array | None, angles: Any, lent: Any, own: Any = None
    ) -> Array:
        """Pass x through, given another layer's keys and values, and the layer's own embeddings of the tokens."""
        attended = self.attention(llama.normed(self.attention_norm, x), mask, angles=angles, source=lent)
        x = x + llama.normed(self.attention_post_norm, attended)
        y = self.mlp(llama.normed(self.mlp_norm, x))
        x = x + llama.normed(self.mlp_post_norm, y if self.mixture is None else self.mixture(x, y))
        return self.scalar(x if self.input is None else x + self.input(x, own))


class Blocks(nnx.Module):
    """All blocks: those that have keys and values, then those that use theirs."""

    def __init__(self, config: Any, norm: Any, options: Options, rngs: nnx.Rngs) -> None:
        kinds, of_layer, std = _kinds(config), config.per_layer_config, config.initializer_range
        self.dtype, self.kinds, self.size = options.dtype, tuple(kinds), int(config.hidden_size_per_layer_input or 0)
        self.lenders = _lenders(kinds)

        def segments(some: Sequence[str]) -> Segments:
            own = {kind: of_layer[kinds.index(kind)] for kind in some}

            def maker(kind: str) -> Any:
                return lambda rngs: Block(own[kind], kind, norm, options, rngs)

            return Segments(some, {kind: maker(kind) for kind in own}, options, rngs)

        self.first = segments(kinds[: self.lenders])
        self.last = segments(kinds[self.lenders :]) if self.lenders < len(kinds) else None
        if self.size:
            total = len(kinds) * self.size
            self.embed = Embedding(config.vocab_size_per_layer_input, total, options, rngs, std=std)
            self.projection = Linear(config.hidden_size, total, options, rngs, std=std)
            self.projection_norm = norm(self.size)

    def __call__(
        self,
        x: Float[Array, "batch time width"],
        ids: Int[Array, "batch time"],
        shared: Mapping[str, tuple[PyTree, PyTree]],
    ) -> Float[Array, "batch time width"]:
        """Pass embeddings of tokens through all blocks, given the mask and the angles of each type of layer."""
        each = self.inputs(x, ids) if self.size else None
        lending = [node for _, node in nnx.iter_graph(self.first) if isinstance(node, SharingAttention) and node.lends]
        for node in lending:
            empty = jnp.zeros((1, *ids.shape, node.k.shape[-1] // node.head_dim, node.head_dim), self.dtype)
            node.lent = Source(empty, empty)
        x = self.first(x, self._given(shared, {}), None if each is None else each[: self.lenders])
        if self.last is None:
            return x
        lent = {node.type: _lent(node) for node in lending}
        return self.last(x, self._given(shared, lent), None if each is None else each[self.lenders :])

    @property
    def stacks(self) -> list[Stack]:
        """The stacks of blocks, in order."""
        return [*self.first.stacks, *(() if self.last is None else self.last.stacks)]

    def _given(self, shared: Mapping[str, tuple[PyTree, PyTree]], lent: Mapping[str, Any]) -> dict[str, Any]:
        """What blocks of each kind are given beside x."""
        types = {kind: kind.partition("/")[0] for kind in self.kinds}
        return {kind: (*shared[type_], lent.get(type_)) for kind, type_ in types.items()}

    def inputs(
        self, x: Float[Array, "batch time width"], ids: Int[Array, "batch time"]
    ) -> Float[Array, "layers batch time size"]:
        """The tokens' embeddings that are each layer's own, with a map of those that all begin with."""
        shape = (*ids.shape, len(self.kinds), self.size)
        embedded = self.embed(ids).reshape(shape) * math.sqrt(self.size)
        projected = (self.projection(x) * x.shape[-1] ** -0.5).reshape(shape)
        return jnp.moveaxis((self.projection_norm(projected) + embedded) * 2**-0.5, 2, 0)


def _lent(layer: SharingAttention) -> Any:
    """What other layers use of one that was passed: rotated and of all tokens, where the model writes."""
    memory = getattr(layer, "memory", None)
    if isinstance(memory, Memory):
        return memory.lent
    return layer.lent.keys[...][0], layer.lent.values[...][0]


def module(config: Any, options: Options, rngs: nnx.Rngs) -> DecoderLM:
    def norm(size: int) -> RMSNorm:
        return RMSNorm(size, options, eps=config.rms_norm_eps)

    if config.enable_moe_block and None in (config.num_experts, config.top_k_experts, config.moe_intermediate_size):
        raise InputError(
            "enable_moe_block is true in config.json, and one of num_experts, top_k_experts and moe_intermediate_size "
            "is null; give all three."
        )
    if config.hidden_size_per_layer_input and config.vocab_size_per_layer_input < config.vocab_size:
        raise InputError(
            f"vocab_size_per_layer_input is {config.vocab_size_per_layer_input} in config.json, and vocab_size "
            f"{config.vocab_size}: some tokens would have no input to layers; give no fewer."
        )
    layers = {kind: config.per_layer_config[config.layer_types.index(kind)] for kind in set(config.layer_types)}
    for kind, own in zip(config.layer_types, config.per_layer_config, strict=True):
        if any(getattr(own, name) != getattr(layers[kind], name) for name in _OF_A_TYPE):
            raise InputError(
                f"per_layer_config in config.json has layers of type {kind} with heads of several sizes or numbers; "
                "LensJAX has one of either for each type."
            )
    return DecoderLM(
        config,
        Blocks(config, norm, options, rngs),
        norm(config.hidden_size),
        {
            kind: rotary_from_config(config, own.head_dim, (config.rope_parameters or {}).get(kind) or {})
            for kind, own in layers.items()
        },
        options,
        rngs,
        layer_types=config.layer_types,
        embed_scale=math.sqrt(config.hidden_size),
        softcap=config.final_logit_softcapping,
    )


def _kinds(config: Any) -> list[str]:
    """The kind of every block: its type of attention, and whether it uses others' keys and values, or they its."""
    types, own = config.layer_types, config.num_hidden_layers - config.num_kv_shared_layers
    borrowed = set(types[own:])
    if not borrowed <= set(types[:own]):
        raise InputError(
            f"num_kv_shared_layers is {config.num_kv_shared_layers} in config.json, and among the {max(own, 0)} layers "
            "before those, none is of a type that they share keys and values of; lower it."
        )
    last = {own - 1 - types[:own][::-1].index(kind) for kind in borrowed}
    ends = (_BORROWS if i >= own else _LENDS if i in last else "" for i in range(len(types)))
    return [f"{kind}{end}" for kind, end in zip(types, ends, strict=True)]


def _lenders(kinds: Sequence[str]) -> int:
    """Number of layers that have keys and values of their own."""
    return sum(not kind.endswith(_BORROWS) for kind in kinds)


def parameter_names(config: Any) -> ParameterNames:
    layer, kinds = "model.layers.{layer}", _kinds(config)
    fused = {name: (index, (1, 1), 1) for index, name in enumerate(("gate", "up"))}
    block: dict[str, str | Stored] = llama.block_names() | {
        "mlp_norm": f"{layer}.pre_feedforward_layernorm",
        "mixture/mlp_norm": f"{layer}.post_feedforward_layernorm_1",
        "mixture/before": f"{layer}.pre_feedforward_layernorm_2",
        "mixture/after": f"{layer}.post_feedforward_layernorm_2",
        "mixture/router_scale/scale": f"{layer}.router.scale",
        "mixture/expert_scale/scale": f"{layer}.router.per_expert_scale",
        "mixture/experts/router": f"{layer}.router.proj",
        "mixture/experts/experts/down/kernel": Stored(f"{layer}.experts.down_proj", stacked=1),
        "input/input_gate": f"{layer}.per_layer_input_gate",
        "input/projection": f"{layer}.per_layer_projection",
        "input/norm": f"{layer}.post_per_layer_input_norm",
        "scalar/scale": f"{layer}.layer_scalar",
    }
    for name, part in fused.items():
        block[f"mixture/experts/experts/{name}/kernel"] = Stored(f"{layer}.experts.gate_up_proj", stacked=1, part=part)
    blocks, lenders = dict.fromkeys(kinds, block), _lenders(kinds)
    return {
        "embed": "model.embed_tokens",
        "layers/embed": "model.embed_tokens_per_layer",
        "layers/projection": "model.per_layer_model_projection",
        "layers/projection_norm": "model.per_layer_projection_norm",
        **dict(layer_names(kinds[:lenders], blocks, "layers/first")),
        **dict(layer_names(kinds[lenders:], blocks, "layers/last", lenders)),
        "norm": "model.norm",
        "head": "lm_head",
    }


def _unused(config: Any) -> tuple[str, ...]:
    """Keys and values of layers that use others', which checkpoints may hold all the same."""
    layers = "|".join(str(i) for i, kind in enumerate(_kinds(config)) if kind.endswith(_BORROWS))
    return (rf"(^|\.)layers\.({layers})\.self_attn\.(k_proj|v_proj|k_norm|v_norm)\.",) if layers else ()


register(
    Family(
        "gemma4_text",
        "Gemma4ForCausalLM",
        module,
        parameter_names,
        unused=_unused,
        rules=EXPERT_RULES,
        by_layer=_OF_A_TYPE,
        examples=("google/gemma-4-E2B-it", "google/gemma-4-31B"),
    )
)
