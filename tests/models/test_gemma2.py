"""Gemma 2 against torch."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import Gemma2Config

TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "query_pre_attn_scalar": 10,
    "sliding_window": 4,
    "max_position_embeddings": 64,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "small-caps": {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 2.0},
    "no-caps": {"attn_logit_softcapping": None, "final_logit_softcapping": None, "attention_bias": True},
    "long-window": {"sliding_window": 20, "tie_word_embeddings": False},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_torch(variant: str, assert_parity: Callable[..., None]) -> None:
    assert_parity(Gemma2Config(**TINY | VARIANTS[variant]))
