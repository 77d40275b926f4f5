"""Switch Transformer against torch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import SwitchTransformersConfig

import lensjax.models
from lensjax.core.errors import InputError

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
    "uneven-groups": {"num_decoder_layers": 3, "encoder_sparse_step": 3, "decoder_sparse_step": 2},
    "no-step-and-one-beyond-depth": {"num_layers": 2, "encoder_sparse_step": 0, "decoder_sparse_step": 5},
    "all-sparse-and-overflowing": {
        "num_layers": 2,
        "encoder_sparse_step": 1,
        "decoder_sparse_step": 1,
        "expert_capacity": 2,  # 13 and 7 tokens choose among 4 experts
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_torch(variant: str, assert_parity: Callable[..., None]) -> None:
    assert_parity(SwitchTransformersConfig(**TINY | VARIANTS[variant]))


def test_tied_head_must_equal_the_embedding(save_torch_model: Callable[..., Path]) -> None:
    def untie(model: Any) -> None:
        import torch

        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))

    folder = save_torch_model(SwitchTransformersConfig(**TINY), change=untie)
    with pytest.raises(InputError, match=r"1 unexpected \(lm_head\.weight\)"):
        lensjax.models.load(folder)
