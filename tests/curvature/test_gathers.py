"""On a mesh, no program of kernels and Hessians gathers a stack of layers whole: a layer at a time, or none."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import LlamaConfig, T5Config

from lensjax.core.pytrees import PyTree
from lensjax.core.roofline.hlo import gathered
from lensjax.curvature import hvp, lanczos
from lensjax.curvature.jaxpr.program import traced_program
from lensjax.curvature.ntk.ntk import _contract, _room_shapes
from lensjax.curvature.ntk.plan import filler, prepare, shared_out
from lensjax.curvature.streaming import layout
from lensjax.measure.functionals.loss import loss
from lensjax.models.model import Model, abstract_model
from lensjax.models.options import make_options
from lensjax.models.sharding import make_mesh

LLAMA = LlamaConfig(vocab_size=512, hidden_size=256, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4)
T5 = T5Config(vocab_size=512, d_model=256, d_kv=64, d_ff=384, num_layers=3, num_heads=4)
TIME = 16


def on_a_mesh(config: Any, mesh: str) -> Model:
    return abstract_model(config, make_options("float32", remat="full", mesh=make_mesh(mesh)))


def stacks(model: Model) -> set[tuple[int, ...]]:
    """Shapes of parameters that are stacked over layers and split over the mesh."""
    split = [leaf for leaf in jax.tree.leaves(model.params) if not leaf.sharding.is_fully_replicated]
    found = {leaf.shape for leaf in split if len(leaf.shape) > 2}
    assert found
    return found


def of_kernel(model: Model) -> Iterator[jax.stages.Lowered]:
    ids = np.zeros((16, TIME), np.int32)
    job = prepare(loss(model), model.params, {"input_ids": ids, "labels": ids}, None, "exact", 2**24)
    shared, later = shared_out(job.mesh), shared_out(job.mesh, 1)
    some = {name: jax.ShapeDtypeStruct((job.batch, TIME), jnp.int32, sharding=shared) for name in job.examples}
    zero = jax.ShapeDtypeStruct((), jnp.int32)
    assert len(job.parts) > 1  # a limit that the factors of all parameters are above
    for part in job.parts:
        shapes = _room_shapes(job, part, model.params)
        held: PyTree = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=later), shapes)
        arguments = job.plan, part, job.dtype, job.mesh, None if job.batches == 1 else held
        yield filler().lower(*arguments, job.captured, model.params, some, zero, zero)
    leaf, factors = part.leaves[0], held[0]
    yield _contract.lower(factors, *job.contraction(part, leaf, factors, "trace"))


def of_product(model: Model) -> Iterator[jax.stages.Lowered]:
    where = jax.NamedSharding(model.options.mesh, jax.P(("data", "fsdp")))
    ids = jax.ShapeDtypeStruct((8, TIME), jnp.int32, sharding=where)
    batch, params = {"input_ids": ids, "labels": ids}, model.params
    program, captured = traced_program(model.loss, params, batch, (0,))
    yield hvp._direct.lower(hvp._Hessian(), program, captured, params, batch, layout(params), params)


def of_lanczos(model: Model) -> Iterator[jax.stages.Lowered]:
    def stacked(leaf: Any) -> jax.ShapeDtypeStruct:
        where = jax.NamedSharding(leaf.sharding.mesh, jax.P(None, *leaf.sharding.spec))
        return jax.ShapeDtypeStruct((4, *leaf.shape), jnp.uint16, sharding=where)

    params, number = model.params, jax.ShapeDtypeStruct((), jnp.int32)
    vectors = jax.tree.map(stacked, params)
    yield lanczos._put.lower(vectors, number, params)
    yield lanczos._recurred.lower(params, params, params, 0.0)
    yield lanczos._orthogonalized.lower(vectors, number, params)


@pytest.mark.eight_devices
@pytest.mark.parametrize(
    ("programs", "config", "mesh"),
    [
        (of_kernel, LLAMA, "fsdp=8"),
        (of_product, LLAMA, "fsdp=4,tensor=2"),
        (of_product, T5, "data=2,fsdp=4"),
        (of_lanczos, T5, "fsdp=8"),
    ],
)
def test_no_stack_of_layers_is_gathered(programs: Any, config: Any, mesh: str) -> None:
    model = on_a_mesh(config, mesh)
    for lowered in programs(model):
        found = gathered(lowered.compile().as_text())
        assert not found & stacks(model)
        assert programs is of_lanczos or found or programs is of_kernel  # layers are gathered one by one
