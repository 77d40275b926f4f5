"""Programs for NVIDIA GPUs, lowered without one: that they lower at all, and with fused attention where asked for."""

import re
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as fused

from lensjax.curvature.hvp import _direct, _GaussNewton, _Hessian
from lensjax.curvature.jaxpr.program import traced_program
from lensjax.curvature.ntk.contract import contract
from lensjax.curvature.ntk.factors import ContractionPlan, make_factors, make_parts
from lensjax.measure.model_losses import head_cross_entropy
from lensjax.models.model import abstract_model
from lensjax.models.options import Options, make_options
from lensjax.models.sharding import make_mesh
from lensjax.train.spec import TrainingSpec
from lensjax.train.step import make_programs, state_shapes

ROWS, TIME = 4, 32


@pytest.fixture
def cuda(monkeypatch):
    """JAX asks for cuDNN's version and the GPU's generation where it traces attention."""
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)

    def lower(jitted, *arguments):
        return jitted.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()

    return lower


def shapes_of(*names, rows=ROWS):
    return {name: jax.ShapeDtypeStruct((rows, TIME), jnp.int32) for name in names}


def fused_calls(text):
    """Forward and backward passes of fused attention."""
    names = re.findall(r"@__cudnn\$(fmha\w+)", text)
    backward = sum("Backward" in name for name in names)
    return len(names) - backward, backward


@pytest.mark.parametrize("attention", ["cudnn", "xla"])
@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_training_step_has_each_pass_of_attention_once(model_type, attention, tiny_config, cuda):
    mesh = make_mesh("data=1", jax.devices()[:1])
    half, single = np.dtype(jnp.bfloat16), np.dtype(np.float32)
    options = Options(half, single, "cheap", attention, mesh)
    model, spec = abstract_model(tiny_config(model_type), options), TrainingSpec(batch_size=ROWS)
    programs, state = make_programs(model, spec, mesh), state_shapes(model, spec, mesh)
    for names in (("input_ids", "labels", "attention_mask"), ("input_ids", "labels", "segment_ids")):
        text = cuda(programs.step, state, {}, shapes_of(*names), 0.0)
        assert fused_calls(text) == ((1, 1) if attention == "cudnn" else (0, 0))  # in the loop over layers
        assert "bf16" in text
    text = cuda(programs.losses, state.params, {}, shapes_of("input_ids", "labels", "attention_mask"))
    assert fused_calls(text) == ((1, 0) if attention == "cudnn" else (0, 0))


@pytest.mark.parametrize("model_type", ["gpt2", "t5"])
def test_products_with_the_hessian_and_kernels_lower(model_type, tiny_config, random_model, cuda):
    model, batch = random_model(tiny_config(model_type)), shapes_of("input_ids", "labels")
    outputs, loss = head_cross_entropy(model)
    for f, rule in ((model.loss, _Hessian()), (outputs, _GaussNewton(loss))):
        program, captured = traced_program(f, model.params, batch)
        layout = (None,) * len(jax.tree.leaves(model.params))
        assert "dot_general" in cuda(_direct, rule, program, captured, model.params, batch, layout, model.params)
    one = {name: np.zeros(TIME, np.int32) for name in batch}
    program, captured = traced_program(model.loss, model.params, one)
    plan = ContractionPlan(program)
    (part,) = make_parts(plan, ROWS, 2**30)

    def kernels(params, examples, piece):
        made = make_factors(plan, part, captured, params, examples, piece)[1]
        flat = [
            contract(factors, factors, leaf.first, "trace", 2**20)
            for leaf, factors in zip(part.leaves, made, strict=True)
            if leaf.layers is None
        ]
        return sum(flat[1:], flat[0])

    assert "dot_general" in cuda(jax.jit(kernels), model.params, batch, jnp.asarray(0))


@pytest.mark.parametrize(
    ("model_type", "dtype", "attention", "said"),
    [
        ("gpt2", "bfloat16", "xla", "choose attention cudnn"),
        ("gemma2", "bfloat16", "cudnn", "cannot cap scores"),
        ("gpt2", "bfloat16", "cudnn", None),
        ("gpt2", "float32", "xla", None),  # as curvature needs it
    ],
)
def test_unfused_attention_on_a_gpu_is_said(model_type, dtype, attention, said, tiny_config, cuda, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    kind = np.dtype(jnp.dtype(dtype))
    model = abstract_model(tiny_config(model_type), Options(kind, kind, "cheap", attention, None))
    with nullcontext() if said is None else pytest.warns(UserWarning, match=said):
        jax.eval_shape(model.hidden, model.params, shapes_of("input_ids"))


def test_training_in_a_type_that_has_no_fused_attention_is_said(tiny_config, monkeypatch):
    mesh = make_mesh("data=1", jax.devices()[:1])
    model = abstract_model(tiny_config("gpt2"), make_options(mesh=mesh))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.warns(UserWarning, match="no float32; choose dtype bfloat16 and attention cudnn"):
        make_programs(model, TrainingSpec(batch_size=ROWS), mesh)
