"""T5 and mT5 against torch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import MT5Config, T5Config

import lensjax.models
from lensjax.core.errors import InputError
from lensjax.models.families.t5 import relative_buckets

TINY = {
    "vocab_size": 97,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "initializer_factor": 0.3,  # logits of unscaled heads stay small enough for float32
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "decoder_start_token_id": 0,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "1.0": {},
    "unscaled": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "wide-heads": {"d_kv": 12, "feed_forward_proj": "gated-silu"},
    "deeper-decoder": {"num_layers": 1, "num_decoder_layers": 3},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_torch(variant: str, assert_parity: Callable[..., None]) -> None:
    assert_parity(T5Config(**TINY | VARIANTS[variant]))


@pytest.mark.parametrize("config", [T5Config, MT5Config])
def test_head_of_its_own_equals_torch(config: Any, assert_parity: Callable[..., None]) -> None:
    # T5 1.1 and mT5: their configurations are read as tied all the same
    made = config(**TINY, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    assert_parity(made, change=untie)


def test_saved_configuration_says_whether_head_is_tied_and_scaled(
    tmp_path: Path, save_torch_model: Callable[..., Path]
) -> None:
    model = lensjax.models.load(save_torch_model(T5Config(**TINY), change=untie))
    model.save(tmp_path / "saved")
    again = lensjax.models.load(tmp_path / "saved")
    for loaded in (model, again):
        assert "head" in loaded.params
        assert not loaded.config.tie_word_embeddings
        assert loaded.config.scale_decoder_outputs


def test_repeated_tensors_must_equal_what_they_repeat(save_torch_model: Callable[..., Path]) -> None:
    folder = save_torch_model(T5Config(**TINY))
    path = folder / "model.safetensors"
    stored = load_file(path)
    repeats = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    repeated = stored | {name: stored["shared.weight"].copy() for name in repeats}
    save_file(repeated, path, {"format": "pt"})
    assert "head" not in lensjax.models.load(folder).params
    repeated["encoder.embed_tokens.weight"][-1, -1] += 1
    save_file(repeated, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"1 unexpected \(encoder\.embed_tokens\.weight\)"):
        lensjax.models.load(folder)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (8, 16), (64, 100)])
def test_buckets_equal_torch(buckets: int, furthest: int, causal: bool) -> None:
    torch = pytest.importorskip("torch")
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = np.arange(-600, 601)
    expected = T5Attention._relative_position_bucket(torch.from_numpy(distances), not causal, buckets, furthest)
    np.testing.assert_array_equal(relative_buckets(distances, buckets, furthest, causal=causal), expected.numpy())


def untie(model: Any) -> None:
    import torch

    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
