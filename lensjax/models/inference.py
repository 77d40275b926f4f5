"""The cost of a model once it is deployed: parameters, memory and operations per token, from its configuration alone.

Adapters are merged before that, so a model that was fine-tuned with LoRA costs what its base costs.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from numpy.typing import DTypeLike

from lensjax.core.flops import matmul_flops
from lensjax.core.specs import Strict
from lensjax.models.options import as_dtype, make_options

if TYPE_CHECKING:  # Flax is slow to import, and costs are read from files too
    from lensjax.models.layers import Attention
    from lensjax.models.model import Model


class InferenceCost(Strict):
    """The cost of a model at inference.

    Attributes:
      parameters: Number of parameters.
      memory: Bytes of the weights, and of the keys and values of every context of the batch; activations and the
        memory of the serving program come on top.
      flops_per_token: Operations of the matrix products of one pass over a context, divided by its tokens. Attention
        counts in full, as if every token saw the whole context.
      context: Tokens of a prompt and its answer; fewer than asked for where a model has not learned as many positions.
    """

    parameters: int
    memory: int
    flops_per_token: float
    context: int


def inference_cost(
    config: Any, prompt: int, answer: int, *, batch: int = 1, dtype: DTypeLike = "bfloat16"
) -> InferenceCost:
    """The cost of answering a batch of prompts.

    A decoder reads prompt and answer as one context. An encoder–decoder reads the prompt in its encoder, keeps keys and
    values of it for its decoder, and writes the answer there.

    Args:
      config: Hugging Face configuration.
      prompt, answer: Tokens of a context, 1 or more each.
      batch: Number of contexts that are held in memory at the same time.
      dtype: Type of weights, keys and values.

    Raises:
      InputError: the configuration is of a model that LensJAX does not have, or the type is not one of models.
    """
    from lensjax.models.model import abstract_model

    model, itemsize = abstract_model(config, make_options()), as_dtype(dtype).itemsize
    prompt, answer = _held(model, prompt, answer)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    values = batch * _cached_values(model, prompt, answer)
    flops = matmul_flops(model.apply, model.params, _batch(model, prompt, answer))
    return InferenceCost(
        parameters=parameters,
        memory=itemsize * (parameters + values),
        flops_per_token=flops / (prompt + answer),
        context=prompt + answer,
    )


def _held(model: "Model", prompt: int, answer: int) -> tuple[int, int]:
    """As many tokens of the prompt and of the answer as the model has learned positions for, in proportion."""
    from flax import nnx

    from lensjax.models.layers import Embedding

    nodes = (node for _, node in nnx.iter_graph(nnx.merge(model.graphdef, model.params)))
    learned = (node for node in nodes if isinstance(getattr(node, "positions", None), Embedding))
    positions = min((node.length for node in learned), default=None)
    if positions is None:
        return prompt, answer
    if model.family.encoder_decoder:
        return min(prompt, positions), min(answer, positions)
    if prompt + answer <= positions:
        return prompt, answer
    part = min(max(1, round(positions * prompt / (prompt + answer))), positions - 1)
    return part, positions - part


def _batch(model: "Model", prompt: int, answer: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of one context."""

    def ids(length: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, length), jnp.int32)

    if model.family.encoder_decoder:
        return {"input_ids": ids(prompt), "decoder_input_ids": ids(answer)}
    return {"input_ids": ids(prompt + answer)}


def _cached_values(model: "Model", prompt: int, answer: int) -> int:
    """Number of keys and values that a context takes; layers with an attention window keep no more than that."""
    from flax import nnx

    from lensjax.models.layers import Attention

    module = nnx.merge(model.graphdef, model.params)
    total = 0
    for path, node in nnx.iter_graph(module):
        if not isinstance(node, Attention) or "encoder" in path or node.k is None:
            continue
        layers, _, keys = node.k.kernel.shape
        if "cross" in path:
            positions = layers * prompt
        elif model.family.encoder_decoder:
            positions = layers * answer
        else:
            positions = _positions(module, node, layers, prompt + answer)
        total += positions * (keys + (node.k if node.v is None else node.v).kernel.shape[-1])
    return total


def _positions(module: Any, node: "Attention", layers: int, context: int) -> int:
    """Positions that the layers of an attention keep together."""
    from lensjax.models.decoder import SLIDING

    window = getattr(module, "window", None)
    if window is None or getattr(node, "type", SLIDING) != SLIDING:
        return layers * context
    if len(module.kinds) == 1 or hasattr(node, "type"):
        return layers * min(context, window)
    return sum(min(context, window) if module.kinds[kind][0] else context for kind in module.kind_of_layer)
