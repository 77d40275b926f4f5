"""Every family beside torch: a tiny random model of `transformers`, saved, loaded by us, and compared in every way."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lensjax.models
from lensjax.core.errors import InputError
from lensjax.models.families.t5 import relative_buckets
from lensjax.models.family import supported
from lensjax.models.torch_check import compare_with_torch

MakeConfig = Callable[..., Any]
SaveModel = Callable[..., Path]
Check = Callable[..., None]

_FULL, _SLIDING = "full_attention", "sliding_attention"
_DEEP = {"num_hidden_layers": 3}
_WIDE_HEADS = _DEEP | {"head_dim": 12}
_GEMMA2 = _WIDE_HEADS | {"query_pre_attn_scalar": 10, "sliding_window": 4}
_MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_LATER_SLIDE = {"use_sliding_window": True, "max_window_layers": 1}
_T5 = {
    "initializer_factor": 0.3,  # logits of unscaled heads stay small enough for float32
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
}
_SWITCH = {"num_layers": 4, "num_sparse_encoder_layers": 2}


def _rope(kind: str, theta: float = 1e4, **settings: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta} | settings}


# Changes of a family's tiny configuration in all variants, and in each of them; the others have one variant.
COMMON: dict[str, dict[str, Any]] = {
    "gemma": {"num_key_value_heads": 4, "head_dim": 12},
    "gemma2": _GEMMA2 | {"final_logit_softcapping": 30.0},
    "gemma3_text": _GEMMA2,
    "gemma4_text": {"vocab_size_per_layer_input": 97},
    "gpt2": _DEEP,
    "gpt_neox": {"num_attention_heads": 2},
    "llama": _DEEP,
    "mistral": {"sliding_window": None},
    "ministral3": _DEEP,
    "mt5": _T5,
    "olmo2": {"num_key_value_heads": 4},
    "olmo3": {"num_hidden_layers": 4, "layer_types": None},
    "phi": {"num_attention_heads": 2},
    "phi3": _DEEP,
    "qwen2": _DEEP,
    "qwen3": _WIDE_HEADS,
    "smollm3": {"num_hidden_layers": 4},
    "switch_transformers": _T5 | _SWITCH,
    "t5": _T5,
    "umt5": _T5,
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "bart": {
        "plain": {},
        "scaled-embedding": {"scale_embedding": True, "activation_function": "relu"},
        "unequal-sides": {
            "encoder_layers": 1,
            "decoder_layers": 3,
            "decoder_attention_heads": 2,
            "decoder_ffn_dim": 40,
        },
    },
    "mbart": {
        "plain": {"activation_function": "relu"},
        "scaled-and-unequal": {"scale_embedding": True, "encoder_layers": 1, "decoder_layers": 3},
    },
    "gemma": {
        "tied": {},
        "untied": {"tie_word_embeddings": False, "num_key_value_heads": 2, "attention_bias": True},
        "one-key-head": {"num_key_value_heads": 1, "hidden_act": "gelu"},
    },
    "gemma2": {
        "small-caps": {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 2.0},
        "no-caps": {"attn_logit_softcapping": None, "final_logit_softcapping": None, "attention_bias": True},
        "long-window": {"sliding_window": 20, "tie_word_embeddings": False},
    },
    "gemma3_text": {
        "all-sliding": {},
        "local-and-global": _MIXED | {"rope_theta": 1000.0, "rope_local_base_freq": 10.0},
        "stretched-global": _MIXED
        | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "tie_word_embeddings": False},
        "pattern": {"sliding_window_pattern": 2, "sliding_window": 20, "final_logit_softcapping": 2.0},
    },
    "gemma4_text": {
        "shared-keys-and-inputs-of-layers": {"use_double_wide_mlp": True, "final_logit_softcapping": 30.0},
        "keys-for-values": {
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
        "experts": {
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 20,
            "num_kv_shared_layers": 0,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "hidden_size_per_layer_input": 0,
        },
        "seven-layers": {
            "num_hidden_layers": 7,
            "layer_types": [_SLIDING, _FULL, _SLIDING, _SLIDING, _FULL, _SLIDING, _FULL],
            "num_kv_shared_layers": 3,
            "use_bidirectional_attention": "vision",
            "head_dim": 6,
        },
        "only-full": {"layer_types": [_FULL] * 4, "num_kv_shared_layers": 1, "enable_moe_block": True, "num_experts": 3}
        | {"top_k_experts": 1, "moe_intermediate_size": 12},
    },
    "gpt2": {
        "plain": {},
        "untied": {"tie_word_embeddings": False},
        "wide-mlp": {"n_inner": 48, "activation_function": "gelu"},
        "unscaled": {"scale_attn_weights": False},
    },
    "gpt_neox": {
        "parallel": {},
        "sequential": {"use_parallel_residual": False, "rotary_pct": 0.5, "rotary_emb_base": 100},
        "no-biases": {"attention_bias": False, "tie_word_embeddings": True, "rotary_pct": 1.0},
    },
    "gpt_oss": {
        "sinks-and-window": {"swiglu_limit": 1.0},
        "no-biases": {
            "attention_bias": False,
            "num_experts_per_tok": 3,
            "swiglu_alpha": 1.2,
            "tie_word_embeddings": True,
        },
        "one-expert-each": {"num_experts_per_tok": 1, "num_key_value_heads": 4, "layer_types": ["full_attention"] * 2},
    },
    "granite": {
        "multipliers": {},
        "biases": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "num_key_value_heads": 4},
    },
    "llama": {
        "grouped-query": {},
        "multi-head": {"num_key_value_heads": 4},
        "tied": {"tie_word_embeddings": True},
        "wide-heads": {"head_dim": 12},
        "biases": {"attention_bias": True, "mlp_bias": True},
        "llama3": _rope(
            "llama3",
            500.0,
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=16,
        ),
        "linear": _rope("linear", factor=3.0),
        "dynamic": _rope("dynamic", factor=2.0) | {"max_position_embeddings": 8},
        "yarn": _rope("yarn", factor=4.0, original_max_position_embeddings=16),
    },
    "ministral3": {
        "growing-queries": {},
        "window": {"sliding_window": 5, "tie_word_embeddings": True, "head_dim": 12},
        "not-stretched": _rope("default", original_max_position_embeddings=3, llama_4_scaling_beta=0.1),
    },
    "lfm2": {
        "convolutions": {"num_hidden_layers": 5, "layer_types": None, "full_attn_idxs": [2, 4]},
        "biases": {"conv_bias": True, "conv_L_cache": 5, "tie_word_embeddings": True},
        "adjusted": {"block_auto_adjust_ff_dim": True, "block_multiple_of": 20, "block_ffn_dim_multiplier": 1.2},
        "only-attention": {"layer_types": ["full_attention"] * 2, "num_key_value_heads": 4},
        "only-convolutions": {"layer_types": ["conv"] * 2},
    },
    "mistral": {
        "no-window": {},
        "window": {"sliding_window": 4},
        "long-window": {"sliding_window": 20, "tie_word_embeddings": True},
        "window-of-all": {"sliding_window": 13, "head_dim": 12},
        "stray-fields": {"attention_bias": True, "mlp_bias": True},
    },
    "ministral": {"alternating": {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4}},
    "olmo2": {
        "multi-head": {},
        "grouped-query": {"num_key_value_heads": 2, "tie_word_embeddings": True, "attention_bias": True},
    },
    "mixtral": {
        "two-of-four": {},
        "window": {"sliding_window": 4, "num_local_experts": 5, "num_experts_per_tok": 3, "tie_word_embeddings": True},
        "wide-heads": {"head_dim": 12, "hidden_act": "gelu", "num_experts_per_tok": 1},
    },
    "olmo3": {
        "three-in-four": {"sliding_window": 4},
        "stretched-global": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "rope_theta": 300.0},
        "biases": {"attention_bias": True, "tie_word_embeddings": True, "num_key_value_heads": 4},
    },
    "opt": {
        "plain": {},
        "350m": {"do_layer_norm_before": False, "word_embed_proj_dim": 24},
        "narrow-embedding": {"word_embed_proj_dim": 24, "tie_word_embeddings": False},
        "no-final-norm": {"_remove_final_layer_norm": True},
        "bare": {"enable_bias": False, "layer_norm_elementwise_affine": False, "activation_function": "gelu"},
    },
    "phi": {
        "half-rotary": {},
        "quarter-rotary": {"partial_rotary_factor": 0.25, "rope_theta": 100.0, "hidden_act": "gelu"},
        "tied": {"tie_word_embeddings": True, "hidden_act": "quick_gelu"},
        "normed-queries": {"qk_layernorm": True, "num_attention_heads": 4, "num_key_value_heads": 2},
    },
    "phi3": {
        "grouped-query-longrope": {"max_position_embeddings": 64, "original_max_position_embeddings": 8}
        | _rope("longrope", short_factor=[1.0, 1.5, 2.0, 2.5], long_factor=[1.0, 3.0, 5.0, 9.0]),
        "short": {"max_position_embeddings": 64, "original_max_position_embeddings": 13, "tie_word_embeddings": True}
        | _rope("longrope", short_factor=[1.0, 1.5, 2.0], long_factor=[1.0, 3.0, 5.0], partial_rotary_factor=0.75),
        "window": {"sliding_window": 4, "num_key_value_heads": 4, "partial_rotary_factor": 0.5},
    },
    "qwen2": {
        "grouped-query": {},
        "unused-window": {"sliding_window": 4, "max_window_layers": 0, "tie_word_embeddings": True},
        "later-layers-slide": _LATER_SLIDE | {"sliding_window": 4},
        "long-window": _LATER_SLIDE | {"sliding_window": 20},
    },
    "qwen3": {
        "wide-heads": {},
        "tied": {"tie_word_embeddings": True, "head_dim": 8, "num_key_value_heads": 4},
        "biases-and-window": _LATER_SLIDE | {"attention_bias": True, "sliding_window": 4},
    },
    "qwen3_5_text": {
        "one-in-three": {"num_hidden_layers": 7, "layer_types": None, "full_attention_interval": 3},
        "biases": {"attention_bias": True, "tie_word_embeddings": True, "linear_num_key_heads": 4},
        "only-linear": {"layer_types": ["linear_attention"] * 2, "linear_conv_kernel_dim": 2, "head_dim": 12},
        "only-full": {"layer_types": ["full_attention"] * 2, "partial_rotary_factor": 1.0},
    },
    "qwen3_moe": {
        "one-dense-layer": {},
        "all-sparse": {"mlp_only_layers": [], "norm_topk_prob": True, "attention_bias": True},
        "every-second": {"decoder_sparse_step": 2, "mlp_only_layers": None, "num_hidden_layers": 5},
        "window": {"use_sliding_window": True, "sliding_window": 4, "tie_word_embeddings": True},
        "no-experts": {"num_experts": 0},
    },
    "smollm3": {
        "every-fourth-unrotated": {},
        "windows": {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 4, "mlp_bias": True},
        "all-unrotated": {"no_rope_layers": [0] * 4, "attention_bias": True, "tie_word_embeddings": False},
        "any-mixture": {
            "no_rope_layers": [0, 1, 0, 1],
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
            "sliding_window": 4,
        },
    },
    "switch_transformers": {
        "alternating": {"router_bias": True},
        "uneven-groups": {"num_decoder_layers": 3, "encoder_sparse_step": 3, "decoder_sparse_step": 2},
        "no-step-and-one-beyond-depth": {"num_layers": 2, "encoder_sparse_step": 0, "decoder_sparse_step": 5},
        "all-sparse-and-overflowing": {
            "num_layers": 2,
            "encoder_sparse_step": 1,
            "decoder_sparse_step": 1,
            "expert_capacity": 2,  # 13 and 7 tokens choose among 4 experts
        },
    },
    "t5": {
        "1.0": {},
        "unscaled": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        "wide-heads": {"d_kv": 12, "feed_forward_proj": "gated-silu"},
        "deeper-decoder": {"num_layers": 1, "num_decoder_layers": 3},
    },
    "umt5": {
        "deeper-encoder": {"num_layers": 3, "num_decoder_layers": 2},
        "unscaled": {"feed_forward_proj": "relu", "tie_word_embeddings": False},
    },
}
# Families of which one variant is compared, and two of the others, unless LENSJAX_TEST_FAMILIES is set.
BRIEF = (
    "gemma4_text",
    "gpt_oss",
    "granite",
    "lfm2",
    "ministral3",
    "mbart",
    "mixtral",
    "olmo3",
    "pegasus",
    "phi3",
    "qwen3_5_text",
    "qwen3_moe",
    "smollm3",
    "umt5",
)
CASES = [
    (family, variant)
    for family in supported()
    for number, variant in enumerate(VARIANTS.get(family, {"plain": {}}))
    if number < (1 if family in BRIEF else 2) or "LENSJAX_TEST_FAMILIES" in os.environ
]
UNTIED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}  # T5 1.1's and mT5's are read as tied


@pytest.fixture
def make_config(tiny_config: MakeConfig) -> MakeConfig:
    """Makes the tiny configuration of a family's tests; what else is given is changed in it."""
    return lambda family, **changes: tiny_config(family, **{"vocab_size": 97} | COMMON.get(family, {}) | changes)


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_equals_torch(
    family: str, variant: str, make_config: MakeConfig, save_torch_model: SaveModel, assert_parity: Check
) -> None:
    variants = VARIANTS.get(family, {"plain": {}})
    folder = save_torch_model(make_config(family, **variants[variant]))
    assert_parity(folder, gradients=variant == next(iter(variants)) and family not in BRIEF)


