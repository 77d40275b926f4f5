"""Gemma 3's text models against torch."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import Gemma3TextConfig

import lensjax.models
from lensjax.core.errors import InputError

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

MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
VARIANTS: dict[str, dict[str, Any]] = {
    "all-sliding": {},
    "local-and-global": MIXED | {"rope_theta": 1000.0, "rope_local_base_freq": 10.0},
    "stretched-global": MIXED | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "tie_word_embeddings": False},
    "pattern": {"sliding_window_pattern": 2, "sliding_window": 20, "final_logit_softcapping": 2.0},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_torch(variant: str, assert_parity: Callable[..., None]) -> None:
    assert_parity(Gemma3TextConfig(**TINY | VARIANTS[variant]))


def test_capped_scores_are_refused() -> None:
    with pytest.raises(InputError, match=r"attn_logit_softcapping is set in config\.json"):
        lensjax.models.from_config(Gemma3TextConfig(**TINY, attn_logit_softcapping=2.0))
