"""On a mesh, a product with a Hessian gathers no stack of layers whole, but a layer at a time."""

import jax
import jax.numpy as jnp
import pytest
from transformers import LlamaConfig

from lensjax.core.roofline.hlo import gathered
from lensjax.curvature import hvp
from lensjax.curvature.jaxpr.program import traced_program
from lensjax.curvature.streaming import layout
from lensjax.models.model import abstract_model
from lensjax.models.options import make_options
from lensjax.models.sharding import make_mesh

LLAMA = LlamaConfig(vocab_size=512, hidden_size=256, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4)


@pytest.mark.eight_devices
def test_no_stack_of_layers_is_gathered() -> None:
    mesh = make_mesh("fsdp=4,tensor=2")
    model = abstract_model(LLAMA, make_options("float32", remat="full", mesh=mesh))
    split = [leaf for leaf in jax.tree.leaves(model.params) if not leaf.sharding.is_fully_replicated]
    ids = jax.ShapeDtypeStruct((8, 16), jnp.int32, sharding=jax.NamedSharding(mesh, jax.P(("data", "fsdp"))))
    batch, params = {"input_ids": ids, "labels": ids}, model.params
    program, captured = traced_program(model.loss, params, batch, (0,))
    lowered = hvp._direct.lower(hvp._Hessian(), program, captured, params, batch, layout(params), params)
    found = gathered(lowered.compile().as_text())
    assert found  # layers are, one by one
    assert not found & {leaf.shape for leaf in split if len(leaf.shape) > 2}
