"""GPT-NeoX and Pythia against torch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import GPTNeoXConfig

import lensjax.models

TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "parallel": {},
    "sequential": {"use_parallel_residual": False, "rotary_pct": 0.5, "rotary_emb_base": 100},
    "no-biases": {"attention_bias": False, "tie_word_embeddings": True, "rotary_pct": 1.0},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_torch(variant: str, assert_parity: Callable[..., None]) -> None:
    assert_parity(GPTNeoXConfig(**TINY | VARIANTS[variant]))


def test_masks_that_pythia_stores_are_passed_over(save_torch_model: Callable[..., Path]) -> None:
    folder = save_torch_model(GPTNeoXConfig(**TINY))
    batch = {"input_ids": np.arange(5, 12)[None]}
    plain = lensjax.models.load(folder)
    file = folder / "model.safetensors"
    masks = {f"gpt_neox.layers.{i}.attention.bias": np.tri(64, dtype=bool)[None, None] for i in range(2)}
    save_file(load_file(file) | masks, file)
    model = lensjax.models.load(folder)
    np.testing.assert_array_equal(model.apply(model.params, batch), plain.apply(plain.params, batch))
