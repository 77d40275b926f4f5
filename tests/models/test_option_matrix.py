"""Every option of every family's configuration is either computed as torch does, or refused by a sentence.

The options are those of the configuration classes of `transformers`, so that a new one is noticed. Each is compared
with torch where LENSJAX_TEST_FAMILIES is set, and so are as many random mixtures of options, sizes and weights as
LENSJAX_TEST_MIXTURES says; without them only names are checked.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from transformers import AutoConfig, PreTrainedConfig

import lensjax.models
from lensjax.core.errors import InputError
from lensjax.models.family import supported

pytestmark = pytest.mark.filterwarnings("ignore:.rope_scaling. is deprecated")  # by models that have no use for it

# Options that change nothing that a model computes without dropout, and values that would show it if they did.
NEUTRAL: dict[str, Any] = {
    **dict.fromkeys(("attention_dropout", "activation_dropout", "dropout", "dropout_rate", "classifier_dropout"), 0.5),
    **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop", "hidden_dropout", "layerdrop"), 0.5),
    **dict.fromkeys(("encoder_layerdrop", "decoder_layerdrop", "summary_first_dropout"), 0.5),
    **dict.fromkeys(("initializer_factor", "initializer_range", "init_std", "router_jitter_noise"), 0.3),
    **dict.fromkeys(("router_aux_loss_coef", "router_z_loss_coef"), 0.3),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "forced_eos_token_id"), 7),
    "pretraining_tp": 2,
    "use_cache": False,
    "reorder_and_upcast_attn": True,
    "router_ignore_padding_tokens": True,
    "summary_activation": "tanh",
    "summary_proj_to_labels": False,
    "summary_type": "mean",
    "summary_use_proj": False,
}
# Options that every class has: names of what is saved or returned, and two of which no family here makes use.
COMMON = {
    *("architectures", "dtype", "id2label", "label2id", "problem_type", "transformers_version"),
    *("output_hidden_states", "return_dict", "is_encoder_decoder", "chunk_size_feed_forward"),
}
# Options that only choose sizes, which every variant of tests/models/test_parity.py has its own of.
SIZES = {
    *("vocab_size", "hidden_size", "d_model", "n_embd", "n_positions", "max_position_embeddings", "intermediate_size"),
    *("num_hidden_layers", "num_attention_heads", "n_head", "n_layer", "ffn_dim", "d_ff", "num_layers", "num_heads"),
    *(f"{side}_{size}" for side in ("encoder", "decoder") for size in ("layers", "attention_heads", "ffn_dim")),
    *("num_decoder_layers", "moe_intermediate_size", "vocab_size_per_layer_input"),
}
SCALED = {"factor": 2.0, "original_max_position_embeddings": 8}
ROPES: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 3.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", **SCALED},
    {"rope_type": "yarn", **SCALED, "mscale": 0.7, "mscale_all_dim": 1.3, "truncate": False},
    {"rope_type": "yarn", **SCALED, "attention_factor": 1.5, "beta_fast": 16.0, "beta_slow": 2.0},
    {"rope_type": "llama3", **SCALED, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"rope_type": "longrope", **SCALED, "short_factor": [1.0, 2.0, 3.0, 4.0], "long_factor": [2.0, 3.0, 5.0, 7.0]},
    {"rope_type": "proportional", "partial_rotary_factor": 0.5},
    {"rope_type": "default", "partial_rotary_factor": 0.5},
    {"rope_type": "linear", "factor": 3.0, "partial_rotary_factor": 0.5},
    {"rope_type": "spiral"},
]
FULL, SLIDING, WINDOW = "full_attention", "sliding_attention", {"sliding_window": 4}
MIXTURE = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 20}
ACTIVATIONS = ("relu", "gelu", "gelu_new", "gelu_10", "quick_gelu", "relu2", "tanh", "sigmoid", "gelu_python", "mish")
VALUES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("attention_bias", "mlp_bias", "tie_word_embeddings", "conv_bias"), (True, False)),
    **dict.fromkeys(("hidden_act", "hidden_activation", "activation_function", "dense_act_fn"), ACTIVATIONS),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps"), (0.1,)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), (None, 2.0)),
    **dict.fromkeys(("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier"), (0.7,)),
    **dict.fromkeys(("is_decoder", "add_cross_attention", "add_router_probs"), (True,)),
    **dict.fromkeys(("num_experts", "num_local_experts"), (3, 5)),
    **dict.fromkeys(("scale_embedding", "use_parallel_residual", "qk_layernorm", "router_bias"), (True, False)),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_conv_kernel_dim", "conv_L_cache"), (1, 5)),
    **dict.fromkeys(("encoder_sparse_step", "decoder_sparse_step"), (1, 2)),
    **dict.fromkeys(("num_sparse_encoder_layers", "num_sparse_decoder_layers"), (0, 1, 2)),
    **dict.fromkeys(("enable_bias", "do_layer_norm_before", "layer_norm_elementwise_affine"), (True, False)),
    **dict.fromkeys(("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "norm_topk_prob"), (True, False)),
    "_remove_final_layer_norm": (True, False),
    "attention_k_eq_v": tuple({"attention_k_eq_v": True, "num_global_key_value_heads": heads} for heads in (None, 1)),
    "block_auto_adjust_ff_dim": (True,),
    "block_ffn_dim_multiplier": ({"block_auto_adjust_ff_dim": True, "block_ffn_dim_multiplier": 1.5},),
    "block_multiple_of": ({"block_auto_adjust_ff_dim": True, "block_multiple_of": 7},),
    "d_kv": (4, 12),
    "decoder_start_token_id": (5,),
    "enable_moe_block": (MIXTURE | {"enable_moe_block": True},),
    "expert_capacity": (1, 3),
    "feed_forward_proj": ("relu", "gelu", "gated-gelu", "gated-silu", "silu", "gated-relu"),
    "full_attn_idxs": ({"layer_types": None, "full_attn_idxs": [0]},),
    "head_dim": (6, 12),
    "hidden_size_per_layer_input": (0, 5),
    "layer_types": (
        {"layer_types": [FULL, SLIDING], **WINDOW},
        {"layer_types": [FULL, FULL], **WINDOW},
        {"layer_types": [SLIDING, SLIDING], "sliding_window": None},
        {"layer_types": [FULL, "chunked_attention"], "attention_chunk_size": 4},
        {"layer_types": ["linear_attention", FULL]},
        {"layer_types": ["conv", FULL]},
    ),
    "linear_num_key_heads": (1, 4),
    "linear_num_value_heads": (2, 6),
    "max_window_layers": ({"use_sliding_window": True, "max_window_layers": 1, **WINDOW},),
    "mlp_only_layers": ([0], [], [0, 1]),
    "n_inner": (24,),
    "no_rope_layer_interval": ({"no_rope_layers": None, "no_rope_layer_interval": 1},),
    "no_rope_layers": ([1, 1], [0, 0], [0, 1, 0]),
    "num_experts_per_tok": (1, 3),
    "num_key_value_heads": (1, 2, 4, None),
    "num_kv_shared_layers": (0, 1, 3, 4),
    "original_max_position_embeddings": (8,),
    "output_router_logits": (True,),
    "pad_token_id": (1, None),
    "query_pre_attn_scalar": (3,),
    "relative_attention_max_distance": (9,),
    "relative_attention_num_buckets": (4,),
    "rope_parameters": tuple({"rope_theta": 100.0, **rope} for rope in ROPES),
    "router_dtype": ("float32", "bfloat16"),
    "sliding_window": (3, 4, 50, None),
    "swiglu_alpha": (0.5,),
    "swiglu_limit": (0.1, 1.0),
    "top_k_experts": (MIXTURE | {"enable_moe_block": True, "top_k_experts": 1},),
    "use_bidirectional_attention": (True, "all", "vision"),
    "use_double_wide_mlp": (True, False),
    "use_sliding_window": ({"use_sliding_window": True, "layer_types": None, **WINDOW}, False),
    "word_embed_proj_dim": (24,),
}
# Fields that config.json may have beside those of its class, some of which older files of other families have.
STRAY = ("attention_bias", "mlp_bias", "layer_types", "sliding_window", "head_dim", "use_bidirectional_attention")
OTHERS: tuple[dict[str, Any], ...] = (
    {"is_causal": False},
    {"chunk_size_feed_forward": 2, "output_hidden_states": True, "tie_last_hidden_states": False},
    {"partial_rotary_factor": 0.5},
    {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 8},
    {"rope_theta": 50.0},
)
NESTED = ("gemma3_text", "gemma4_text", "olmo3")  # whose rope_parameters are by the type of layer


def options(family: str) -> set[str]:
    """The names of a family's own options."""
    common = {field.name for field in fields(PreTrainedConfig)}
    config = AutoConfig.for_model(family)
    mapped = set(config.attribute_map)
    return {field.name for field in fields(type(config))} - common - mapped


