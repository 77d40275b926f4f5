"""The table of parameters against models that are made."""

import json
import math
from collections.abc import Callable
from typing import Any

import jax
import pytest
from transformers import GPT2Config, LlamaConfig

from lensjax.core.errors import InputError
from lensjax.core.pytrees import path_name
from lensjax.models import make_mesh
from lensjax.models.model import abstract_model
from lensjax.models.options import make_options
from lensjax.models.parameter_table import LARGE, parameter_table
from lensjax.models.sharding import parse_mesh

MakeConfig = Callable[[str], Any]
LLAMA_70B = {
    "vocab_size": 128256,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}


@pytest.mark.eight_devices
@pytest.mark.parametrize("model_type", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_table_is_what_devices_hold(model_type: str, dtype: str, tiny_config: MakeConfig) -> None:
    config, sizes = tiny_config(model_type), "data=1,fsdp=4,tensor=2"
    table = parameter_table(config, parse_mesh(sizes), dtype)
    options = make_options(dtype, mesh=make_mesh(sizes))
    leaves = jax.tree_util.tree_flatten_with_path(abstract_model(config, options).params)[0]
    for row, (path, leaf) in zip(table.rows, leaves, strict=True):
        sharding = leaf.sharding
        assert row.path == path_name(path)
        assert row.shape == leaf.shape
        assert sharding.is_equivalent_to(jax.NamedSharding(options.mesh, row.spec), leaf.ndim)
        assert row.shard == sharding.shard_shape(leaf.shape)
        assert row.shard_bytes == math.prod(row.shard) * leaf.dtype.itemsize
    assert table.parameters == sum(leaf.size for _, leaf in leaves)
    assert table.device_bytes == sum(row.shard_bytes for row in table.rows)


def test_a_model_too_large_to_make() -> None:
    table = parameter_table(LlamaConfig(**LLAMA_70B), parse_mesh("fsdp=64,tensor=8"), "bfloat16")
    assert table.parameters == 70_553_706_496  # as Llama 3 70B has
    assert table.parameters * 2 / 512 <= table.device_bytes <= 1.02 * table.parameters * 2 / 512
    assert table.warnings == []
    assert table.facts == {
        "layers": 80,
        "width": 8192,
        "heads": 64,
        "kv_heads": 8,
        "vocabulary": 128256,
        "context": 131072,
    }


def test_a_large_parameter_left_whole_is_told() -> None:
    config = GPT2Config(n_layer=2)  # whose 50257 tokens no axis divides
    sizes = parse_mesh("tensor=3")
    table = parameter_table(config, sizes)
    assert [row.path for row in table.rows if row.whole] == ["embed/embedding"]
    assert math.prod(table.rows[0].shape) > LARGE
    assert table.warnings == ["embed/embedding (154.4 MB) is not split by this mesh: every device holds all of it."]
    assert parameter_table(config, parse_mesh("fsdp=3,tensor=3")).warnings == []
    assert parameter_table(config, parse_mesh("data=8")).warnings == []  # which is not meant to split it


def test_json_holds_all_of_it(tiny_config: MakeConfig) -> None:
    table = parameter_table(tiny_config("llama"), parse_mesh("fsdp=2"), "float16")
    content = json.loads(table.to_json())
    assert content["model_type"] == "llama"
    assert content["dtype"] == "float16"
    assert content["mesh"] == {"data": 1, "fsdp": 2, "tensor": 1}
    assert content["facts"] == table.facts
    assert content["bytes"] == 2 * content["parameters"] == 2 * sum(math.prod(row["shape"]) for row in content["table"])
    assert content["bytes_per_device"] == sum(row["bytes_per_device"] for row in content["table"])
    assert all(2 * math.prod(row["shard_shape"]) == row["bytes_per_device"] for row in content["table"])
    assert content["table"][0]["spec"] == ["fsdp"] or content["table"][0]["spec"] == [None, "fsdp"]


def test_heads_must_divide(tiny_config: MakeConfig) -> None:
    with pytest.raises(InputError, match=r"tensor=3 does not divide the model's 4 attention heads; choose a divisor"):
        parameter_table(tiny_config("llama"), parse_mesh("tensor=3"))
