"""OLMo 2 against torch."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import Olmo2Config

TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "eos_token_id": 2,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "multi-head": {},
    "grouped-query": {"num_key_value_heads": 2, "tie_word_embeddings": True, "attention_bias": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_torch(variant: str, assert_parity: Callable[..., None]) -> None:
    assert_parity(Olmo2Config(**TINY | VARIANTS[variant]))
