"""OPT against torch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from transformers import OPTConfig

import lensjax.models

TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "350m": {"do_layer_norm_before": False, "word_embed_proj_dim": 24},
    "narrow-embedding": {"word_embed_proj_dim": 24, "tie_word_embeddings": False},
    "no-final-norm": {"_remove_final_layer_norm": True},
    "bare": {"enable_bias": False, "layer_norm_elementwise_affine": False, "activation_function": "gelu"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_torch(variant: str, assert_parity: Callable[..., None]) -> None:
    assert_parity(OPTConfig(**TINY | VARIANTS[variant]))


def test_positions_follow_the_attention_mask() -> None:
    model = lensjax.models.from_config(OPTConfig(**TINY))
    ids = np.array([[5, 6, 7, 8]])
    plain = model.apply(model.params, {"input_ids": ids})
    given = model.apply(model.params, {"input_ids": ids, "position_ids": np.arange(4)[None]})
    np.testing.assert_array_equal(plain, given)
    padded = {"input_ids": np.array([[1, 1, 5, 6, 7, 8]]), "attention_mask": np.array([[0, 0, 1, 1, 1, 1]])}
    np.testing.assert_allclose(model.apply(model.params, padded)[:, 2:], plain, rtol=1e-5, atol=1e-6)
