"""Qwen 3 against torch."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import Qwen3Config

TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "wide-heads": {},
    "tied": {"tie_word_embeddings": True, "head_dim": 8, "num_key_value_heads": 4},
    "biases-and-window": {
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_torch(variant: str, assert_parity: Callable[..., None]) -> None:
    assert_parity(Qwen3Config(**TINY | VARIANTS[variant]))