def changes(family: str) -> Iterator[dict[str, Any]]:
    """The changes of a family's tiny configuration that are compared with torch."""
    own = options(family)
    yield {name: value for name, value in NEUTRAL.items() if name in own}
    yield from OTHERS
    for name in sorted((own | set(STRAY)) & VALUES.keys()):
        for value in VALUES[name]:
            if isinstance(value, dict) and name in value:
                yield value
            elif name == "rope_parameters" and family in NESTED:
                plain = {"rope_type": "default", "rope_theta": 50.0}
                yield {name: {FULL: dict(value), SLIDING: plain}}
            else:
                yield {name: dict(value) if isinstance(value, dict) else value}


def sizes(family: str, rng: np.random.Generator) -> dict[str, Any]:
    """Other sizes of a family's tiny configuration, odd ones among them, that suit each other."""
    heads, layers = int(rng.choice([1, 2, 3, 4, 6])), int(rng.integers(1, 6))
    width = heads * 4 * int(rng.integers(1, 5))
    own = {
        **dict.fromkeys(("num_attention_heads", "n_head", "num_heads"), heads),
        **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), heads),
        **dict.fromkeys(("hidden_size", "d_model", "n_embd", "word_embed_proj_dim"), width),
        **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "encoder_layers"), layers),
        **dict.fromkeys(("num_decoder_layers", "decoder_layers"), int(rng.integers(1, 5))),
        **dict.fromkeys(("intermediate_size", "d_ff", "ffn_dim", "encoder_ffn_dim"), int(rng.integers(5, 80))),
        **dict.fromkeys(("decoder_ffn_dim", "n_inner", "moe_intermediate_size"), int(rng.integers(5, 80))),
        "num_key_value_heads": int(rng.choice([n for n in range(1, heads + 1) if heads % n == 0])),
        "vocab_size": int(rng.integers(50, 150)),
    }
    return {name: own[name] for name in sorted(options(family) & own.keys())}


