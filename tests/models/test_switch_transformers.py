"""Switch Transformer against torch."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import SwitchTransformersConfig

TINY = {
    "vocab_size": 97,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 4,
    "num_decoder_layers": 2,
    "num_sparse_encoder_layers": 2,
    "num_sparse_decoder_layers": 1,
    "num_heads": 4,
    "initializer_factor": 0.3,
    "num_experts": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "decoder_start_token_id": 0,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "alternating": {"router_bias": True},
    "all-sparse": {"num_layers": 2, "encoder_sparse_step": 1, "decoder_sparse_step": 1},
    "dense-encoder": {"num_layers": 2, "encoder_sparse_step": 0},
    "uneven-groups": {"num_decoder_layers": 3, "encoder_sparse_step": 3, "decoder_sparse_step": 2},
    "step-beyond-depth": {"num_layers": 2, "encoder_sparse_step": 5},
    "overflow": {"num_layers": 2, "expert_capacity": 2, "encoder_sparse_step": 1},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_torch(variant: str, assert_parity: Callable[..., None]) -> None:
    assert_parity(SwitchTransformersConfig(**TINY | VARIANTS[variant]))
