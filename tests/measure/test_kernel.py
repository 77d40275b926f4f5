"""A model's kernel, which is measured of fine-tuned models too."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lensjax.models
from lensjax.core.errors import InputError
from lensjax.measure import kernel
from lensjax.measure.hessian import measure_hessian
from lensjax.measure.kernel import measure_kernel


@pytest.fixture
def batch():
    ids = np.random.default_rng(0).integers(3, 96, (6, 8)).astype(np.int32)
    return {"input_ids": ids, "labels": np.where(np.arange(8) > 3, ids % 5 + 3, -100).astype(np.int32)}


@pytest.mark.parametrize("functional", ["loss", "label_logits"])
def test_models_of_one_architecture_share_what_is_traced(
    tiny_config, random_model, batch, traced, tmp_path, functional
):
    kernel._of_architecture.cache_clear()
    model = random_model(tiny_config("gpt2"))
    first = measure_kernel(model, batch, functional)
    assert traced
    traced.clear()
    model.with_params(jax.tree.map(lambda leaf: 0.9 * leaf, model.params)).save(tmp_path / "tuned")
    tuned = lensjax.models.load(tmp_path / "tuned")
    assert tuned.config.to_json_string() != model.config.to_json_string()  # which says how it was saved
    second = measure_kernel(tuned, batch, functional)
    assert not traced
    np.testing.assert_array_equal(measure_kernel(model, batch, functional).theta, first.theta)
    assert not np.allclose(second.f0, first.f0)
    if functional == "loss":
        rows = ({name: of[i] for name, of in batch.items()} for i in range(len(second.f0)))
        np.testing.assert_allclose(second.f0, [float(tuned.loss(tuned.params, row)) for row in rows], rtol=1e-4)
        rounded = measure_kernel(random_model(tiny_config("gpt2"), dtype="bfloat16"), batch)
        assert 0 < np.abs(rounded.f0 - first.f0).max() < 0.1  # of another architecture, as it computes otherwise


def test_a_change_of_precision_is_a_change_of_the_kernel(tiny_config, random_model, batch, traced):
    model = random_model(tiny_config("gpt2"))
    measure_kernel(model, batch)
    traced.clear()
    with jax.default_matmul_precision("highest"):
        measure_kernel(model, batch)
    assert traced


@pytest.mark.parametrize("measure", ["kernel", "hessian"])
def test_values_that_are_not_finite_are_blamed_on_the_weights_that_are_not(
    tiny_config, random_model, batch, tmp_path, measure
):
    random_model(tiny_config("gpt2")).save(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if "mlp" in name)
    tensors[name].flat[3] = np.nan
    save_file(tensors, path, metadata={"format": "pt"})
    model = lensjax.models.load(tmp_path / "model")
    with pytest.raises(InputError, match=rf"model\.safetensors holds NaN or infinity in the tensor {name}; fetch it"):
        measure_kernel(model, batch) if measure == "kernel" else measure_hessian(model, [batch], top=1)
