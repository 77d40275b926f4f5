"""The compiled programs of fine-tuning: one training step, and the losses of a batch of examples."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from lensjax.core.flops import matmul_flops
from lensjax.core.pytrees import PyTree
from lensjax.models.delta_rule import GatedDeltaNet
from lensjax.models.gradient import loss_and_gradient
from lensjax.models.layers import Attention, Stack
from lensjax.models.lora import join, split_trainable, with_constant_norms
from lensjax.models.model import Model, Params
from lensjax.train.optimiser import clip, make_optimiser
from lensjax.train.spec import TrainingSpec

Arrays = Mapping[str, Array]
Shapes = Mapping[str, jax.ShapeDtypeStruct]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that a training step changes.

    Attributes:
      params: The parameters that are trained.
      optimiser: The state of the optimiser.
    """

    params: Params
    optimiser: PyTree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepMetrics:
    """Measurements of one step.

    Attributes:
      loss: Mean over target tokens, in nats, before the step.
      gradient_norm: Euclidean norm of the gradient, before clipping.
      tokens: Number of target tokens.
    """

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    tokens: Float[Array, ""]


@dataclass(frozen=True)
class Programs:
    """The compiled programs of one model; they are compiled once for every shape of batch.

    Attributes:
      step: (state, frozen parameters, batch, learning rate) → (state, metrics). The state is donated. Batches have a
        leading axis of parts where gradients are accumulated.
      losses: (trained parameters, frozen parameters, batch) → (sum of losses in nats, target tokens, those of them that
        greedy decoding gives after the tokens before) of each example.
      start: parameters → a new State.
      copy: A copy of trained parameters that donating the first does not touch.
    """

    step: Callable[[State, Params, Arrays, float], tuple[State, StepMetrics]]
    losses: Callable[[Params, Params, Arrays], tuple[Float[Array, " batch"], ...]]
    start: Callable[[Params], State]
    copy: Callable[[Params], Params]


def make_programs(model: Model, spec: TrainingSpec, mesh: Mesh) -> Programs:
    """The programs that fine-tune a model on a mesh.

    Args:
      model: Its parameters may be shapes with shardings, also for devices that are not attached.
      spec: How to train.
      mesh: The devices.
    """
    _warn_if_unfused(model)
    optimiser = make_optimiser(spec)
    state_lies = jax.tree.map(lambda leaf: leaf.sharding, state_shapes(model, spec, mesh))
    everywhere = NamedSharding(mesh, PartitionSpec())

    gradient_of = partial(loss_and_gradient, with_constant_norms(model))

    def step(state: State, frozen: Params, batch: Arrays, rate: Array) -> tuple[State, StepMetrics]:
        if spec.accumulation == 1:
            (loss, tokens), gradient = gradient_of(state.params, frozen, batch)
        else:

            def add(carry: PyTree, part: Arrays) -> tuple[PyTree, None]:
                return jax.tree.map(jnp.add, carry, gradient_of(state.params, frozen, part)), None

            shapes = jax.eval_shape(gradient_of, state.params, frozen, jax.tree.map(lambda x: x[0], batch))
            zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            ((loss, tokens), gradient), _ = jax.lax.scan(add, zero, batch)
        count = jnp.maximum(tokens, 1)
        gradient, norm = clip(gradient, count, spec.clip)
        updates, optimiser_state = optimiser.update(gradient, state.optimiser, state.params)
        params = jax.tree.map(lambda p, u: (p - rate * u).astype(p.dtype), state.params, updates)
        return State(params, optimiser_state), StepMetrics(loss / count, norm, tokens)

    def losses(params: Params, frozen: Params, batch: Arrays) -> tuple[Array, ...]:
        each, weights, hits = model.token_scores(join(params, frozen), batch)
        return each.sum(axis=1), weights.sum(axis=1), hits.sum(axis=1)

    def start(params: Params) -> State:
        return State(params, optimiser.init(params))

    return Programs(
        step=jax.jit(step, donate_argnums=0, out_shardings=(state_lies, everywhere)),
        losses=jax.jit(losses, out_shardings=everywhere),
        start=jax.jit(start, donate_argnums=0, out_shardings=state_lies),
        copy=jax.jit(lambda params: jax.tree.map(jnp.copy, params), out_shardings=state_lies.params),
    )


