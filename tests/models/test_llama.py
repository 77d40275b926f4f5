"""Llama against torch."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import LlamaConfig

TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped-query": {},
    "multi-head": {"num_key_value_heads": 4},
    "tied": {"tie_word_embeddings": True},
    "wide-heads": {"head_dim": 12},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "llama3": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0} | LLAMA3},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}},
    "dynamic": {
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
        "max_position_embeddings": 8,
    },
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_torch(variant: str, assert_parity: Callable[..., None]) -> None:
    assert_parity(LlamaConfig(**TINY | VARIANTS[variant]))
