"""The kernel of TPUs computes what plain attention does, and is in the programs that are compiled for them."""

import importlib.util
import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from lensjax.core.devices import topology_devices
from lensjax.core.errors import InputError
from lensjax.core.flops import matmul_flops
from lensjax.core.roofline.counters import count_program
from lensjax.models import from_config, make_mesh
from lensjax.models.attend import Way, attend
from lensjax.models.masks import Sight, sight
from lensjax.models.model import Model, abstract_model
from lensjax.models.options import make_options

TIME, DIM = 150, 16  # no multiple of a block
SEGMENTS = jnp.array([[1] * 60 + [2] * 50 + [0] * 40, [1] * 149 + [2]])
PADDING = {"attention_mask": jnp.array([[1] * 100 + [0] * 50, [1] * 150])}


def both_ways(
    seen: Sight,
    *,
    time: int = TIME,
    kv_heads: int = 2,
    causal: bool = True,
    softcap: float | None = None,
    sinks: bool = False,
    mesh: Mesh | None = None,
) -> list[Any]:
    """The sum of squares of attention by the kernel and by products, and its derivatives by all factors."""
    shapes = (2, time, 4, DIM), *((2, TIME, kv_heads, DIM),) * 2
    q, k, v = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes))
    own = jnp.linspace(-1.0, 1.0, 4) if sinks else None
    real = jnp.ones((2, time)) if seen.queries is None else (seen.queries > 0).astype(float)

    def loss(factors: Any, implementation: Any) -> Any:
        q, k, v, sinks = factors
        way = Way(implementation, 0.3, softcap, mesh)
        y = attend(way, q, k, v, seen, causal=causal, sinks=sinks)
        return jnp.sum(real[:, :, None, None] * y**2)

    found = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    return [found((q, k, v, own), implementation) for implementation in ("splash", "xla")]


@pytest.mark.parametrize(
    ("seen", "settings"),
    [
        (Sight(), {"kv_heads": 1}),
        (Sight(SEGMENTS, SEGMENTS, window=40), {"softcap": 2.0}),
        (Sight(window=40, sliding=jnp.asarray(True)), {"sinks": True}),
        (sight(PADDING), {"causal": False, "time": 130}),
        (Sight(), {"causal": False, "kv_heads": 4}),
    ],
    ids=["grouped", "packed, window, cap", "window of some layers, sinks", "onto padded rows", "onto all"],
)
def test_the_kernel_computes_what_products_do(seen, settings):
    fused, plain = both_ways(seen, **settings)
    for one, other in zip(*map(jax.tree.leaves, (fused, plain)), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


@pytest.mark.eight_devices
def test_devices_share_examples_and_heads():
    fused, plain = both_ways(Sight(SEGMENTS, SEGMENTS), mesh=make_mesh("data=2,tensor=4"))
    for one, other in zip(*map(jax.tree.leaves, (fused, plain)), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


def with_attention(model: Model, attention: Any) -> Model:
    options = replace(model.options, attention=attention)
    return abstract_model(model.config, options).with_params(model.params)


@pytest.mark.parametrize("model_type", ["gpt2", "gemma3_text", "bart"])
def test_models_give_the_same_losses(model_type, tiny_config):
    longer = {"n_positions": 160} if model_type == "gpt2" else {"max_position_embeddings": 160}
    model = from_config(tiny_config(model_type, **longer))
    ids = jax.random.randint(jax.random.key(0), (2, TIME), 3, 90)
    batch = {"input_ids": ids} | ({"labels": ids, **PADDING} if model_type == "bart" else {"segment_ids": SEGMENTS})
    losses = [
        jax.jit(jax.value_and_grad(with_attention(model, attention).loss))(model.params, batch)
        for attention in ("splash", "xla")
    ]
    for one, other in zip(*map(jax.tree.leaves, losses), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_the_kernel_is_not_for_every_device_or_type():
    with pytest.raises(
        InputError, match=r"attention is 'splash', dtype float32 and the device a cpu; .* a TPU, so choo"
    ):
        make_options(attention="splash")
    assert make_options(attention="auto").attention == "xla"


def needs_tpu_compiler(test: Any) -> Any:
    missing = importlib.util.find_spec("libtpu") is None
    return pytest.mark.skipif(missing, reason="compiling for a TPU that is not attached needs libtpu")(test)


def gradient_on_four_chips(config: Any, lengths: dict[str, int]) -> tuple[str, int]:
    """The program, and the operations of the products that its jaxpr shows."""
    mesh = make_mesh("fsdp=2,tensor=2", topology_devices("v5e:2x2"))
    model = abstract_model(config, make_options("bfloat16", "float32", "cheap", "auto", mesh))
    assert model.options.attention == "splash"
    rows = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
    batch = {name: jax.ShapeDtypeStruct((2, length), jnp.int32, sharding=rows) for name, length in lengths.items()}
    program = jax.jit(jax.grad(model.loss))
    return program.lower(model.params, batch).compile().as_text(), matmul_flops(program, model.params, batch)


@needs_tpu_compiler
def test_the_kernel_is_in_programs_for_tpus(tiny_config, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")  # the TPU's compiler ends the process at flags that only others know
    sizes = {"hidden_size": 64, "head_dim": 64, "max_position_embeddings": 512}
    lengths = {"input_ids": 384, "segment_ids": 384}
    text, products = gradient_on_four_chips(tiny_config("llama", **sizes), lengths)
    assert sorted(re.findall(r"%splash_mha_([a-z]+)_\S+ = \(", text)) == ["dkv", "dq", "fwd"]
    assert not re.search(r"\[(\d+,)*384,384\]", text)  # the scores of all pairs
    found = count_program(text, {"data": 1, "fsdp": 2, "tensor": 2})
    heads, layers, pairs = 4 // 2, 2, 6 * 128**2  # of nine blocks, three are masked
    assert (found.endless, found.kernels) == (0, {})
    assert found.flops == pytest.approx(products / 4 + (2 + 3 + 4) * 2 * pairs * 64 * heads * layers, rel=0.01)


@needs_tpu_compiler
def test_attention_with_biases_is_said_to_run_unfused(tiny_config, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")
    mesh = make_mesh("fsdp=2,tensor=2", topology_devices("v5e:2x2"))
    model = abstract_model(tiny_config("t5"), make_options("bfloat16", attention="auto", mesh=mesh))
    ids = jax.ShapeDtypeStruct((2, 128), jnp.int32)
    with pytest.warns(UserWarning, match="unfused on this TPU: the fused kernel cannot add biases to scores"):
        jax.eval_shape(model.hidden, model.params, {"input_ids": ids, "labels": ids})
