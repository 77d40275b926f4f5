"""Parameters lie on a mesh as the rules say, and a model computes the same wherever its parameters lie."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

import lensjax.models
from lensjax.core.errors import InputError
from lensjax.models import from_config, make_mesh, sharding
from lensjax.models.safetensors_files import TensorFiles
from lensjax.models.sharding import RULES, SMALL, abstract_mesh, constrain_activations, parse_mesh, shardings

ALL_AXES = "data=2,fsdp=2,tensor=2"
DISTINCT = ("bart", "gemma3_text", "gpt2", "gpt_neox", "llama", "opt", "switch_transformers", "t5")  # kinds of blocks
CASES = [("gpt2", "tensor=4,data=2"), ("switch_transformers", "fsdp=8"), ("mixtral", "data=2,tensor=4")]
CASES += [("gemma4_text", ALL_AXES)]
if "LENSJAX_TEST_FAMILIES" in os.environ:
    DISTINCT += ("gpt_oss", "lfm2", "mbart", "mixtral", "pegasus", "qwen3_5_text", "qwen3_moe", "umt5")
    CASES += [("qwen3_moe", "fsdp=8"), ("mixtral", "fsdp=2,data=4")]
CASES += [(name, ALL_AXES) for name in DISTINCT]
MakeConfig = Callable[[str], Any]

pytestmark = pytest.mark.eight_devices


def batch_for(model: Any, rows: int = 8, time: int = 7) -> dict[str, Any]:
    ids = np.random.default_rng(0).integers(3, model.config.vocab_size, (rows, time))
    return {"input_ids": ids, "labels": np.roll(ids, 1, axis=0)}


@pytest.mark.parametrize(("model_type", "mesh"), CASES)
def test_sharded_equals_unsharded(
    model_type: str,
    mesh: str,
    tiny_config: MakeConfig,
    random_model: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lensjax.models.sharding.SMALL", 64)  # the models are tiny; spread them all the same
    whole = random_model(tiny_config(model_type))
    whole.save(tmp_path / "model")
    spread = lensjax.models.load(tmp_path / "model", mesh=make_mesh(mesh))
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(spread.params))
    jax.tree.map(np.testing.assert_array_equal, whole.params, spread.params)
    batch = batch_for(whole)
    split = {
        key: jax.device_put(v, NamedSharding(spread.options.mesh, PartitionSpec(("data", "fsdp"))))
        for key, v in batch.items()
    }
    quick = {"xla_backend_optimization_level": 0}
    expected = jax.jit(jax.value_and_grad(whole.loss), compiler_options=quick)(whole.params, batch)
    found = jax.jit(jax.value_and_grad(spread.loss), compiler_options=quick)(spread.params, split)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), found[1], expected[1])


def test_each_value_is_read_once_and_only_where_it_is_held(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lensjax.models.sharding.SMALL", 64)
    model = from_config(tiny_config("llama"))
    model.save(tmp_path / "model")
    read: list[int] = []
    largest: list[int] = []
    copy = TensorFiles.copy

    def counted(self: TensorFiles, name: str, bounds: Any, out: Any, **options: Any) -> None:
        read.append(out.size)
        largest.append(out.size / math.prod(self.shapes[name]))
        copy(self, name, bounds, out, **options)

    monkeypatch.setattr(TensorFiles, "copy", counted)
    spread = lensjax.models.load(tmp_path / "model", mesh=make_mesh("fsdp=4,tensor=2"))
    assert sum(read) == sum(leaf.size for leaf in jax.tree.leaves(model.params))
    kernel = spread.params["layers"]["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 8, 24)
    assert min(largest) == 1 / 8


def test_random_initialisation_does_not_depend_on_the_mesh(tiny_config: MakeConfig) -> None:
    config = tiny_config("llama")
    jax.tree.map(
        np.testing.assert_array_equal, from_config(config).params, from_config(config, mesh=make_mesh("fsdp=8")).params
    )


def test_sharded_parameters_are_saved_whole(tiny_config: MakeConfig, tmp_path: Path) -> None:
    model = from_config(tiny_config("gpt2"), mesh=make_mesh("fsdp=2,tensor=4"))
    model.save(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, model.params, lensjax.models.load(tmp_path / "model").params)


@given(
    shape=st.lists(st.integers(1, 4096), min_size=1, max_size=4),
    name=st.sampled_from(["embed/embedding", "blocks/attention/q/kernel", "blocks/mlp/down/kernel", "other/scale"]),
    fsdp=st.sampled_from([1, 2, 8, 256]),
    tensor=st.sampled_from([1, 2, 3, 16]),
)
def test_specs_always_divide(shape: list[int], name: str, fsdp: int, tensor: int) -> None:
    sizes = {"data": 2, "fsdp": fsdp, "tensor": tensor}
    tree: Any = jax.ShapeDtypeStruct(tuple(shape), np.float32)
    for key in reversed(name.split("/")):
        tree = {key: tree}
    (sharding,) = jax.tree.leaves(shardings(tree, RULES, abstract_mesh(sizes)))
    named = [axis for entry in sharding.spec for axis in ([entry] if isinstance(entry, str) else entry or [])]
    assert len(named) == len(set(named))
    assert "data" not in named
    shards = math.prod(sizes[axis] for axis in named)
    assert math.prod(sharding.shard_shape(tuple(shape))) * shards == math.prod(shape)
    if math.prod(shape) >= SMALL and fsdp > 1 and any(n % (fsdp * tensor) == 0 for n in shape):
        assert "fsdp" in named


def test_fsdp_moves_to_a_dimension_it_divides() -> None:
    tree = {"up": {"kernel": jax.ShapeDtypeStruct((12, 1001, 512), np.float32)}}
    mesh = abstract_mesh({"data": 1, "fsdp": 8, "tensor": 2})
    expected = NamedSharding(mesh, PartitionSpec(None, None, ("tensor", "fsdp")))
    assert shardings(tree, RULES, mesh) == {"up": {"kernel": expected}}


@pytest.mark.parametrize("text", ["fsdp=0", "fsdp=x", "model=2", "fsdp=2,fsdp=4", "fsdp", "fsdp=-1", "=2"])
def test_a_malformed_mesh_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"write it as in data=1,fsdp=4,tensor=2"):
        parse_mesh(text)


def test_a_mesh_of_another_size_is_refused() -> None:
    assert parse_mesh("fsdp=4, tensor=2") == {"data": 1, "fsdp": 4, "tensor": 2}
    with pytest.raises(InputError, match=r"takes 6 devices and there are 8"):
        make_mesh("fsdp=3,tensor=2")
    assert dict(make_mesh({"fsdp": 2}, jax.devices()[:2]).shape) == {"data": 1, "fsdp": 2, "tensor": 1}


def test_heads_must_divide(tiny_config: MakeConfig) -> None:
    with pytest.raises(InputError, match=r"tensor=8 does not divide the model's 4 attention heads"):
        from_config(tiny_config("gpt2"), mesh=make_mesh("tensor=8"))


def test_activations_are_left_alone_where_the_batch_does_not_divide() -> None:
    mesh = make_mesh("fsdp=8")
    x = np.ones((3, 4))
    assert constrain_activations(x, mesh) is x
    assert constrain_activations(x, None) is x


TWO_PROCESSES = """
import sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[2], num_processes=2, process_id=int(sys.argv[3]))
import numpy as np
import lensjax.models
from lensjax.models import make_mesh
from lensjax.models.safetensors_files import TensorFiles
from jax.sharding import NamedSharding, PartitionSpec
import lensjax.models.sharding
lensjax.models.sharding.SMALL = 64

