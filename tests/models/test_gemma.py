"""Gemma against torch."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import GemmaConfig

TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 12,
    "max_position_embeddings": 64,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False, "num_key_value_heads": 2, "attention_bias": True},
    "one-key-head": {"num_key_value_heads": 1, "hidden_act": "gelu"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_torch(variant: str, assert_parity: Callable[..., None]) -> None:
    assert_parity(GemmaConfig(**TINY | VARIANTS[variant]))
