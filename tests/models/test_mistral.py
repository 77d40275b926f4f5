"""Mistral against torch."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import MistralConfig

import lensjax.models
from lensjax.core.errors import InputError

TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "no-window": {"sliding_window": None},
    "window": {"sliding_window": 4},
    "long-window": {"sliding_window": 20, "tie_word_embeddings": True},
    "window-of-all": {"sliding_window": 13, "head_dim": 12},
    "stray-fields": {"sliding_window": None, "attention_bias": True, "mlp_bias": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_torch(variant: str, assert_parity: Callable[..., None]) -> None:
    assert_parity(MistralConfig(**TINY | VARIANTS[variant]))


def test_layer_types_are_refused() -> None:
    config = MistralConfig(**TINY)
    config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(InputError, match=r"layer_types is in config\.json"):
        lensjax.models.from_config(config)
