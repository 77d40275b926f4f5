"""Qwen 2 against torch."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import Qwen2Config

TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "grouped-query": {},
    "unused-window": {"sliding_window": 4, "max_window_layers": 0, "tie_word_embeddings": True},
    "later-layers-slide": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "long-window": {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_torch(variant: str, assert_parity: Callable[..., None]) -> None:
    assert_parity(Qwen2Config(**TINY | VARIANTS[variant]))