def state_shapes(model: Model, spec: TrainingSpec, mesh: Mesh) -> State:
    """Shapes and shardings of the state of training; moments lie on devices as their parameters do."""
    optimiser = make_optimiser(spec)
    trained, _ = split_trainable(model.params)
    everywhere = NamedSharding(mesh, PartitionSpec())
    shapes = jax.eval_shape(optimiser.init, trained)
    placed = optax.tree.map_params(
        optimiser,
        lambda shape, leaf: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=leaf.sharding),
        shapes,
        trained,
        transform_non_params=lambda shape: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=everywhere),
    )
    return State(trained, placed)


def program_flops(
    model: Model, spec: TrainingSpec, mesh: Mesh, programs: Programs
) -> tuple[Callable[[Shapes], int], Callable[[Shapes], int]]:
    """Floating-point operations of `Programs.step` and `Programs.losses`, as functions of the shapes of a batch.

    They are those of `as_counted(model)`, whose scores of attention count once where a step computes them again. Where
    that is the model itself, programs are not traced again when called.

    Args:
      model: Its parameters may be shapes with shardings.
      spec, mesh: See `make_programs`.
      programs: Those of the model.
    """
    counted = as_counted(model)
    if counted.graphdef != model.graphdef:
        programs = make_programs(counted, spec, mesh)
    state, (trained, frozen) = state_shapes(counted, spec, mesh), split_trainable(counted.params)

    def again(batch: Shapes) -> int:
        return sum(product for product, _ in _score_products(counted, batch)) if _recomputes_scores(counted) else 0

    return (
        lambda batch: matmul_flops(programs.step, state, frozen, batch, 0.0) - again(batch),
        lambda batch: matmul_flops(programs.losses, trained, frozen, batch),
    )


def masked_flops(model: Model, batch: Shapes) -> int:
    """The operations of a step that causality masks: half of those of attention onto earlier positions.

    Counted in full, as `program_flops` does, a position sees all others. Fused attention leaves the masked half out, so
    that of a step's operations only the others are work.

    Args:
      model: Whose step it is.
      batch: Shapes of a batch.
    """
    return sum(3 * product for product, causal in _score_products(model, batch) if causal)  # half of 2 + 4 products


def _score_products(model: Model, batch: Shapes) -> Iterator[tuple[int, bool]]:
    """Of every attention: the operations of the product of queries and keys in all its layers, and whether causal."""
    inputs = batch["input_ids"].shape
    rows, time = math.prod(inputs[:-1]), inputs[-1]
    targets = batch["labels"].shape[-1] if model.family.encoder_decoder else time
    module = nnx.merge(model.graphdef, model.without_params().params)
    for path, node in nnx.iter_graph(module):
        if isinstance(node, Attention):
            width = math.prod(node.q.kernel.shape[:-2]) * node.q.kernel.shape[-1]
            queries = time if "encoder" in path else targets
            yield 2 * rows * queries * (time if "cross" in path else queries) * width, node.causal


def shapes_of(tree: PyTree) -> PyTree:
    """Shapes, types and shardings of a pytree's arrays."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)


def _recomputes_scores(model: Model) -> bool:
    """Whether backward passes compute the scores of attention again."""
    module = nnx.merge(model.graphdef, model.without_params().params)
    return any(isinstance(node, Stack) and node.options.remat == "cheap" for _, node in nnx.iter_graph(module))


def _warn_if_unfused(model: Model) -> None:
    """Say that training on a GPU could be faster; `lensjax.models.layers` says so where a half precision is unfused."""
    if jax.default_backend() == "gpu" and model.options.dtype.itemsize != 2:
        warnings.warn(
            f"Attention runs unfused on this GPU, as the fused kernel has no {model.options.dtype}; choose "
            "dtype bfloat16 and attention cudnn, unless precision matters more.",
            stacklevel=3,
        )


def as_counted(model: Model) -> Model:
    """The model whose cost is counted for this one: it recomputes scores at most, and its attention is of products."""
    module = nnx.merge(model.graphdef, model.without_params().params)
    nodes = [node for _, node in nnx.iter_graph(module)]
    scores_only = model.options.attention == "xla" and not any(isinstance(node, GatedDeltaNet) for node in nodes)
    for node in nodes:
        if isinstance(node, Stack) and not (scores_only and node.options.remat == "cheap"):
            node.options = replace(node.options, remat="none")
        if isinstance(node, Attention):
            node.implementation = "xla"
        if isinstance(node, GatedDeltaNet):
            node.recomputes = False
    return replace(model, graphdef=nnx.split(module)[0])