def mixture(family: str, rng: np.random.Generator) -> dict[str, Any]:
    """Some sizes and up to three changes of a family's options at a time."""
    change, every = sizes(family, rng), list(changes(family))[1:]
    for index in rng.choice(len(every), int(rng.integers(0, 4)), replace=False):
        change |= every[index]
    layers = change.get("num_hidden_layers")
    types = change.get("layer_types", getattr(AutoConfig.for_model(family), "layer_types", None))
    if layers is not None and types:
        kinds = sorted(set(types)) if len(set(types)) > 1 else types
        change["layer_types"] = [str(kind) for kind in rng.choice(kinds, layers)]
    return change


def test_options_of_every_class_are_known() -> None:
    assert {field.name for field in fields(PreTrainedConfig)} == COMMON


@pytest.mark.parametrize("family", supported())
def test_every_option_has_a_place_in_this_matrix(family: str) -> None:
    unknown = options(family) - NEUTRAL.keys() - SIZES - VALUES.keys()
    assert not unknown, f"say in this file what {sorted(unknown)} of {family} may be, and honour or refuse each"


FAMILIES = supported() if "LENSJAX_TEST_FAMILIES" in os.environ else []
CASES = [(family, number) for family in FAMILIES for number in range(len(list(changes(family))))]


@pytest.fixture
def check(
    tiny_config: Callable[..., Any],
    save_torch_model: Callable[..., Path],
    logits_of_torch: Callable[..., Any],
    assert_equal_logits: Callable[..., None],
) -> Callable[..., None]:
    """Checks that a model with some options is refused by a sentence, or has the logits of torch's.

    In float64: how far float32 rounds depends on the processor, and with some options by more than they change.
    """

    def check(family: str, change: dict[str, Any], seed: int = 0) -> None:
        try:
            folder = save_torch_model(tiny_config(family, **change), seed=seed)
            batch, expected = logits_of_torch(folder)
        except Exception as error:  # whatever classes and models of transformers say of what they do not have
            pytest.skip(f"transformers has no such model: {change}, {error}")
        with jax.enable_x64(True):
            try:
                model = lensjax.models.load(folder, dtype="float64")
            except InputError as error:
                refusal = str(error)
            else:
                assert_equal_logits(model, batch, expected)
                return
        assert "config.json" in refusal, change

    return check


@pytest.mark.parametrize(("family", "number"), CASES)
def test_an_option_is_equal_to_torch_or_refused(family: str, number: int, check: Callable[..., None]) -> None:
    check(family, list(changes(family))[number])


MIXTURES = range(  # of which every family has as many, or one more
    int(os.environ.get("LENSJAX_TEST_MIXTURES", "0"))
)


@pytest.mark.parametrize("number", MIXTURES)
def test_a_mixture_of_options_is_equal_to_torch_or_refused(number: int, check: Callable[..., None]) -> None:
    family = supported()[number % len(supported())]
    check(family, mixture(family, np.random.default_rng(number)), seed=number)
