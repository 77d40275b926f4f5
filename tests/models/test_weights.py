"""The table between our parameters and a checkpoint's tensors, read and written."""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import SingleDeviceSharding
from safetensors.numpy import save_file

import lensjax.models
from lensjax.core.errors import InputError
from lensjax.models import weights
from lensjax.models.hub import write_config
from lensjax.models.model import abstract_model
from lensjax.models.options import make_options
from lensjax.models.safetensors_files import TensorFiles, write_tensors
from lensjax.models.weights import Stored, check_names, checkpoint_tensors, read_params, tensors

DTYPES = {"float32": np.dtype("float32"), "float16": np.dtype("float16"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@st.composite
def layouts(draw: st.DrawFn) -> tuple[dict[str, Stored], dict[str, Any]]:
    """A table of modules whose tensors lie in any of the ways there are, and the shapes of their parameters."""
    shares, groups = draw(st.sampled_from([((1,), 1), ((1, 1), 1), ((3, 1, 2), 1), ((1, 1, 1), 2), ((1, 2), 4)]))
    size, inputs = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    layers, experts = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    inside = draw(st.booleans()) and experts > 0  # whether a tensor holds all experts
    name = "".join([".{layer}" * (layers > 0), ".{expert}" * (experts > 0 and not inside)])
    first, step = draw(st.integers(0, 2)), draw(st.integers(1, 3))
    transposed = draw(st.booleans())
    lead = [count for count in (layers, experts) if count]
    table, shapes = {}, {}
    for index, share in enumerate(shares):
        part, outputs = (index, shares, groups) if len(shares) > 1 else None, groups * size * share
        table[f"m{index}"] = Stored(f"fused{name}", transposed, part, first, step, int(inside))
        shapes[f"m{index}"] = {
            "bias": jax.ShapeDtypeStruct((*lead, outputs), np.float32),
            "kernel": jax.ShapeDtypeStruct((*lead, inputs, outputs), np.float32),
        }
    return table, shapes


def random_checkpoint(wanted: list[weights.Tensor], dtype: np.dtype[Any]) -> dict[str, np.ndarray]:
    """Values for every tensor that is wanted, all different."""
    rng = np.random.default_rng(0)
    shapes = {str(name): tensor.stored_shape for tensor in wanted for name in tensor.names.flat}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def assemble(tensor: weights.Tensor, stored: dict[str, np.ndarray]) -> np.ndarray:
    """A whole parameter, from the definition of its source."""
    values = np.empty(tensor.shape, np.float64)
    for position in np.ndindex(tensor.names.shape):
        value = stored[str(tensor.names[position])].astype(np.float64)
        value = value.transpose(tensor.stored.axes(value.ndim))
        if tensor.stored.part is not None:
            index, shares, groups = tensor.stored.part
            grouped = value.reshape(*value.shape[:-1], groups, sum(shares), -1)
            ours = grouped[..., sum(shares[:index]) : sum(shares[: index + 1]), :]
            value = ours.reshape(*value.shape[:-1], -1)
        values[position] = value
    return values


@settings(max_examples=150)
@given(layouts(), st.sampled_from(sorted(DTYPES)), st.data())
def test_a_slice_is_that_of_the_whole(layout: Any, dtype: str, data: st.DataObject) -> None:
    table, shapes = layout
    wanted = tensors(shapes, table)
    stored = random_checkpoint(wanted, DTYPES[dtype])
    with tempfile.TemporaryDirectory() as folder:
        write_tensors(stored.items(), Path(folder))
        files = TensorFiles.of_folder(Path(folder))
        for tensor in wanted:
            whole = assemble(tensor, stored)
            starts = [data.draw(st.integers(0, n - 1)) for n in tensor.shape]
            bounds = tuple((a, data.draw(st.integers(a + 1, n))) for a, n in zip(starts, tensor.shape, strict=True))
            found = weights._read_slice(tensor, files, np.dtype(np.float64), bounds)
            np.testing.assert_array_equal(found, whole[tuple(slice(*pair) for pair in bounds)])


@settings(max_examples=100)
@given(layouts(), st.sampled_from(sorted(DTYPES)), st.integers(1, 300))
def test_writing_inverts_reading_to_the_bit(layout: Any, dtype: str, shard_bytes: int) -> None:
    table, shapes = layout
    wanted = tensors(shapes, table)
    stored = random_checkpoint(wanted, DTYPES[dtype])
    with tempfile.TemporaryDirectory() as folder:
        write_tensors(stored.items(), Path(folder), shard_bytes)
        device = SingleDeviceSharding(jax.devices()[0])
        files, count = TensorFiles.of_folder(Path(folder)), len(wanted)
        leaves = list(read_params(wanted, files, [DTYPES[dtype]] * count, [device] * count))
    written = dict(checkpoint_tensors(zip(wanted, map(np.asarray, leaves), strict=True)))
    assert written.keys() == stored.keys()
    for name, value in stored.items():
        assert written[name].dtype == value.dtype
        assert written[name].shape == value.shape
        assert written[name].tobytes() == value.tobytes()


def test_names_of_layers_and_experts() -> None:
    source = Stored("decoder.{layer}.experts.{expert}.wi", first=1, step=2)
    shapes = {"mlp": {"up": {"kernel": jax.ShapeDtypeStruct((2, 3, 4, 5), np.float32)}}}
    (tensor,) = tensors(shapes, {"mlp/up": source})
    assert tensor.path == "mlp/up/kernel"
    assert tensor.stored_shape == (5, 4)
    assert tensor.names.tolist() == [
        [f"decoder.{layer}.experts.{expert}.wi.weight" for expert in range(3)] for layer in (1, 3)
    ]


def test_every_parameter_has_its_tensors(tiny_config: Callable[[str], Any]) -> None:
    """In every family, and none is read twice but for parts of what is fused."""
    for model_type in lensjax.models.supported():
        config = tiny_config(model_type)
        model = abstract_model(config, make_options())
        found = model.family.tensors(config, model.params)
        keys = [(str(name), tensor.stored.part) for tensor in found for name in tensor.names.flat]
        assert len(set(keys)) == len(keys)


@pytest.fixture
def llama(tiny_config: Callable[[str], Any], tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """The folder of a tiny Llama, and its tensors."""
    config = tiny_config("llama")
    model = abstract_model(config, make_options())
    values = random_checkpoint(model.family.tensors(config, model.params), np.dtype(np.float32))
    write_config(config, model.family.architecture, "float32", tmp_path)
    write_tensors(values.items(), tmp_path)
    return tmp_path, values


def test_all_that_is_wrong_is_told_at_once(llama: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, values = llama
    for layer in (0, 1):
        del values[f"model.layers.{layer}.mlp.up_proj.weight"]
    values["model.layers.2.mlp.up_proj.weight"] = np.zeros((48, 32), np.float32)
    values["model.embed_tokens.weight"] = values["model.embed_tokens.weight"][:-1]
    values["model.norm.weight"] = values["model.norm.weight"][None]
    save_file(values, folder / "model.safetensors")
    with pytest.raises(InputError) as caught:
        lensjax.models.load(folder)
    assert str(caught.value) == (
        f"The tensors in {folder} are not those that its config.json describes: "
        "2 missing (model.layers.0.mlp.up_proj.weight, model.layers.1.mlp.up_proj.weight); "
        "1 unexpected (model.layers.2.mlp.up_proj.weight); "
        "2 misshapen (model.embed_tokens.weight is [95, 32] and should be [96, 32], "
        "model.norm.weight is [1, 32] and should be [32]); take config.json and weights from one model."
    )


def test_names_are_listed_by_number_and_not_without_end(llama: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, values = llama
    extra = {f"extra.{i}.weight": np.zeros(1, np.float32) for i in range(12)}
    save_file(values | extra, folder / "model.safetensors")
    listed = ", ".join(f"extra.{i}.weight" for i in range(5))
    with pytest.raises(InputError, match=re.escape(f"12 unexpected ({listed} and 7 more)")):
        lensjax.models.load(folder)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "bool"])
def test_quantised_weights_are_refused(dtype: str, llama: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, values = llama
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(values | {name: values[name].astype(dtype)}, folder / "model.safetensors")
    with pytest.raises(InputError, match=rf"holds {re.escape(name)} as \w+; only floating-point .* before quantisatio"):
        lensjax.models.load(folder)


def test_shards_are_read_back_and_opened_by_transformers(llama: tuple[Path, dict[str, np.ndarray]]) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    folder, values = llama
    whole = lensjax.models.load(folder)
    (folder / "model.safetensors").unlink()
    write_tensors(values.items(), folder, shard_bytes=10_000)
    assert len(list(folder.glob("*.safetensors"))) > 3
    jax.tree.map(np.testing.assert_array_equal, lensjax.models.load(folder).params, whole.params)
    opened = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert opened.state_dict().keys() >= values.keys()
    for name, value in opened.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), values[name])


@pytest.mark.parametrize("lost", [None, "embed.weight", "lm_head.weight"])
def test_a_checkpoint_of_the_bare_model_lacks_the_prefix(lost: str | None, tmp_path: Path) -> None:
    shape = jax.ShapeDtypeStruct((2,), np.float32)
    wanted = tensors({"embed": {"scale": shape}, "head": {"scale": shape}}, {"embed": "model.embed", "head": "lm_head"})
    names = ["embed.weight", "lm_head.weight"]
    save_file({name: np.ones(2, np.float32) for name in names if name != lost}, tmp_path / "model.safetensors")
    files = TensorFiles.of_folder(tmp_path)
    if lost is None:
        found = check_names(wanted, files, "model.", (), {}, {})
        assert [str(name) for tensor in found for name in tensor.names.flat] == names
    else:
        with pytest.raises(InputError, match=rf"1 missing \({re.escape(lost)}\)"):
            check_names(wanted, files, "model.", (), {}, {})