@pytest.mark.parametrize(
    ("family", "changes"), [("bart", {}), ("t5", UNTIED), ("mt5", UNTIED), ("switch_transformers", {})]
)
def test_a_head_of_its_own_equals_torch(
    family: str, changes: dict[str, Any], make_config: MakeConfig, save_torch_model: SaveModel, assert_parity: Check
) -> None:
    assert_parity(save_torch_model(make_config(family, **changes), change=untie), gradients=family in ("bart", "t5"))


def test_barts_constant_bias_of_logits_equals_torch(
    tmp_path: Path, make_config: MakeConfig, save_torch_model: SaveModel, assert_parity: Check
) -> None:
    folder = save_torch_model(make_config("bart"), change=lambda model: model.final_logits_bias.normal_())
    assert_parity(folder, gradients=False)
    model = lensjax.models.load(folder)
    batch = {"input_ids": np.arange(5, 11)[None], "labels": np.arange(20, 24)[None]}
    slope = jax.grad(model.loss)(model.params, batch)
    assert not slope["logits_bias"]["bias"].any()  # training leaves it as it is
    assert slope["embed"]["embedding"].any()


@pytest.mark.parametrize("family", ["bart", "switch_transformers"])
def test_embeddings_of_encoder_and_decoder_that_differ_equal_torch(
    family: str, make_config: MakeConfig, save_torch_model: SaveModel, assert_parity: Check
) -> None:
    folder = save_torch_model(make_config(family, tie_word_embeddings=False), change=untie_all)
    assert_parity(folder, gradients=family == "bart")
    assert {"embed", "decoder_embed", "head"} <= set(lensjax.models.load(folder).params)


