"""MLPs of many experts, of which a router chooses a few for every token and none is left out (dropless)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from lensjax.core.pytrees import PyTree
from lensjax.models.grouped import grouped_dot
from lensjax.models.layers import Linear, activation
from lensjax.models.options import Options
from lensjax.models.remat import costly, recomputed

# From router logits [tokens, experts]: weights and numbers of the chosen experts, [tokens, chosen] each.
Route = Callable[[Float[Array, "tokens experts"]], tuple[Array, Array]]
Gating = Callable[[Array, Array], Array]  # what down reads, from the results of gate and up

_BATCH = PartitionSpec(("data", "fsdp"))


class Experts(nnx.Module):
    """Sums the outputs of a few gated MLPs for every token, times what the router makes of its logits.

    Tokens are sorted by expert, so that each is multiplied with the matrices of its experts alone. On a mesh the axis
    `tensor` splits the experts, if it divides them, and each device computes its own for the tokens that it holds.
    Losses that balance experts are not part of the model's loss.

    Args:
      width, hidden, count: Of inputs and outputs, of an expert's hidden layer, and of experts.
      route: What the router's logits mean.
      gating: `act(gate) · up` of the activation `act` where not given.
      bias: Whether router and experts have biases.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        count: int,
        route: Route,
        options: Options,
        rngs: nnx.Rngs,
        *,
        act: str = "silu",
        gating: Gating | None = None,
        bias: bool = False,
        std: float = 0.02,
    ) -> None:
        self.route, self.mesh, self.count = route, options.mesh, count
        chosen = activation(act)
        self.gating = gating or (lambda gate, up: chosen(gate) * up)
        self.router = Linear(width, count, options, rngs, bias=bias, std=std)

        def linear(inputs: int, outputs: int) -> Linear:
            make = nnx.vmap(lambda rngs: Linear(inputs, outputs, options, rngs, bias=bias, std=std))
            made: Linear = nnx.split_rngs(splits=count)(make)(rngs)
            return made

        self.experts = nnx.Dict(gate=linear(width, hidden), up=linear(width, hidden), down=linear(hidden, width))

    def __call__(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
        return self.mixed(x, *self.route(self.router(x)))

    def mixed(
        self,
        x: Float[Array, "batch time width"],
        weights: Float[Array, "batch time chosen"],
        experts: Int[Array, "batch time chosen"],
    ) -> Float[Array, "batch time width"]:
        """The weighted sum of the chosen experts' outputs."""
        graphdef, params = nnx.split(self.experts)

        def local(params: PyTree, x: Array, weights: Array, experts: Array, count: int) -> Array:
            return _mixed(nnx.merge(graphdef, params), self.gating, x, weights.astype(x.dtype), experts, count)

        mesh = self.mesh
        if mesh is None or mesh.size == 1 or x.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
            return local(params, x, weights, experts, self.count)
        split = mesh.shape["tensor"] if self.count % mesh.shape["tensor"] == 0 else 1
        own = self.count // split

        def on_device(params: PyTree, x: Array, weights: Array, experts: Array) -> Array:
            first = own * jax.lax.axis_index("tensor") if split > 1 else 0
            mine = (experts >= first) & (experts < first + own)
            y = local(params, x, weights, jnp.where(mine, experts - first, own), own)
            return jax.lax.psum(y, "tensor") if split > 1 else y

        held = PartitionSpec("tensor") if split > 1 else PartitionSpec()
        return jax.shard_map(
            on_device, mesh=mesh, in_specs=(held, _BATCH, _BATCH, _BATCH), out_specs=_BATCH, check_vma=False
        )(params, x, weights, experts)


def top_of_softmax(chosen: int, *, normalised: bool) -> Route:
    """The largest probabilities of all experts, divided by their sum if `normalised`."""

    def route(logits: Array) -> tuple[Array, Array]:
        wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        weights, experts = jax.lax.top_k(jax.nn.softmax(wide), chosen)
        return weights / weights.sum(-1, keepdims=True) if normalised else weights, experts

    return route


def softmax_of_top(chosen: int) -> Route:
    """Probabilities among the experts with the largest logits."""

    def route(logits: Array) -> tuple[Array, Array]:
        largest, experts = jax.lax.top_k(logits, chosen)
        return jax.nn.softmax(largest), experts

    return route


def _mixed(
    parts: Any,
    gating: Gating,
    x: Float[Array, "batch time width"],
    weights: Float[Array, "batch time chosen"],
    experts: Int[Array, "batch time chosen"],
    count: int,
) -> Float[Array, "batch time width"]:
    """The weighted sum over the experts of every token; those numbered `count` give 0."""
    chosen = experts.shape[-1]
    order = jnp.argsort(experts.reshape(-1), stable=True)
    groups = experts.reshape(-1)[order]
    rows = x.reshape(-1, x.shape[-1])[order // chosen]
    gated = recomputed(gating)
    y = _linear(parts.down, gated(_linear(parts.gate, rows, groups), _linear(parts.up, rows, groups)), groups)
    y = jnp.where((groups < count)[:, None], y * weights.reshape(-1)[order][:, None], 0)
    back = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)), unique_indices=True)
    return y[back].reshape(*x.shape[:-1], chosen, -1).sum(-2)


def _linear(linear: Linear, rows: Float[Array, "rows inputs"], groups: Int[Array, " rows"]) -> Array:
    """`Linear` by the parameters of each row's expert."""
    rows = rows.astype(linear.dtype)

    def product(rows: Array, matrices: Array) -> Array:
        return grouped_dot(rows, matrices.astype(linear.dtype), groups, in_order=True)

    def base(rows: Array) -> Array:
        return product(rows, linear.weights(linear.dtype))

    y = base(rows) if linear.held is None else recomputed(base)(rows)
    if linear.lora_a is not None and linear.lora_b is not None:
        y = y + linear.lora_scale * product(costly(product(rows, linear.lora_a[...])), linear.lora_b[...])
    if linear.lora_m is not None:
        y = y * _of_each(linear.magnification(), groups, y.dtype)
    return costly(y if linear.bias is None else y + _of_each(linear.bias[...], groups, linear.dtype))


def _of_each(values: Float[Array, "experts outputs"], groups: Int[Array, " rows"], dtype: Any) -> Array:
    """The values of each row's expert."""
    return values.at[groups].get(mode="clip").astype(dtype)