read = [0]
copy = TensorFiles.copy
def counted(self, name, bounds, out, **options):
    read[0] += out.size
    copy(self, name, bounds, out, **options)
TensorFiles.copy = counted

mesh = make_mesh("fsdp=4")
model = lensjax.models.load(sys.argv[1], mesh=mesh)
ids = np.random.default_rng(0).integers(3, 96, (8, 7))
rows = ids[:4] if jax.process_index() == 0 else ids[4:]
split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
batch = {"input_ids": jax.make_array_from_process_local_data(split, rows)}
loss, gradient = jax.jit(jax.value_and_grad(model.loss))(model.params, batch)
norm = sum(float(jax.jit(lambda g: (g.astype("float64") ** 2).sum())(g)) for g in jax.tree.leaves(gradient))
model.save(sys.argv[4])
print(read[0], float(loss), norm)
"""


@pytest.mark.long
def test_two_processes_load_and_agree(tiny_config: MakeConfig, tmp_path: Path) -> None:
    model = from_config(tiny_config("llama"))
    model.save(tmp_path / "model")
    ids = np.random.default_rng(0).integers(3, 96, (8, 7))
    loss, gradient = jax.value_and_grad(model.loss)(model.params, {"input_ids": ids})
    norm = sum(float((np.asarray(g, np.float64) ** 2).sum()) for g in jax.tree.leaves(gradient))
    address = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, tmp_path / "model", address, str(rank), tmp_path / "saved"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    numbers = [[float(word) for word in out.split()[-3:]] for out, _ in outputs]
    total = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    for read, found_loss, found_norm in numbers:
        assert read < 0.55 * total
        np.testing.assert_allclose([found_loss, found_norm], [loss, norm], rtol=1e-5)
    assert numbers[0][1:] == numbers[1][1:]
    jax.tree.map(np.testing.assert_array_equal, model.params, lensjax.models.load(tmp_path / "saved").params)


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def pod(slices: int, chips: int) -> list[Any]:
    """Devices of slices of TPU pods, mixed."""
    kind, places = "TPU v5 lite", [(slice_, chip) for chip in range(chips) for slice_ in range(slices)]
    return [
        SimpleNamespace(id=chip, slice_index=slice_, platform="other", device_kind=kind, process_index=slice_)
        for slice_, chip in places
    ]


def test_only_data_crosses_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(sharding, "Mesh", lambda devices, axes, axis_types: made.append(devices))
    make_mesh(None, pod(2, 4))
    make_mesh("data=4,fsdp=2", pod(2, 4))
    slices = [[[device.slice_index for device in row.flat] for row in mesh] for mesh in made]
    assert slices == [[[0] * 4, [1] * 4], [[0] * 2, [0] * 2, [1] * 2, [1] * 2]]
    for sizes in ("fsdp=8", "data=1,fsdp=8"):
        with pytest.raises(InputError, match="2 slices, between which only data may run, and data is 1; make it a"):
            make_mesh(sizes, pod(2, 4))


def test_a_mesh_may_split_the_axes_of_a_torus(monkeypatch: pytest.MonkeyPatch) -> None:
    chips = [
        SimpleNamespace(id=number, platform="tpu", device_kind="TPU v5", process_index=0, coords=place, core_on_chip=0)
        for number, place in enumerate(np.ndindex(4, 4, 4))
    ]
    made = []
    monkeypatch.setattr(sharding, "Mesh", lambda devices, axes, axis_types: made.append(devices))
    make_mesh("data=2,fsdp=32", chips)
    (placed,) = made
    assert placed.shape == (2, 32, 1)
    assert {chip.id for chip in placed.flat} == set(range(64))
