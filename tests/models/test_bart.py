"""BART against torch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import BartConfig

import lensjax.models
from lensjax.core.errors import InputError

TINY = {
    "vocab_size": 97,
    "d_model": 32,
    "max_position_embeddings": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled-embedding": {"scale_embedding": True, "activation_function": "relu"},
    "unequal-sides": {"encoder_layers": 1, "decoder_layers": 3, "decoder_attention_heads": 2, "decoder_ffn_dim": 40},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_torch(variant: str, assert_parity: Callable[..., None]) -> None:
    assert_parity(BartConfig(**TINY | VARIANTS[variant]))


def test_head_of_its_own_equals_torch(assert_parity: Callable[..., None]) -> None:
    def untie(model: Any) -> None:
        import torch

        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))

    assert_parity(BartConfig(**TINY), change=untie)


def test_bias_of_logits_must_be_zero(save_torch_model: Callable[..., Path]) -> None:
    folder = save_torch_model(BartConfig(**TINY), change=lambda model: model.final_logits_bias.normal_())
    with pytest.raises(InputError, match=r"1 unexpected \(final_logits_bias\)"):
        lensjax.models.load(folder)


def test_bare_model_is_the_whole_one(save_torch_model: Callable[..., Path]) -> None:
    folder = save_torch_model(BartConfig(**TINY))
    batch = {"input_ids": np.arange(5, 11), "labels": np.arange(20, 24)}
    whole = lensjax.models.load(folder)
    stored = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("model."): value for name, value in stored.items() if name.startswith("model.")}
    save_file(bare, folder / "model.safetensors", {"format": "pt"})
    model = lensjax.models.load(folder)
    np.testing.assert_array_equal(model.apply(model.params, batch), whole.apply(whole.params, batch))
