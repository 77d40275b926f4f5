"""GPT-2 against torch."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import GPT2Config

TINY = {
    "vocab_size": 97,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied": {"tie_word_embeddings": False},
    "wide-mlp": {"n_inner": 48, "activation_function": "gelu"},
    "unscaled": {"scale_attn_weights": False},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_torch(variant: str, assert_parity: Callable[..., None]) -> None:
    assert_parity(GPT2Config(**TINY | VARIANTS[variant]))