@pytest.mark.parametrize("family", ["bart", "t5", "mt5", "switch_transformers", "llama", "gpt2", "phi"])
def test_whichever_copy_of_a_tied_embedding_is_there_is_read(
    family: str, make_config: MakeConfig, save_torch_model: SaveModel
) -> None:
    folder = save_torch_model(make_config(family, tie_word_embeddings=True))
    whole, path = lensjax.models.load(folder), folder / "model.safetensors"
    stored = load_file(path)
    known, config = whole.family, whole.config
    copies = known.repeated(config)
    (first,) = set(copies.values())
    assert len(copies) == (3 if known.encoder_decoder else 1)
    for kept in copies:
        others = {name: value for name, value in stored.items() if name not in (first, *copies)}
        save_file(others | {kept: stored[first]}, path, {"format": "pt"})
        model = lensjax.models.load(folder)
        assert "head" not in model.params
        np.testing.assert_array_equal(model.params["embed"]["embedding"], whole.params["embed"]["embedding"])
    save_file(others, path, {"format": "pt"})
    with pytest.raises(InputError, match=f"1 missing \\({first}\\)"):
        lensjax.models.load(folder)


def test_an_untied_head_is_not_read_as_the_embedding(make_config: MakeConfig, save_torch_model: SaveModel) -> None:
    folder = save_torch_model(make_config("llama", tie_word_embeddings=False))
    path = folder / "model.safetensors"
    stored = load_file(path)
    del stored["model.embed_tokens.weight"]
    save_file(stored, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"1 missing \(model\.embed_tokens\.weight\)"):
        lensjax.models.load(folder)


