"""Phi against torch."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import PhiConfig

import lensjax.models
from lensjax.core.errors import InputError

TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "half-rotary": {},
    "quarter-rotary": {"partial_rotary_factor": 0.25, "rope_theta": 100.0, "hidden_act": "gelu"},
    "normed-queries": {"qk_layernorm": True, "num_attention_heads": 4, "num_key_value_heads": 2},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_torch(variant: str, assert_parity: Callable[..., None]) -> None:
    assert_parity(PhiConfig(**TINY | VARIANTS[variant]))


def test_tied_head_is_refused() -> None:
    with pytest.raises(InputError, match=r"tie_word_embeddings is true in config\.json"):
        lensjax.models.from_config(PhiConfig(**TINY, tie_word_embeddings=True))
