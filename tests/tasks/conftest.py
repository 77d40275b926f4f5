"""Data sets in files of every kind, and a tokenizer trained on the spot."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from lensjax.tasks.spec import TaskSpec

Save = Callable[..., Path]
ENGLISH = """\
$$$[ Module Heading ]

$$$[ Testament 1 Heading ]
<milestone type="x-importer"/>
$$$Genesis 1:0
<chapter n="1" osisID="Gen.1" sID="Gen.1"/>
$$$Genesis 1:1
<title>Creation</title><w lemma="a">In the beginning</w>, <w lemma="b">God</w><note>Or, gods.</note><w>created</w>.
$$$Genesis 1:2
<w>The earth was</w> <w>formless</w>.
$$$Tobit 1:1
Only in English.
"""
SPANISH = """\
$$$Genesis 1:1
<w lemma="a">EN el principio</w> <w lemma="b">crió Dios</w>.
$$$Genesis 1:2
Y la tierra estaba desordenada.
"""
WORDNET = """\
  1 This software and database is being provided to you, the LICENSEE, by
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 | that which is perceived or known
02084071 05 n 02 domestic_dog 0 dog 0 001 @ 02083346 n 0000 | of the genus Canis; a pet; "the dog barked"
12345678 28 n 01 noon 0 000 | the middle of the day
"""


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


@pytest.fixture
def sword(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two Bibles of three verses, and what reads them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("engWEB2015eb", ENGLISH), ("spaRV1909eb", SPANISH)):
        (folder / f"{name}.imp").write_text(text, encoding="utf-8")
    program = folder / "mod2imp"
    program.write_text(f'#!/bin/sh\nexec /bin/cat "{folder}/$1.imp"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.fixture
def wordnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """WordNet with three senses."""
    (tmp_path / "data.noun").write_text(WORDNET, encoding="utf-8")
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))
    return tmp_path / "data.noun"