def test_an_untied_bart_with_one_embedding_is_saved_so_that_torch_opens_it(
    tmp_path: Path, make_config: MakeConfig, save_torch_model: SaveModel, assert_parity: Check
) -> None:
    model = lensjax.models.load(save_torch_model(make_config("bart"), change=untie))
    assert "decoder_embed" not in model.params
    model.save(tmp_path / "saved")
    assert_parity(tmp_path / "saved", gradients=False)
    assert "decoder_embed" not in lensjax.models.load(tmp_path / "saved").params


def test_a_pegasus_without_positions_has_sinusoids(make_config: MakeConfig, save_torch_model: SaveModel) -> None:
    folder = save_torch_model(make_config("pegasus", d_model=34, encoder_attention_heads=2, decoder_attention_heads=2))
    path = folder / "model.safetensors"
    stored = {name: value for name, value in load_file(path).items() if "embed_positions" not in name}
    save_file(stored, path, {"format": "pt"})
    ids = {"input_ids": np.arange(5, 11)[None], "labels": np.arange(20, 24)[None]}
    model = lensjax.models.load(folder)
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    other = transformers.PegasusForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = other(**{name: torch.from_numpy(value) for name, value in ids.items()}).logits.numpy()
    found = model.apply(model.params, ids)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    bare = {name.removeprefix("model."): value for name, value in stored.items() if name.startswith("model.")}
    save_file(bare, path, {"format": "pt"})
    again = lensjax.models.load(folder)
    np.testing.assert_array_equal(again.apply(again.params, ids), found)


