"""The cost of models at inference: parameters, weights and caches in bytes, operations per token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensjax.models.inference import inference_cost
from lensjax.models.model import abstract_model
from lensjax.models.options import make_options


def test_gpt2_costs_what_is_known_of_it():
    from transformers import AutoConfig

    cost = inference_cost(AutoConfig.for_model("gpt2"), 1000, 24, batch=3)
    assert cost.parameters == 124_439_808
    assert cost.memory == 2 * (124_439_808 + 3 * 1024 * 2 * 12 * 768)  # keys and values of 12 layers
    products = 12 * 12 * 768**2 + 768 * 50257  # of every token with weights of blocks and head
    assert cost.flops_per_token == 2 * products + 4 * 12 * 1024 * 768


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_grouped_heads_and_windows_keep_fewer_keys(tiny_config, dtype):
    config, size = tiny_config("gemma3_text"), np.dtype(jnp.dtype(dtype)).itemsize
    short, long = (inference_cost(config, length, 10, dtype=dtype) for length in (20, 40))
    full = config.layer_types.count("full_attention")
    assert 0 < full < config.num_hidden_layers
    assert long.memory - short.memory == size * 20 * full * 2 * 2 * 8  # windows of 4 are full already
    each = (full * 30 + (config.num_hidden_layers - full) * 4) * 2 * 2 * 8
    assert short.memory == size * (short.parameters + each)


@pytest.mark.parametrize(("family", "context"), [("gpt2", 64), ("opt", 64), ("bart", 64 + 50), ("llama", 250)])
def test_contexts_end_where_learned_positions_do(tiny_config, family, context):
    cost = inference_cost(tiny_config(family), 200, 50)
    assert cost.context == context
    prompt = 64 if family == "bart" else round(0.8 * context)
    assert inference_cost(tiny_config(family), prompt, context - prompt) == cost


@pytest.mark.parametrize("family", ["t5", "bart", "switch_transformers"])
def test_encoder_decoders_keep_keys_of_both_sides(tiny_config, family):
    config = tiny_config(family)
    model = abstract_model(config, make_options())
    cost = inference_cost(config, 20, 6, batch=2, dtype="float32")
    assert cost.parameters == sum(leaf.size for leaf in jax.tree.leaves(model.params))
    assert cost.memory == 4 * (cost.parameters + 2 * (20 + 6) * 2 * 2 * 32)  # two layers of width 32 in the decoder
