"""Adapters change nothing at first, are all that is trained, and merge into kernels that compute the same."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import NamedSharding, PartitionSpec

import lensjax.models
from lensjax.core.errors import InputError
from lensjax.models import Model, make_mesh
from lensjax.models.lora import TARGETS, add_lora, join, split_trainable, with_constant_norms
from lensjax.models.torch_check import torch_outputs

QUICK = {"xla_backend_optimization_level": 0}  # compiling takes most of a test's time
ADAPTERS = {"lora_a", "lora_b"}  # of LoRA
MakeConfig = Callable[[str], Any]
MakeModel = Callable[..., Model]


def batch_for(model: Any, rows: int = 3, time: int = 7) -> dict[str, Any]:
    ids = np.random.default_rng(0).integers(3, model.config.vocab_size, (rows, time))
    return {"input_ids": ids, "labels": np.roll(ids, 1, axis=0)}


def trained(model: Any) -> Any:
    """The model with adapters that are random in both factors."""
    trainable, frozen = split_trainable(model.params)
    rng = np.random.default_rng(0)
    random = jax.tree.map(
        lambda x: jax.device_put((0.3 * rng.standard_normal(x.shape)).astype(x.dtype), x.sharding), trainable
    )
    return model.with_params(join(random, frozen))


def names(params: Any) -> set[str]:
    return {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(params)}


def adapted(params: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The linear maps with adapters, and their names."""
    for key, value in params.items():
        if isinstance(value, dict):
            yield from [(key, value)] if "lora_a" in value else adapted(value)


def gradient_of(model: Any, batch: Any) -> Callable[[Any, Any], Any]:
    """The gradient with respect to what is trainable."""
    return jax.grad(lambda trainable, frozen: model.loss(join(trainable, frozen), batch))


def test_the_same_at_first_and_when_merged(
    distinct_type: str, tiny_config: MakeConfig, random_model: MakeModel
) -> None:
    plain = random_model(tiny_config(distinct_type))
    start = add_lora(plain, rank=3, alpha=5.0)
    trainable, frozen = split_trainable(start.params)
    assert names(trainable) == ADAPTERS
    assert jax.tree.structure(frozen) == jax.tree.structure(plain.params)
    assert jax.tree.structure(join(trainable, frozen)) == jax.tree.structure(start.params)
    batch = batch_for(plain)
    before = jax.jit(lambda params: plain.apply(params, batch), compiler_options=QUICK)
    after = jax.jit(lambda params: start.apply(params, batch), compiler_options=QUICK)
    logits = before(plain.params)
    np.testing.assert_array_equal(after(start.params), logits)
    model = trained(start)
    merged = model.merged()
    assert merged.options == plain.options
    found, expected = np.asarray(before(merged.params)), np.asarray(after(model.params))
    assert np.abs(expected - logits).max() > 1e-3 * np.abs(logits).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5 * np.abs(expected).max())


@pytest.mark.parametrize("model_type", ["llama", "t5"])
def test_gradients_follow_the_chain_rule(model_type: str, tiny_config: MakeConfig, random_model: MakeModel) -> None:
    with jax.enable_x64(True):
        model = trained(add_lora(random_model(tiny_config(model_type), dtype="float64"), rank=3, alpha=5.0))
        batch, merged = batch_for(model), model.merged()
        trainable, frozen = split_trainable(model.params)
        gradient = jax.jit(gradient_of(model, batch), compiler_options=QUICK)(trainable, frozen)
        whole = jax.jit(jax.grad(merged.loss), compiler_options=QUICK)(merged.params, batch)
        assert jax.tree.structure(gradient) == jax.tree.structure(trainable)
        chained, _ = split_trainable(_chained(model.params, whole, 5.0 / 3))
    for found, expected in zip(jax.tree.leaves(gradient), jax.tree.leaves(chained), strict=True):
        assert found.dtype == np.float64
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11 * np.abs(expected).max())


def _chained(params: Any, gradient: Any, scale: float) -> Any:
    """Gradients of adapters from those of the merged kernels."""
    if "lora_a" in params:
        kernel = gradient["kernel"]
        return {
            "lora_a": scale * jnp.einsum("...io,...ro->...ir", kernel, params["lora_b"]),
            "lora_b": scale * jnp.einsum("...io,...ir->...ro", kernel, params["lora_a"]),
        }
    return {k: _chained(v, gradient[k], scale) if isinstance(v, dict) else v for k, v in params.items()}