def test_a_bare_bart_is_the_whole_one(make_config: MakeConfig, save_torch_model: SaveModel) -> None:
    folder = save_torch_model(make_config("bart"))
    batch = {"input_ids": np.arange(5, 11), "labels": np.arange(20, 24)}
    whole = lensjax.models.load(folder)
    stored = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("model."): value for name, value in stored.items() if name.startswith("model.")}
    save_file(bare, folder / "model.safetensors", {"format": "pt"})
    model = lensjax.models.load(folder)
    np.testing.assert_array_equal(model.apply(model.params, batch), whole.apply(whole.params, batch))


def test_capped_scores_in_gemma3_are_refused(make_config: MakeConfig) -> None:
    with pytest.raises(InputError, match=r"attn_logit_softcapping is set in config\.json"):
        lensjax.models.from_config(make_config("gemma3_text", attn_logit_softcapping=2.0))


def test_masks_that_pythia_stores_are_passed_over(make_config: MakeConfig, save_torch_model: SaveModel) -> None:
    folder = save_torch_model(make_config("gpt_neox"))
    batch = {"input_ids": np.arange(5, 12)[None]}
    plain = lensjax.models.load(folder)
    file = folder / "model.safetensors"
    masks = {f"gpt_neox.layers.{i}.attention.bias": np.tri(64, dtype=bool)[None, None] for i in range(2)}
    save_file(load_file(file) | masks, file)
    model = lensjax.models.load(folder)
    np.testing.assert_array_equal(model.apply(model.params, batch), plain.apply(plain.params, batch))


def test_layer_types_make_mistral_a_ministral(make_config: MakeConfig, save_torch_model: SaveModel) -> None:
    types = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4}
    folder = save_torch_model(make_config("ministral", **types))
    batch = {"input_ids": np.arange(5, 18)[None]}
    model = lensjax.models.load(folder)
    wanted = model.apply(model.params, batch)
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"model_type": "ministral"', '"model_type": "mistral"'))
    again = lensjax.models.load(folder)
    assert again.family.model_type == "ministral"
    np.testing.assert_array_equal(again.apply(again.params, batch), wanted)
    config = make_config("mistral")
    config.layer_types = types["layer_types"]
    with pytest.raises(InputError, match=r"make it a MinistralConfig"):
        lensjax.models.from_config(config)
    assert lensjax.models.from_config(make_config("ministral", **types)).family.model_type == "ministral"


def test_positions_in_opt_follow_the_attention_mask(make_config: MakeConfig) -> None:
    model = lensjax.models.from_config(make_config("opt"))
    ids = np.array([[5, 6, 7, 8]])
    plain = model.apply(model.params, {"input_ids": ids})
    given = model.apply(model.params, {"input_ids": ids, "position_ids": np.arange(4)[None]})
    np.testing.assert_array_equal(plain, given)
    padded = {"input_ids": np.array([[1, 1, 5, 6, 7, 8]]), "attention_mask": np.array([[0, 0, 1, 1, 1, 1]])}
    np.testing.assert_allclose(model.apply(model.params, padded)[:, 2:], plain, rtol=1e-5, atol=1e-6)


