"""Files that are not what they should be, and writing them whole."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lensjax.core.errors import InputError
from lensjax.models import from_config, safetensors_files
from lensjax.models.safetensors_files import TensorFiles, write_tensors

VALUES = {f"layer.{i}.weight": np.arange(24, dtype=np.float32).reshape(4, 6) + i for i in range(5)}


def write_index(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)


def truncate(folder: Path) -> None:
    save_file(VALUES, folder / "model.safetensors")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-7])


def lose_a_shard(folder: Path) -> None:
    write_tensors(VALUES.items(), folder, shard_bytes=200)
    (folder / "model-00002-of-00003.safetensors").unlink()


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (lambda folder: None, r"has no model\.safetensors; give the folder of a model as transformers saves it"),
    "pickle": (
        lambda folder: (folder / "pytorch_model.bin").write_bytes(b"\x80\x02"),
        r"only in pytorch_model\.bin, a pickle, which can run any code and is never opened; convert it to safetensors",
    ),
    "truncated": (truncate, r"model\.safetensors is not a whole safetensors file \(.+\); fetch it again"),
    "empty": (lambda folder: (folder / "model.safetensors").touch(), "is not a whole safetensors file"),
    "garbage": (
        lambda folder: (folder / "model.safetensors").write_bytes(bytes(range(256)) * 9),
        "is not a whole safetensors file",
    ),
    "garbled header": (
        lambda folder: (folder / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b"{garble}"),
        "is not a whole safetensors file",
    ),
    "pointer to a file": (
        lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "is not a whole safetensors file",
    ),
    "folder": (lambda folder: (folder / "model.safetensors").mkdir(), "it is a folder; fetch it again"),
    "lost shard": (lose_a_shard, r"lacks model-00002-of-00003\.safetensors, which model.* names; fetch the whole mod"),
    "many lost shards": (
        lambda folder: write_index(folder, json.dumps({"weight_map": {str(i): f"{i}" for i in range(99)}})),
        "lacks 0, 1, 10, 11, 12 and 94 more, which",
    ),
    "index that is no JSON": (lambda folder: write_index(folder, "{"), "is not an index of safetensors files; fetch"),
    "index without a map": (lambda folder: write_index(folder, '{"metadata": {}}'), "is not an index"),
    "index of a list": (lambda folder: write_index(folder, '{"weight_map": ["a"]}'), "is not an index"),
    "index of numbers": (lambda folder: write_index(folder, '{"weight_map": {"a": 1}}'), "is not an index"),
    "index of lists": (lambda folder: write_index(folder, '{"weight_map": {"a": []}}'), "is not an index"),
    "index that is a folder": (
        lambda folder: (folder / "model.safetensors.index.json").mkdir(),
        "it is a folder; fetch",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_checkpoint_is_one_sentence(kind: str, tmp_path: Path) -> None:
    make, message = BROKEN[kind]
    make(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        TensorFiles.of_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert re.fullmatch(r"[^\n]+\.", str(caught.value))


def test_an_index_reaches_no_other_folder(tmp_path: Path) -> None:
    save_file(VALUES, tmp_path / "other.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    write_index(folder, json.dumps({"weight_map": {"layer.0.weight": "../other.safetensors"}}))
    with pytest.raises(InputError, match=r"lacks other\.safetensors"):
        TensorFiles.of_folder(folder)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "bfloat16"])
@pytest.mark.parametrize("shard_bytes", [10**9, 200, 1])
def test_what_is_written_is_read(dtype: str, shard_bytes: int, tmp_path: Path) -> None:
    values = {
        name: value.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype) for name, value in VALUES.items()
    }
    write_tensors(values.items(), tmp_path, shard_bytes)
    files = TensorFiles.of_folder(tmp_path)
    assert files.shapes == dict.fromkeys(values, (4, 6))
    found = {}
    for path in tmp_path.glob("*.safetensors"):
        found |= load_file(path)
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert found[name].tobytes() == value.tobytes()
        out = np.empty((6, 4), np.float64)
        files.copy(name, ((0, 6), (0, 4)), out, transposed=True)
        np.testing.assert_array_equal(out, value.T.astype(np.float64))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "bounds", [((0, 1003), (0, 577)), ((5, 1002), (3, 577)), ((990, 1003), (0, 1)), ((7, 7), (0, 577))]
)
def test_tensors_of_several_blocks_that_no_tile_divides_are_read(
    transposed: bool, bounds: tuple[tuple[int, int], tuple[int, int]], tmp_path: Path
) -> None:
    stored = np.random.default_rng(0).standard_normal((1003, 577)).astype(np.float32)  # blocks of 454 rows
    save_file({"w": stored}, tmp_path / "model.safetensors")
    wanted = stored[tuple(slice(*pair) for pair in bounds)]
    wanted, asked = (wanted.T, bounds[::-1]) if transposed else (wanted, bounds)
    out = np.full(wanted.shape, np.nan, np.float32)
    TensorFiles.of_folder(tmp_path).copy("w", asked, out, transposed=transposed)
    np.testing.assert_array_equal(out, wanted)


def test_shards_are_full_and_indexed(tmp_path: Path) -> None:
    write_tensors(VALUES.items(), tmp_path, shard_bytes=200)  # two tensors of 96 bytes each
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert sorted(os.listdir(tmp_path)) == [*names, "model.safetensors.index.json"]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 5 * 96
    assert index["weight_map"] == {f"layer.{i}.weight": names[i // 2] for i in range(5)}


def test_files_are_shared_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_tensors(VALUES.items(), tmp_path)
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o640


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, tiny_config: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"the beginning")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors_files, "save_file", fail)
    model = from_config(tiny_config("gpt2"))
    with pytest.raises(InputError, match=r"Cannot write .*out: .*No space left on device.*; choose another place"):
        model.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_equal_tensors_are_the_same(tmp_path: Path) -> None:
    values = {"a": np.ones((3, 2), np.float32), "b": np.ones((3, 2), np.float16), "c": np.eye(3, 2, dtype=np.float32)}
    save_file(values | {"d": np.ones((2, 3), np.float32)}, tmp_path / "model.safetensors")
    files = TensorFiles.of_folder(tmp_path)
    assert files.same("a", "a")
    assert files.same("a", "b")
    assert not files.same("a", "c")
    assert not files.same("a", "d")
