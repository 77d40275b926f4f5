"""Kernels in 8 and 4 bits: how far off they are, that adapters over them are exact, and what they take."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lensjax.models
from lensjax.core.errors import InputError
from lensjax.core.pytrees import device_bytes
from lensjax.curvature.hvp import hvp_fn
from lensjax.curvature.ntk import ntk
from lensjax.models import make_mesh
from lensjax.models.loading import quantise
from lensjax.models.lora import add_lora, join, split_trainable
from lensjax.models.quantised import BLOCK, NF4, Held, dequantised, quantised

QUICK = {"xla_backend_optimization_level": 0}
KINDS = ("int8", "nf4")
PAPER = (  # arXiv 2305.14314, appendix E
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def batch_for(model: Any, rows: int = 3, time: int = 7) -> dict[str, Any]:
    ids = np.random.default_rng(0).integers(3, model.config.vocab_size, (rows, time))
    return {"input_ids": ids, "labels": np.roll(ids, 1, axis=0)}


def with_random_adapters(model: Any) -> Any:
    trainable, frozen = split_trainable(model.params)
    rng = np.random.default_rng(1)
    noisy = jax.tree.map(
        lambda x: jax.device_put(np.asarray(x + 0.1 * rng.standard_normal(x.shape), x.dtype), x.sharding), trainable
    )
    return model.with_params(join(noisy, frozen))


def test_values_of_nf4() -> None:
    np.testing.assert_allclose(NF4, PAPER, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("stacked", "inputs", "scale"), [((), 5, 1e-30), ((2, 2), 130, 1e20)])
def test_each_value_is_the_nearest_of_its_block(kind: Any, stacked: tuple[int, ...], inputs: int, scale: float) -> None:
    rng = np.random.default_rng(inputs)
    kernel = (scale * rng.standard_normal((*stacked, inputs, 6))).astype(np.float32)
    kernel[..., : inputs // 2, 0] = 0
    held = Held(kind, inputs)
    codes, scales = quantised(jnp.asarray(kernel), kind)
    assert [(x.shape, x.dtype) for x in (codes, scales)] == [(x.shape, x.dtype) for x in held.shapes(kernel.shape)]
    found = np.asarray(dequantised(codes, scales, held, "float32"))
    values = NF4 if kind == "nf4" else np.arange(-127, 128, dtype=np.float32) / 127
    for start in range(0, inputs, BLOCK):
        block, near = kernel[..., start : start + BLOCK, :], found[..., start : start + BLOCK, :]
        largest = np.abs(block).max(axis=-2, keepdims=True)
        nearest = np.abs(block[..., None] - largest[..., None] * values).min(-1)
        np.testing.assert_allclose(np.abs(block - near), nearest, rtol=1e-4, atol=float(1e-6 * largest.max()))
        np.testing.assert_allclose(np.abs(near).max(axis=-2, keepdims=True), largest, rtol=1e-6)


@pytest.mark.parametrize(
    ("model_type", "kind", "dora"),
    [("llama", "int8", True), ("gpt2", "nf4", False), ("mixtral", "nf4", True)],
)
def test_adapters_over_quantised_kernels(
    kind: Any, model_type: str, dora: bool, tiny_config: Callable[..., Any], random_model: Callable[..., Any]
) -> None:
    """They compute, and have the gradients, that they have over the same kernels in floating point."""
    plain = random_model(tiny_config(model_type, num_hidden_layers=1))
    base = quantise(plain, kind)
    wide = base.merged()
    assert wide.options == plain.options
    assert max(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), wide.params, plain.params))) > 0
    over, beside = (add_lora(model, rank=3, dora=dora) for model in (base, wide))
    trained, _ = split_trainable(with_random_adapters(over).params)
    batch = batch_for(plain)

    def loss(model: Any) -> Any:
        _, frozen = split_trainable(model.params)
        step = jax.jit(
            jax.value_and_grad(lambda trained, frozen: model.loss(join(trained, frozen), batch)), compiler_options=QUICK
        )
        return step(trained, frozen)

    (found, slopes), (expected, wanted) = loss(over), loss(beside)
    assert found == pytest.approx(float(expected), rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max())), slopes, wanted
    )


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_quantised_as_they_are_read(
    kind: Any, tiny_config: Callable[..., Any], random_model: Callable[..., Any], tmp_path: Path
) -> None:
    plain = random_model(tiny_config("llama"))
    plain.save(tmp_path / "model")
    loaded = lensjax.models.load(tmp_path / "model", quantise=kind)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, quantise(plain, kind).params)
    adapted = with_random_adapters(add_lora(loaded, 2))
    adapted.save(tmp_path / "merged")
    again = lensjax.models.load(tmp_path / "merged")
    jax.tree.map(np.testing.assert_array_equal, again.params, adapted.merged().params)


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8.5), ("nf4", 4.5)])
def test_bits_of_a_value(
    kind: Any, bits: float, tiny_config: Callable[..., Any], random_model: Callable[..., Any]
) -> None:
    config = tiny_config("llama", hidden_size=128, intermediate_size=192, num_attention_heads=4, head_dim=32)
    plain = random_model(config)
    saved = device_bytes(plain.params) - device_bytes(quantise(plain, kind).params)
    kernels = sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(plain.params["layers"])
        if path[-1].key == "kernel"
    )
    assert saved == (32 - bits) / 8 * kernels
    size = sum(leaf.size for leaf in jax.tree.leaves(plain.params))
    base = quantise(plain, kind)
    assert f"{size:,} parameters" in base.headline
    adapted = add_lora(base, 2)
    adapters = sum(leaf.size for leaf in jax.tree.leaves(split_trainable(adapted.params)[0]))
    assert f"{size + adapters:,} parameters" in adapted.headline


@pytest.mark.eight_devices
def test_sharded_equals_unsharded(tiny_config: Callable[..., Any], random_model: Callable[..., Any]) -> None:
    config = tiny_config("llama")
    whole = quantise(random_model(config), "nf4")
    spread = quantise(random_model(config, mesh=make_mesh("data=2,fsdp=2,tensor=2")), "nf4")
    jax.tree.map(np.testing.assert_array_equal, whole.params, spread.params)
    layer = spread.params["layers"]["blocks"]["mlp"]["down"]
    assert layer["kernel"].sharding.spec == jax.sharding.PartitionSpec(None, "tensor", "fsdp")
    whole, spread = (with_random_adapters(add_lora(model, 2)) for model in (whole, spread))
    batch = batch_for(whole, rows=8)
    expected, found = (
        jax.jit(jax.grad(lambda own, frozen, model=model: model.loss(join(own, frozen), batch)))(
            *split_trainable(model.params)
        )
        for model in (whole, spread)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_curvature_of_adapters_is_right_and_of_codes_refused(
    kind: Any, tiny_config: Callable[..., Any], random_model: Callable[..., Any]
) -> None:
    with jax.enable_x64(True):
        base = quantise(random_model(tiny_config("llama", num_hidden_layers=1), dtype="float64"), kind)
        over, beside = (add_lora(model, 1, targets=["q", "down"]) for model in (base, base.merged()))
        trained, _ = split_trainable(with_random_adapters(over).params)
        v = jax.tree.map(jnp.ones_like, trained)
        batch = batch_for(base)
        products = []
        for model in (over, beside):
            _, frozen = split_trainable(model.params)
            hvp = hvp_fn(
                lambda own, batch, model=model, frozen=frozen: model.loss(join(own, frozen), batch), trained, batch
            )
            products.append(hvp(v))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *products)
        kernels = []
        for model in (over, beside):
            _, frozen = split_trainable(model.params)
            kernels.append(
                ntk(lambda own, row, model=model, frozen=frozen: model.loss(join(own, frozen), row), trained, batch)
            )
        np.testing.assert_allclose(*kernels, rtol=1e-5, atol=1e-7)
        assert np.linalg.eigvalsh(kernels[0]).min() > 0
        with pytest.raises(InputError, match=r"kernel holds u?int8; curvature needs floating-point parameters"):
            ntk(base.loss, base.params, batch)
        with pytest.raises(InputError, match=r"kernel holds u?int8; curvature needs floating-point parameters"):
            hvp_fn(base.loss, base.params, batch)


def test_what_cannot_be_quantised(tiny_config: Callable[..., Any], random_model: Callable[..., Any]) -> None:
    plain = random_model(tiny_config("llama"))
    with pytest.raises(InputError, match="quantise is 'int4'; give one of None, int8, nf4"):
        quantise(plain, "int4")  # type: ignore[arg-type]
    for model in (add_lora(plain), quantise(plain, "nf4")):
        with pytest.raises(InputError, match="has adapters or is quantised already; quantise it first, and then"):
            quantise(model, "nf4")