def test_an_untied_switch_has_an_embedding_for_each_side(make_config: MakeConfig, save_torch_model: SaveModel) -> None:
    folder = save_torch_model(make_config("switch_transformers"), change=untie)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tie_word_embeddings": False}))
    with pytest.raises(InputError, match=r"2 missing \(decoder\.embed_tokens\.weight, encoder\.embed_tokens\.weight\)"):
        lensjax.models.load(folder)


def test_a_saved_t5_says_whether_its_head_is_tied_and_scaled(
    tmp_path: Path, make_config: MakeConfig, save_torch_model: SaveModel
) -> None:
    model = lensjax.models.load(save_torch_model(make_config("t5"), change=untie))
    model.save(tmp_path / "saved")
    again = lensjax.models.load(tmp_path / "saved")
    for loaded in (model, again):
        assert "head" in loaded.params
        assert not loaded.config.tie_word_embeddings
        assert loaded.config.scale_decoder_outputs


def test_tensors_that_t5_repeats_must_equal_the_first(make_config: MakeConfig, save_torch_model: SaveModel) -> None:
    folder = save_torch_model(make_config("t5"))
    path = folder / "model.safetensors"
    stored = load_file(path)
    repeats = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    repeated = stored | {name: stored["shared.weight"].copy() for name in repeats}
    save_file(repeated, path, {"format": "pt"})
    assert "head" not in lensjax.models.load(folder).params
    repeated["encoder.embed_tokens.weight"][-1, -1] += 1
    save_file(repeated, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"1 unexpected \(encoder\.embed_tokens\.weight\)"):
        lensjax.models.load(folder)


def test_every_activation_of_transformers_equals_torch() -> None:
    torch = pytest.importorskip("torch")
    from transformers.activations import ACT2CLS, ACT2FN

    from lensjax.models.layers import activation

    x = np.linspace(-13, 13, 1001)[::-1].copy()
    for name in sorted(set(ACT2CLS) - {"prelu", "xielu"}):  # which have parameters of their own
        theirs = torch.from_numpy(x).requires_grad_()
        expected = ACT2FN[name](theirs)
        expected.sum().backward()
        with jax.enable_x64(True):
            ours, slopes = activation(name)(x), jax.vmap(jax.grad(activation(name)))(x)
        np.testing.assert_allclose(ours, expected.detach().numpy(), atol=1e-6, err_msg=name)
        kinks = np.isin(x, (-3.0, 0.0, 3.0, 6.0))
        np.testing.assert_allclose(slopes[~kinks], theirs.grad.numpy()[~kinks], atol=1e-6, err_msg=name)
    with pytest.raises(InputError, match="Activation 'prelu' in config"):
        activation("prelu")


@pytest.mark.parametrize("gated", [False, True])
def test_a_t5_in_float16_keeps_its_last_map_in_float32(
    gated: bool, make_config: MakeConfig, save_torch_model: SaveModel
) -> None:
    def widen(model: Any) -> None:  # beyond what float16 holds
        for side in (model.encoder, model.decoder):
            side.block[0].layer[-1].DenseReluDense.wo.weight.mul_(3e4)

    config = make_config("t5", **({"feed_forward_proj": "gated-gelu"} if gated else {}))
    folder = save_torch_model(config, change=widen)
    model = lensjax.models.load(folder, dtype="float16")
    mlp = model.params["encoder"]["layers"]["blocks"]["mlp"]
    assert {name: part["kernel"].dtype.name for name, part in mlp.items()} == {
        name: "float32" if name == "down" else "float16" for name in mlp
    }
    assert all(one.passed and np.isfinite(one.loss) for one in compare_with_torch(folder, "float16"))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (8, 16), (64, 100)])
def test_buckets_of_t5_equal_torch(buckets: int, furthest: int, causal: bool) -> None:
    torch = pytest.importorskip("torch")
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = np.arange(-600, 601)
    expected = T5Attention._relative_position_bucket(torch.from_numpy(distances), not causal, buckets, furthest)
    np.testing.assert_array_equal(relative_buckets(distances, buckets, furthest, causal=causal), expected.numpy())


def untie_all(model: Any) -> None:
    import torch

    inner = getattr(model, "model", model)  # of whose embeddings, the shared one is not used
    for module in (inner.encoder.embed_tokens, inner.decoder.embed_tokens, model.lm_head):
        module.weight = torch.nn.Parameter(torch.randn_like(module.weight))
    inner.shared.weight = torch.nn.Parameter(inner.encoder.embed_tokens.weight.detach().clone())


def untie(model: Any) -> None:
    import torch

    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
