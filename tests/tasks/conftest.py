"""Data sets in files of every kind, and a tokenizer trained on the spot."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from lensjax.tasks.spec import TaskSpec

Save = Callable[..., Path]


@pytest.fixture
def save_jsonl(tmp_path: Path) -> Callable[[str, Iterable[Mapping[str, Any]]], Path]:
    """Writes rows to a JSONL file; returns its path."""

    def save(name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return save


@pytest.fixture
def make_spec(tmp_path: Path) -> Callable[..., TaskSpec]:
    """Makes a spec of the files train.jsonl and so on in a test's folder; arguments are fields."""

    def make(**fields: Any) -> TaskSpec:
        files = {path.stem: [path] for path in sorted(tmp_path.glob("*.jsonl"))}
        given = {"name": "sums", "source": {"files": files}, "prompt": "{a}+{b}=", "target": "{c}"} | fields
        return TaskSpec(**given)

    return make


@pytest.fixture
def save_hf() -> Callable[[Path, Iterable[Iterable[Mapping[str, Any]]]], Path]:
    """Writes a folder as `Dataset.save_to_disk` of HF datasets does, with a file for each part of the rows."""
    pa = pytest.importorskip("pyarrow")

    def save(folder: Path, parts: Iterable[Iterable[Mapping[str, Any]]]) -> Path:
        folder.mkdir(parents=True)
        tables = [pa.Table.from_pylist(list(part)) for part in parts]
        names = [f"data-{i:05d}-of-{len(tables):05d}.arrow" for i in range(len(tables))]
        for name, table in zip(names, tables, strict=True):
            with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
        state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": None}
        (folder / "state.json").write_text(json.dumps(state))
        (folder / "dataset_info.json").write_text("{}")
        return folder

    return save
