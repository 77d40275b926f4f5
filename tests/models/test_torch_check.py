"""The check against torch passes what is right and fails what is a little wrong."""

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lensjax.core.errors import InputError
from lensjax.models import load, loading, torch_check
from lensjax.models.torch_check import Comparison, compare_with_torch, make_batches, wide_torch

torch = pytest.importorskip("torch")

SaveModel = Callable[..., Path]
MakeConfig = Callable[[str], Any]


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_a_right_model_passes(
    model_type: str, dtype: str, save_torch_model: SaveModel, tiny_config: MakeConfig
) -> None:
    folder = save_torch_model(tiny_config(model_type))
    with jax.enable_x64(dtype == "float64"):
        (found,) = compare_with_torch(folder, dtype)
    assert found.batch == "random"
    assert found.passed
    rounding, allowed = {
        "float64": (1e-13, 1e-9),
        "float32": (1e-5, 1e-4),
        "float16": (2e-2, pytest.approx(1.5e-2, rel=0.9)),  # three times torch's own
        "bfloat16": (1e-1, pytest.approx(1.5e-1, rel=0.9)),
    }[dtype]
    assert 0 < found.error < rounding
    assert found.allowed == allowed
    assert found.tokens == 24 + 18 + 23


def test_text_is_compared_where_there_is_a_tokenizer(
    save_torch_model: SaveModel, tiny_config: MakeConfig, save_tokenizer: Callable[[Path, int], None]
) -> None:
    folder = save_torch_model(tiny_config("gpt2"))
    save_tokenizer(folder, 96)
    found = compare_with_torch(folder)
    assert [comparison.batch for comparison in found] == ["random", "text"]
    assert all(comparison.passed for comparison in found)
    save_tokenizer(folder, 97)
    with pytest.raises(InputError, match="has 97 tokens and the model 96 embeddings"):
        compare_with_torch(folder)


@pytest.mark.parametrize(("field", "value"), [("activation_function", "gelu"), ("layer_norm_epsilon", 1e-6)])
def test_a_slightly_wrong_model_fails(
    field: str,
    value: Any,
    save_torch_model: SaveModel,
    tiny_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = save_torch_model(tiny_config("gpt2"))
    read_config = loading.read_config

    def changed(folder: Path) -> Any:
        config = read_config(folder)
        setattr(config, field, value)
        return config

    monkeypatch.setattr(loading, "read_config", changed)
    with jax.enable_x64(True):
        (found,) = compare_with_torch(folder, "float64")
    assert not found.passed
    assert found.error > 1e-6


def test_a_model_that_gives_nan_fails(
    save_torch_model: SaveModel, tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_torch_model(tiny_config("gpt2"))
    load = torch_check.load

    def broken(folder: Path, **settings: Any) -> Any:
        model = load(folder, **settings)
        return model.with_params(jax.tree.map(lambda leaf: leaf * np.nan, model.params))

    monkeypatch.setattr(torch_check, "load", broken)
    (found,) = compare_with_torch(folder)
    assert math.isnan(found.error)
    assert not found.passed


def test_both_logits_and_loss_must_agree() -> None:
    def passed(error: float, loss: float) -> bool:
        return Comparison("random", 1, error, loss, 2.0, 1e-3).passed

    assert passed(1e-4, 2.001)
    assert not passed(1e-2, 2.0)
    assert not passed(1e-4, 2.01)
    assert not passed(math.nan, 2.0)
    assert not passed(1e-4, math.nan)


def test_batches_fit_the_model(save_torch_model: SaveModel, tiny_config: MakeConfig) -> None:
    config = tiny_config("gpt2")
    config.n_positions = 8
    batch = make_batches(load(save_torch_model(config)))["random"]
    np.testing.assert_array_equal(batch["attention_mask"].sum(1), [8, 6, 7])
    assert batch["attention_mask"][2, 0] == 0  # padded on the left, the second on the right
    assert batch["input_ids"].max() < config.vocab_size
    seen = batch["attention_mask"] == 1
    assert (batch["labels"][~seen] == -100).all()
    assert (batch["labels"][2, :2] == -100).all()  # nothing precedes the first token


def test_torch_is_itself_again_after_being_wide() -> None:
    before = torch.float32, torch.float, torch.Tensor.float, torch.get_default_dtype()
    with wide_torch():
        assert torch.zeros(1).dtype == torch.float32 == torch.float64
    with pytest.raises(TypeError), wide_torch():
        torch.zeros("one")
    assert (torch.float32, torch.float, torch.Tensor.float, torch.get_default_dtype()) == before
    assert torch.zeros(1).dtype != torch.float64


def test_without_torch_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs torch, which is not installed; run `pip install torch`"):
        compare_with_torch(tmp_path)


def test_float64_without_64_bits(save_torch_model: SaveModel, tiny_config: MakeConfig) -> None:
    with pytest.raises(InputError, match="float64 needs 64-bit JAX; set JAX_ENABLE_X64=1"):
        compare_with_torch(save_torch_model(tiny_config("gpt2")), "float64")
