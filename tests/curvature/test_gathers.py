"""On a mesh, no program of a kernel or Hessian gathers a stack of layers whole, but a layer at a time."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import LlamaConfig

from lensjax.core.roofline.hlo import gathered
from lensjax.curvature import hvp
from lensjax.curvature.jaxpr.program import traced_program
from lensjax.curvature.ntk.factors import Portion
from lensjax.curvature.ntk.ntk import _contract, _room_shapes
from lensjax.curvature.ntk.plan import filler, prepare, shared_out
from lensjax.curvature.streaming import layout
from lensjax.measure.functionals.loss import loss
from lensjax.models.model import Model, abstract_model
from lensjax.models.options import make_options
from lensjax.models.sharding import make_mesh

LLAMA = LlamaConfig(vocab_size=512, hidden_size=256, intermediate_size=376, num_hidden_layers=3, num_attention_heads=4)
TIME, EXAMPLES = 16, 62


def of_product(model: Model) -> Iterator[jax.stages.Lowered]:
    where = jax.NamedSharding(model.options.mesh, jax.P(("data", "fsdp")))
    ids = jax.ShapeDtypeStruct((8, TIME), jnp.int32, sharding=where)
    batch, params = {"input_ids": ids, "labels": ids}, model.params
    program, captured = traced_program(model.loss, params, batch, (0,))
    yield hvp._direct.lower(hvp._Hessian(), program, captured, params, batch, layout(params), params)


def of_kernel(model: Model) -> Iterator[jax.stages.Lowered]:
    """Factors of every part, in several batches, and their contraction, within the memory that is planned."""
    ids = np.zeros((EXAMPLES, TIME), np.int32)
    job = prepare(loss(model), model.params, {"input_ids": ids, "labels": ids}, None, "exact", 2_600_000)
    where, zero = shared_out(job.mesh), jax.ShapeDtypeStruct((), jnp.int32)
    some = {name: jax.ShapeDtypeStruct((job.batch, TIME), jnp.int32, sharding=where) for name in job.examples}
    assert len(job.parts) > 1
    assert job.batches > 1
    for part in job.parts[:2]:
        held = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), _room_shapes(job, part, model.params)
        )
        arguments = job.plan, part, job.dtype, job.mesh, held, job.captured, model.params, some, zero, zero
        yield filler().lower(*arguments)
        yield _contract.lower(held[-1], *job.contraction(part, part.leaves[-1], held[-1], "trace"))


@pytest.mark.eight_devices
@pytest.mark.parametrize(("programs", "mesh"), [(of_product, "fsdp=4,tensor=2"), (of_kernel, "data=2,fsdp=4")])
def test_no_stack_of_layers_is_gathered(programs: Any, mesh: str) -> None:
    model = abstract_model(LLAMA, make_options("float32", remat="full", mesh=make_mesh(mesh)))
    split = [leaf for leaf in jax.tree.leaves(model.params) if not leaf.sharding.is_fully_replicated]
    stacks = {leaf.shape for leaf in split if len(leaf.shape) > 2}
    every = set()
    for lowered in programs(model):
        found = gathered(lowered.compile().as_text())
        every |= found
        assert not found & stacks
    assert {shape[-2:] for shape in every} & {shape[1:] for shape in stacks}  # layers are, one by one


@pytest.mark.eight_devices
@pytest.mark.parametrize("pieces", [1, 3])
def test_activations_stay_where_their_examples_are(pieces: int) -> None:
    """Also where only some layers' factors are wanted, as a part with pieces has them."""
    model = abstract_model(LLAMA, make_options("float32", remat="full", mesh=make_mesh("data=2,fsdp=4")))
    ids = np.zeros((EXAMPLES, TIME), np.int32)
    job = prepare(loss(model), model.params, {"input_ids": ids, "labels": ids}, None, "exact", 2**24)
    where, zero = shared_out(job.mesh), jax.ShapeDtypeStruct((), jnp.int32)
    some = {name: jax.ShapeDtypeStruct((job.batch, TIME), jnp.int32, sharding=where) for name in job.examples}
    part = Portion(tuple(leaf for leaf in job.plan.leaves if leaf.layers), pieces, 3 // pieces)
    arguments = job.plan, part, None, job.mesh, None, job.captured, model.params, some, zero, zero
    found = gathered(filler().lower(*arguments).compile().as_text())
    widths = {leaf.shape[-1] for leaf in jax.tree.leaves(model.params)}
    assert found  # layers, and ids
    assert not [shape for shape in found if TIME in shape and shape[-1] in widths]
