"""Products with Hessians and kernels on many devices gather one layer's parameters at a time, and never all."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import LlamaConfig, T5Config

from lensjax.core.roofline.counters import count_program
from lensjax.curvature.hvp import hvp_fn
from lensjax.curvature.ntk.plan import _fill, prepare, shared_out
from lensjax.measure.functionals.loss import loss
from lensjax.models.model import Model, abstract_model
from lensjax.models.options import make_options
from lensjax.models.sharding import make_mesh
from lensjax.train.placement import BatchPlacement

pytestmark = pytest.mark.eight_devices
LAYERS = 12
LLAMA = LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=192, num_hidden_layers=LAYERS, head_dim=16, num_attention_heads=4
)
T5 = T5Config(vocab_size=64, d_model=64, d_kv=16, d_ff=192, num_layers=LAYERS, num_heads=4)


def placed(config: Any) -> Model:
    return abstract_model(config, make_options(remat="full", mesh=make_mesh("fsdp=8")))


def largest_gather(program: Any, mesh: Any) -> float:
    """Bytes of the largest array that is gathered, and there is one."""
    counts = count_program(program.compile().as_text(), dict(mesh.shape))
    gathered = [one.bytes / one.runs for one in counts.collectives if one.kind == "all-gather"]
    assert len(gathered) > 4
    return max(gathered)


def largest_of_a_layer(model: Model) -> int:
    """Bytes of the largest matrix, of which a stack has one in every layer."""
    return max(4 * leaf.size // (LAYERS if leaf.ndim > 2 else 1) for leaf in jax.tree.leaves(model.params))


@pytest.mark.parametrize(("config", "lengths"), [(LLAMA, (24,)), (T5, (24, 10))], ids=["llama", "t5"])
def test_a_product_with_the_hessian(config, lengths):
    model = placed(config)
    mesh = model.options.mesh
    unused = ("attention_mask",) if config is T5 else ("attention_mask", "labels")
    batch = {k: v for k, v in BatchPlacement(mesh, 8).shapes(lengths).items() if k not in unused}
    lies = jax.tree.map(lambda leaf: leaf.sharding, model.params)
    product = jax.jit(lambda p, b, v: hvp_fn(model.loss, p, b, mode="direct")(v), out_shardings=lies)
    assert largest_gather(product.lower(model.params, batch, model.params), mesh) <= largest_of_a_layer(model)


def test_factors_of_a_kernel():
    model = placed(LLAMA)
    mesh = model.options.mesh
    job = prepare(loss(model), model.params, {"input_ids": np.zeros((16, 24), np.int32)}, None, "exact", 2**30)
    fill = jax.jit(_fill, static_argnums=(0, 1, 2, 3))
    some = {"input_ids": jax.ShapeDtypeStruct((job.batch, 24), jnp.int32, sharding=shared_out(mesh))}
    number = jax.ShapeDtypeStruct((), jnp.int32)
    arguments = job.captured, model.params, some, number, number
    program = fill.lower(job.plan, job.parts[0], job.dtype, mesh, None, *arguments)
    assert largest_gather(program, mesh) <= largest_of_a_layer(model)