@pytest.mark.parametrize("remat", ["none", "full"])
def test_no_gradient_of_a_kernel_is_formed(remat: Any, tiny_config: MakeConfig, random_model: MakeModel) -> None:
    config = tiny_config("llama")
    model = add_lora(random_model(config, remat=remat), rank=3)
    batch = batch_for(model)
    trainable, frozen = split_trainable(model.params)
    kernels = {layer["kernel"].shape[1:] for _, layer in adapted(model.params)}
    kernels |= {shape[::-1] for shape in kernels}
    adapters = set(products(jax.make_jaxpr(gradient_of(model, batch))(trainable, frozen).jaxpr))
    everything = set(products(jax.make_jaxpr(jax.grad(model.loss))(model.params, batch).jaxpr))
    assert not adapters & kernels
    assert len(everything & kernels) >= 4  # such a gradient would show


def products(jaxpr: Jaxpr) -> Iterator[tuple[int, ...]]:
    """Shapes of the results of all matrix products."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.outvars[0].aval.shape
        for part in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: isinstance(x, Jaxpr)):
            if isinstance(part, ClosedJaxpr | Jaxpr):
                yield from products(part.jaxpr if isinstance(part, ClosedJaxpr) else part)


def test_what_is_saved_is_merged(tiny_config: MakeConfig, random_model: MakeModel, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    model = trained(add_lora(random_model(tiny_config("gpt2")), rank=3))
    model.save(tmp_path / "model")
    batch = batch_for(model)
    ones = {"attention_mask": np.ones_like(batch["input_ids"])}
    (theirs, _), *_ = torch_outputs(tmp_path / "model", "GPT2LMHeadModel", {"": batch | ones}, "float32").values()
    ours = np.asarray(model.apply(model.params, batch))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
    loaded = lensjax.models.load(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, loaded.params, model.merged().params)


@pytest.mark.eight_devices
@pytest.mark.parametrize("model_type", ["llama", pytest.param("switch_transformers", marks=pytest.mark.long)])
def test_sharded_equals_unsharded(model_type: str, tiny_config: MakeConfig, random_model: MakeModel) -> None:
    config = tiny_config(model_type)
    whole = add_lora(random_model(config), rank=4)
    spread = add_lora(random_model(config, mesh=make_mesh("data=2,fsdp=2,tensor=2")), rank=4)
    jax.tree.map(np.testing.assert_array_equal, whole.params, spread.params)
    for name, layer in adapted(spread.params):
        first, last = ("tensor", "fsdp") if name in ("o", "down") else ("fsdp", "tensor")
        assert axes(layer["lora_a"])[-2:] == (first, None)
        assert axes(layer["lora_b"])[-2:] == (None, last)
    whole, spread = trained(whole), trained(spread)
    batch = batch_for(whole, rows=8)
    placed = NamedSharding(spread.options.mesh, PartitionSpec(("data", "fsdp")))
    split = {key: jax.device_put(value, placed) for key, value in batch.items()}
    expected, found = (
        jax.jit(gradient_of(model, rows), compiler_options=QUICK)(*split_trainable(model.params))
        for model, rows in ((whole, batch), (spread, split))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), found, expected)
    merged = spread.merged().params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), merged, whole.merged().params)
    _, frozen = split_trainable(spread.params)
    assert jax.tree.map(lambda x: x.sharding, merged) == jax.tree.map(lambda x: x.sharding, frozen)


def axes(leaf: Any) -> tuple[Any, ...]:
    """The mesh axis of every dimension."""
    spec = tuple(leaf.sharding.spec)
    return spec + (None,) * (leaf.ndim - len(spec))


def test_only_named_linear_maps_have_adapters(tiny_config: MakeConfig, random_model: MakeModel) -> None:
    config = tiny_config("llama")
    config.tie_word_embeddings = False
    model = random_model(config)
    everything = add_lora(model)
    assert set(names_of(everything)) == set(TARGETS)
    assert names(everything.params["head"]) == {"kernel"}
    some = add_lora(model, targets=["v", "q", "q"])
    assert some.options.lora.targets == ("q", "v")
    assert set(names_of(some)) == {"q", "v"}
    assert some.params["embed"]["embedding"] is model.params["embed"]["embedding"]


def test_ranks_and_scales_of_targets(tiny_config: MakeConfig, random_model: MakeModel) -> None:
    model = add_lora(
        random_model(tiny_config("llama")),
        4,
        8.0,
        ["attention/(q|v)", "mlp/.*"],
        ranks={"mlp/(up|down)": 2},
        alphas={"down": 3.0},
        rslora=True,
    )
    found = {name: (layer["lora_a"].shape[-1], layer["lora_b"].shape[-2]) for name, layer in adapted(model.params)}
    assert found == {"q": (4, 4), "v": (4, 4), "gate": (4, 4), "up": (2, 2), "down": (2, 2)}
    scales = {path.rpartition("/")[2]: scale for path, scale in model.options.lora.scales.items()}
    usual = 8 / 4**0.5
    assert scales == {"q": usual, "v": usual, "gate": usual, "up": 8 / 2**0.5, "down": 3 / 2**0.5}


def test_one_side_of_an_encoder_decoder(tiny_config: MakeConfig, random_model: MakeModel) -> None:
    model = add_lora(random_model(tiny_config("t5")), targets=["decoder/.*"])
    assert {one.path.partition("/")[0] for one in model.options.lora.adapters} == {"decoder"}


@pytest.mark.parametrize("model_type", ["llama", "switch_transformers"])
def test_dora_merged(model_type: str, tiny_config: MakeConfig, random_model: MakeModel) -> None:
    plain = random_model(tiny_config(model_type))
    start, batch = add_lora(plain, rank=3, dora=True), batch_for(plain)
    before = jax.jit(lambda params: plain.apply(params, batch), compiler_options=QUICK)
    after = jax.jit(lambda params: start.apply(params, batch), compiler_options=QUICK)
    logits = np.asarray(before(plain.params))
    np.testing.assert_allclose(after(start.params), logits, rtol=0, atol=1e-5 * np.abs(logits).max())
    model = trained(start)
    merged, expected = model.merged(), np.asarray(after(model.params))
    assert np.abs(expected - logits).max() > 1e-2 * np.abs(logits).max()
    np.testing.assert_allclose(before(merged.params), expected, rtol=0, atol=3e-5 * np.abs(expected).max())
    for (_, layer), kernel in zip(adapted(model.params), kernels_of(model, merged), strict=True):
        np.testing.assert_allclose(np.linalg.norm(kernel, axis=-2), np.abs(layer["lora_m"]), rtol=1e-4)


def test_derivatives_of_dora(tiny_config: MakeConfig, random_model: MakeModel) -> None:
    """They are those of the function, unless norms are constants."""
    with jax.enable_x64(True):
        model = trained(add_lora(random_model(tiny_config("llama"), dtype="float64"), rank=3, dora=True))
        batch = batch_for(model)
        trainable, frozen = split_trainable(model.params)
        rng = np.random.default_rng(2)
        v = jax.tree.map(lambda x: rng.standard_normal(x.shape), trainable)
        moved = jax.jit(
            lambda t: model.loss(join(jax.tree.map(lambda x, dx: x + t * dx, trainable, v), frozen), batch),
            compiler_options=QUICK,
        )
        slope = (moved(1e-5) - moved(-1e-5)) / 2e-5

        def along(model: Any) -> float:
            gradient = jax.jit(gradient_of(model, batch), compiler_options=QUICK)(trainable, frozen)
            return sum(jax.tree.leaves(jax.tree.map(lambda g, dx: float((g * dx).sum()), gradient, v)))

        assert along(model) == pytest.approx(float(slope), rel=1e-6)
        assert along(with_constant_norms(model)) != pytest.approx(float(slope), rel=1e-3)


def kernels_of(model: Any, merged: Any) -> Iterator[np.ndarray]:
    """The merged kernels of the maps with adapters."""

    def walk(params: Any, of: Any) -> Iterator[np.ndarray]:
        for key, value in params.items():
            if isinstance(value, dict):
                yield from [np.asarray(of[key]["kernel"])] if "lora_a" in value else walk(value, of[key])

    return walk(model.params, merged.params)


def names_of(model: Any) -> list[str]:
    return [name for name, _ in adapted(model.params)]


def test_how_adapters_start(tiny_config: MakeConfig, random_model: MakeModel) -> None:
    model = random_model(tiny_config("llama"))
    first, again, other = (add_lora(model, seed=seed).params for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for (_, layer), (_, different) in zip(adapted(first), adapted(other), strict=True):
        bound = layer["kernel"].shape[1] ** -0.5
        assert 0.9 * bound < np.abs(layer["lora_a"]).max() <= bound
        assert abs(np.mean(layer["lora_a"])) < 0.15 * bound
        assert not np.any(layer["lora_b"])
        assert not np.any(np.asarray(layer["lora_a"]) == np.asarray(different["lora_a"]))
        assert not np.any(np.asarray(layer["lora_a"][0]) == np.asarray(layer["lora_a"][1]))


def test_adapters_of_half_precision_kernels_are_float32(tiny_config: MakeConfig, random_model: MakeModel) -> None:
    model = trained(add_lora(random_model(tiny_config("llama"), dtype="bfloat16"), rank=3, alpha=6.0))
    trainable, frozen = split_trainable(model.params)
    assert {leaf.dtype for leaf in jax.tree.leaves(trainable)} == {np.dtype(np.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(frozen)} == {jnp.dtype(jnp.bfloat16)}
    assert model.apply(model.params, batch_for(model)).dtype == jnp.bfloat16
    layer = model.params["layers"]["blocks"]["attention"]["q"]
    merged = model.merged().params["layers"]["blocks"]["attention"]["q"]["kernel"]
    kernel, a, b = (np.asarray(layer[name], np.float64) for name in ("kernel", "lora_a", "lora_b"))
    assert merged.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(merged, np.float64), kernel + 2.0 * a @ b, rtol=2**-8)


def test_without_adapters_all_is_trainable(tiny_config: MakeConfig, random_model: MakeModel) -> None:
    model = random_model(tiny_config("gpt2"))
    trainable, frozen = split_trainable(model.params)
    assert jax.tree.structure(trainable) == jax.tree.structure(model.params)
    assert frozen == {}
    assert jax.tree.structure(join(trainable, frozen)) == jax.tree.structure(model.params)
    assert model.merged() is model


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, r"rank is 0; give a whole number from 1 to 32"),
        ({"rank": 33}, r"rank is 33; give a whole number from 1 to 32"),
        ({"rank": 2.0}, r"rank is 2\.0; give a whole number"),
        ({"rank": True}, r"rank is True; give a whole number"),
        ({"alpha": 0.0}, r"alpha is 0\.0; give a positive number"),
        ({"alpha": float("nan")}, r"alpha is nan; give a positive number"),
        (
            {"targets": ["q", "gate"]},
            r"targets has 'gate', which is none of .*: q, k, v, o, up, down; give",
        ),
        ({"targets": ["head"]}, r"targets has 'head'"),
        ({"targets": "qv"}, r"targets is 'qv'; give a list of names"),
        ({"targets": []}, r"targets is '\[\]'; give a list of names"),
        ({"targets": ["(q"]}, r"targets has '\(q': it is no regular expression"),
        ({"targets": ["encoder/.*"]}, r"or a regular expression on paths such as layers/blocks/attention/k\."),
        ({"ranks": {"gate": 2}}, r"ranks has 'gate', which is none of the linear maps"),
        ({"ranks": {"up": 33}}, r"rank of layers/blocks/mlp/up is 33; give a whole number from 1 to 32"),
        ({"targets": ["q"], "alphas": {"v": 2.0}}, r"alphas has 'v', which is none of the linear maps .*: q; give"),
        ({"ranks": {"q": 2, "attention/.*": 3}}, r"ranks has 'q' and 'attention/.\*', which both mean layers/"),
    ],
)
def test_bad_settings_are_refused(
    settings: dict[str, Any], message: str, tiny_config: MakeConfig, random_model: MakeModel
) -> None:
    with pytest.raises(InputError, match=message):
        add_lora(random_model(tiny_config("gpt2")), **settings)


def test_adapters_are_added_once(tiny_config: MakeConfig, random_model: MakeModel) -> None:
    model = add_lora(random_model(tiny_config("gpt2")))
    with pytest.raises(InputError, match=r"has LoRA adapters already; merge them with its merged"):
        add_lora(model)
