"""Gemma 4's configurations, whose layers differ, and the text models of those that read images or sound too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lensjax.models
from lensjax.core.errors import InputError
from lensjax.models.inference import inference_cost

MakeConfig = Callable[..., Any]
VISION = {
    "gemma3": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    | {"image_size": 28, "patch_size": 14},
    "gemma4": None,
    "mistral3": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    | {"image_size": 28, "patch_size": 14},
    "qwen3_5": {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": 32},
}
TEXT = {"gemma3": "gemma3_text", "gemma4": "gemma4_text", "mistral3": "ministral3", "qwen3_5": "qwen3_5_text"}


@pytest.mark.parametrize("model_type", VISION)
def test_the_text_model_of_one_that_reads_images_equals_torch(
    model_type: str, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForImageTextToText

    text = tiny_config(TEXT[model_type]).to_dict()
    config = AutoConfig.for_model(model_type, text_config=text, vision_config=VISION[model_type], eos_token_id=7)
    torch.manual_seed(0)
    theirs = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path / "whole")
    ids = np.random.default_rng(0).integers(10, 90, (2, 9))
    with torch.no_grad():
        expected = theirs(input_ids=torch.from_numpy(ids), attention_mask=torch.ones(2, 9)).logits.numpy()
    model = lensjax.models.load(tmp_path / "whole")
    assert (model.family.model_type, model.config.eos_token_id) == (TEXT[model_type], 7)
    found = model.apply(model.params, {"input_ids": ids})
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    model.save(tmp_path / "text")
    again = lensjax.models.load(tmp_path / "text")
    np.testing.assert_array_equal(again.apply(again.params, {"input_ids": ids}), found)


def test_layers_that_differ_otherwise_are_refused(tiny_config: MakeConfig) -> None:
    for family, layers in (("llama", {1: {"intermediate_size": 24}}), ("llama", {0: {"skip": ["mlp"]}})):
        with pytest.raises(InputError, match=r"per_layer_config in config\.json gives layers a (interm|skip)"):
            lensjax.models.from_config(tiny_config(family, per_layer_config=layers))
    alone = {1: {"head_dim": 12}, 3: {"head_dim": 16}}
    with pytest.raises(InputError, match=r"per_layer_config in config\.json has layers of type full_attention"):
        lensjax.models.from_config(tiny_config("gemma4_text", per_layer_config=alone))


def test_what_gemma_4_does_not_say(tiny_config: MakeConfig) -> None:
    with pytest.raises(InputError, match=r"num_kv_shared_layers is 4 in config\.json, and among the 0 layers before"):
        lensjax.models.from_config(tiny_config("gemma4_text", num_kv_shared_layers=4))
    with pytest.raises(InputError, match=r"enable_moe_block is true in config\.json, and one of num_experts"):
        lensjax.models.from_config(tiny_config("gemma4_text", enable_moe_block=True, num_experts=2))
    with pytest.raises(InputError, match=r"vocab_size_per_layer_input is 95 in config\.json, and vocab_size \d+: some"):
        lensjax.models.from_config(tiny_config("gemma4_text", vocab_size_per_layer_input=95))


def test_keys_that_no_layer_needs_are_passed_over(tiny_config: MakeConfig, tmp_path: Path) -> None:
    model = lensjax.models.from_config(tiny_config("gemma4_text"))
    model.save(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    stored = load_file(file)
    spare = {f"model.layers.{i}.self_attn.k_proj.weight": np.ones((16, 32), np.float32) for i in (2, 3)}
    save_file(stored | spare, file, {"format": "pt"})
    again = lensjax.models.load(tmp_path / "model")
    ids = {"input_ids": np.arange(5, 12)[None]}
    np.testing.assert_array_equal(again.apply(again.params, ids), model.apply(model.params, ids))
    save_file(stored | {"model.layers.1.self_attn.odd.weight": spare.popitem()[1]}, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"1 unexpected \(model\.layers\.1\.self_attn\.odd\.weight\)"):
        lensjax.models.load(tmp_path / "model")


def test_layers_that_share_keep_nothing_of_their_own(tiny_config: MakeConfig) -> None:
    """Of 32 positions, the first layer keeps its window of 4, and the second all, in heads of 8 and of 12."""
    config = tiny_config("gemma4_text")
    cost = inference_cost(config, 24, 8, dtype="float32")
    values = 2 * 2 * (4 * 8 + 32 * 12)
    assert cost.memory == 4 * (cost.parameters + values)
