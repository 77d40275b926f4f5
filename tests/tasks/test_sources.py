"""Rows of JSONL, CSV, Parquet and of folders that HF datasets saved."""

import csv
import gzip
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensjax.core.errors import InputError
from lensjax.tasks import formats
from lensjax.tasks.rows import Rows
from lensjax.tasks.sources.files import Files
from lensjax.tasks.sources.saved import Saved

ROWS = [{"en": "one", "es": "uno"}, {"en": "two", "es": "dos"}, {"en": "three", "es": "tres"}]
SaveHF = Callable[[Path, Iterable[Iterable[Mapping[str, Any]]]], Path]


def opened(*paths: Path, fields: Iterable[str] = ()) -> Rows:
    rows = Files(files={"train": list(paths)}).open("train", tuple(fields))
    assert rows is not None
    return rows


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def save_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    return path


def test_jsonl(tmp_path: Path) -> None:
    text = '{"a": "é"}\r\n\n  \n{"a": [1, null]}\n{"a": "no line end"}'
    rows = opened(written(tmp_path, "train.jsonl", text))
    assert [dict(rows[i]) for i in range(len(rows))] == [{"a": "é"}, {"a": [1, None]}, {"a": "no line end"}]
    assert [rows.where(i) for i in range(3)] == [f"{tmp_path / 'train.jsonl'} line {line}" for line in (1, 4, 5)]


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    assert opened(written(tmp_path, "a.jsonl", '\ufeff{"a": 1}\n'))[0] == {"a": 1}
    assert opened(written(tmp_path, "a.csv", "\ufeffa,b\n1,2\n"))[0] == {"a": "1", "b": "2"}


@given(rows=st.lists(st.dictionaries(st.text(max_size=3), st.text() | st.integers() | st.none()), max_size=8))
def test_jsonl_gives_back_what_was_written(
    rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    read = opened(written(tmp_path_factory.mktemp("jsonl"), "a.jsonl", text))
    assert [read[i] for i in reversed(range(len(read)))] == rows[::-1]


# A NUL is not text, and csv.writer leaves a lone carriage return unquoted before Python 3.13.
cells = st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"]), max_size=9)


@given(rows=st.lists(st.tuples(cells, cells, cells.map("x{}".format)), max_size=8))
def test_csv_gives_back_what_was_written(
    rows: list[tuple[str, str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("a", "b", "c"), *rows])
    read = opened(path)
    assert [tuple(read[i].values()) for i in range(len(read))] == rows


def test_csv_lines_are_right_where_cells_hold_line_ends(tmp_path: Path) -> None:
    text = 'prompt, target\n\n"one\ntwo",1\nthree,"3 ""x""\n\n"\n,\nlast,4'
    rows = opened(written(tmp_path, "train.csv", text))
    assert [dict(rows[i]) for i in range(len(rows))] == [
        {"prompt": "one\ntwo", "target": "1"},
        {"prompt": "three", "target": '3 "x"\n\n'},
        {"prompt": "last", "target": "4"},
    ]
    assert [rows.where(i).split()[-1] for i in range(3)] == ["3", "5", "9"]


def test_long_cells_are_read_and_the_limit_of_others_is_left(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    rows = opened(written(tmp_path, "a.csv", f"a\n{'x' * (before + 1)}\n"))
    assert len(str(rows[0]["a"])) == before + 1
    assert csv.field_size_limit() == before


def test_parquet(tmp_path: Path) -> None:
    rows = opened(save_parquet(tmp_path / "train.parquet", [row | {"n": 7} for row in ROWS]))
    assert [dict(rows[i]) for i in range(len(rows))] == [row | {"n": 7} for row in ROWS]
    assert rows.where(2) == f"{tmp_path / 'train.parquet'} row 3"
    some = opened(tmp_path / "train.parquet", fields=["es"])
    assert dict(some[1]) == {"es": "dos"}


def test_files_of_several_kinds_follow_one_another(tmp_path: Path, save_jsonl: Callable[..., Path]) -> None:
    first, empty = save_jsonl("a.jsonl", ROWS[:2]), written(tmp_path, "empty.jsonl", "")
    rows = opened(first, empty, written(tmp_path, "b.CSV", "en,es\nthree,tres\n"))
    assert [dict(rows[i]) for i in range(len(rows))] == ROWS
    assert rows.where(2) == f"{tmp_path / 'b.CSV'} line 2"
    for outside in (-1, 3):
        with pytest.raises(IndexError):
            rows[outside]


def test_nothing_but_empty_files(tmp_path: Path) -> None:
    assert len(opened(written(tmp_path, "a.jsonl", ""))) == 0
    assert len(opened(written(tmp_path, "a.csv", "a,b\n"))) == 0


@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_of_objects(indent: int | None, tmp_path: Path) -> None:
    many = [{"a": "é\n語 ]},{[", "b": [{}, 1.5, None]}, {}, *ROWS]
    rows = opened(written(tmp_path, "a.json", "\ufeff \n" + json.dumps(many, ensure_ascii=False, indent=indent) + "\n"))
    assert [rows[i] for i in reversed(range(len(rows)))] == many[::-1]
    assert rows.where(1) == f"{tmp_path / 'a.json'} item 2"
    assert len(opened(written(tmp_path, "none.json", " [ ] "))) == 0
    bad = opened(written(tmp_path, "bad.json", '[{"a": 1}, 3]'))
    with pytest.raises(InputError, match=r"bad\.json item 2 is not a JSON object; write it as in"):
        bad[1]


def test_one_object_a_line_may_be_called_json(tmp_path: Path) -> None:
    rows = opened(written(tmp_path, "a.json", '{"a": 1}\n{"a": 2}\n{"a"\n'))
    assert [rows[i] for i in range(2)] == [{"a": 1}, {"a": 2}]
    with pytest.raises(InputError, match=r"a\.json line 3 is not JSON"):
        rows[2]
    with pytest.raises(InputError, match=r"b\.json is neither an array of objects nor one object a line; write it as"):
        opened(written(tmp_path, "b.json", '{\n "data": []\n}'))[0]


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_compressed_files_are_read_as_they_were(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pa = pytest.importorskip("pyarrow")

    def compressed(text: str) -> bytes:
        return (
            gzip.compress(text.encode()) if ending == "gz" else pa.Codec("zstd").compress(text.encode(), asbytes=True)
        )

    monkeypatch.setattr(formats, "_PIECE", 7)
    lines = [json.dumps(row) + "\n" for row in ROWS]
    parts = compressed(lines[0]) + compressed("".join(lines[1:]))  # as tools write that append to a file
    kinds = {
        "jsonl": parts,
        "JSON": compressed(json.dumps(ROWS)),
        "csv": compressed("en,es\none,uno\ntwo,dos\nthree,tres"),
    }
    for kind, content in kinds.items():
        rows = opened(written(tmp_path, f"a.{kind}.{ending}", content))
        assert [dict(rows[i]) for i in range(len(rows))] == ROWS
        assert str(tmp_path / f"a.{kind}.{ending}") in rows.where(2)


def test_a_split_that_files_do_not_name(tmp_path: Path) -> None:
    source = Files(files={"train": [tmp_path / "none"], "test": []})
    assert source.open("validation") is None
    assert source.open("test") is None


def test_saved_data_set(tmp_path: Path, save_hf: SaveHF) -> None:
    source = Saved(saved=save_hf(tmp_path / "verses", [ROWS[:2], ROWS[2:]]))
    rows = source.open("train")
    assert rows is not None
    assert [dict(rows[i]) for i in range(len(rows))] == ROWS
    assert rows.where(2) == f"{tmp_path / 'verses'} row 3"
    assert source.open("test") is None


def test_saved_splits_and_their_names(tmp_path: Path, save_hf: SaveHF) -> None:
    (tmp_path / "verses").mkdir()
    (tmp_path / "verses" / "dataset_dict.json").write_text('{"splits": ["train", "dev"]}')
    save_hf(tmp_path / "verses" / "train", [ROWS])
    save_hf(tmp_path / "verses" / "dev", [ROWS[1:]])
    plain = Saved(saved=tmp_path / "verses")
    likely = plain.open("validation")
    assert likely is not None
    assert (len(likely), plain.called("validation"), plain.called("test")) == (2, "dev", "")
    assert Saved(saved=tmp_path / "verses", splits={"validation": None}).open("validation") is None
    renamed = Saved(saved=tmp_path / "verses", splits={"validation": "dev", "test": None})
    rows = renamed.open("validation")
    assert rows is not None
    assert (len(rows), dict(rows[0])) == (2, ROWS[1])
    assert rows.where(0) == f"{tmp_path / 'verses' / 'dev'} row 1"
    assert renamed.open("test") is None
    with pytest.raises(
        InputError, match=r"has no split 'gone' but train, dev; name the right one in source\.splits\.t"
    ):
        Saved(saved=tmp_path / "verses", splits={"test": "gone"}).open("test")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"a": 1', r"bad\.jsonl line 2 is not JSON \(.*\); mend or remove it"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", r"bad\.jsonl line 2 is not a JSON object; write it as in"),
        (b'{"a": "\xff"}', r"bad\.jsonl line 2 is not UTF-8 text; save the file in UTF-8"),
    ],
    ids=["cut", "deep", "list", "bytes"],
)
def test_a_bad_line_of_jsonl_is_named_when_it_is_read(row: str | bytes, message: str, tmp_path: Path) -> None:
    content = row if isinstance(row, bytes) else row.encode()
    rows = opened(written(tmp_path, "bad.jsonl", b'{"a": 1}\n' + content + b'\n{"a": 3}\n'))
    assert rows[2] == {"a": 3}
    with pytest.raises(InputError, match=message):
        rows[1]


def test_a_csv_row_of_another_width_is_named_when_it_is_read(tmp_path: Path) -> None:
    rows = opened(written(tmp_path, "bad.csv", "a,b\n1,2\n3\n"))
    with pytest.raises(InputError, match=r"bad\.csv line 3 has 1 cells, but the header has 2; mend it\."):
        rows[1]


BAD: dict[str, tuple[str, str | bytes | None, str]] = {
    "unclosed": ("a.csv", 'a,b\n1,2\n3,"4\n', r"a\.csv line 3 is not CSV \(.*\); mend or remove it"),
    "after a quote": ("a.csv", 'a,b\n"1"x,2\n', r"a\.csv line 2 is not CSV"),
    "repeated": ("a.csv", "a,b, a\n", r"a\.csv line 1 heads two columns 'a'; rename one"),
    "no header": ("a.csv", "\n\n", r"a\.csv is empty; it needs a header row such as 'prompt,target'"),
    "latin": ("a.csv", b"a\nx\n\xe9\n", r"a\.csv line 3 is not UTF-8 text; save the file in UTF-8"),
    "kind": (
        "a.xlsx",
        "",
        r"a\.xlsx is of an unknown kind \('\.xlsx'\); give a \.jsonl, \.json, \.csv, \.tsv \(each also as ",
    ),
    "compressed kind": ("a.xlsx.gz", "", r"a\.xlsx\.gz is of an unknown kind \('\.xlsx\.gz'\); give a"),
    "compressed parquet": ("a.parquet.zst", "", r"a\.parquet\.zst is Parquet in zstd; write it out and give that\."),
    "not gzip": ("a.jsonl.gz", "{}", r"a\.jsonl\.gz is not whole in gzip \(.*\); write it again\."),
    "cut gzip": ("a.csv.gz", gzip.compress(b"a\n1\n" * 99)[:-9], r"a\.csv\.gz is not whole in gzip \(Truncated"),
    "not zstd": ("a.json.zst", "[]", r"a\.json\.zst is not whole in zstd \(.*\); write it again\."),
    "no gzip": ("a.csv.gz", None, r"Cannot read .*a\.csv\.gz: No such file or directory; mend source\.files"),
    "cut array": (
        "a.json",
        '[{"a": 1},\n{"a"',
        r"a\.json is not JSON \(Expecting ':' .* line 2 column 5 .*\); mend it",
    ),
    "two arrays": ("a.json", "[{}] [{}]", r"a\.json is not JSON \('\[\{\}\]' follows the array\); mend it"),
    "no comma": ("a.json", "[{} {}]", r"a\.json is not JSON \(Expecting ',' or '\]': .*\); mend it"),
    "latin json": ("a.json", b'["\xe9"]', r"a\.json is not UTF-8 text; save the file in UTF-8"),
    "no kind": ("rows", "", r"rows is of an unknown kind \(''\)"),
    "no jsonl": ("a.jsonl", None, r"Cannot read .*a\.jsonl: No such file or directory; mend source\.files"),
    "no csv": ("a.csv", None, r"Cannot read .*a\.csv: No such file"),
    "no parquet": ("a.parquet", None, r"Cannot read .*a\.parquet: No such file or directory; mend source\.files"),
    "not parquet": ("a.parquet", "a,b\n", r"a\.parquet is not a whole Parquet file \(.*\); write it again"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_named_in_one_sentence(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    name, content, message = BAD[kind]
    if content is not None:
        written(tmp_path, name, content)
    with pytest.raises(InputError, match=message) as raised:
        opened(tmp_path / name)
    assert re.fullmatch(r"[^\n]+\.", str(raised.value))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    for kind in ("jsonl", "csv", "json", "csv.gz", "parquet"):
        (tmp_path / f"a.{kind}").mkdir()
        with pytest.raises(InputError, match=rf"a\.{kind} holds no \.jsonl, .* file; mend source\.files\."):
            opened(tmp_path / f"a.{kind}")


def test_a_column_that_parquet_has_not(tmp_path: Path) -> None:
    path = save_parquet(tmp_path / "a.parquet", [{"en": "one", "es": "uno"}])
    with pytest.raises(InputError, match=r"a\.parquet has no column 'fr' but en, es; mend the template or the file\."):
        opened(path, fields=["en", "fr"])


def test_folders_that_were_not_saved_so(tmp_path: Path, save_hf: SaveHF) -> None:
    def message(folder: Path) -> str:
        with pytest.raises(InputError) as raised:
            Saved(saved=folder).open("train")
        return str(raised.value)

    assert re.search(r"none has neither dataset_dict\.json nor state\.json; give", message(tmp_path / "none"))
    folder = save_hf(tmp_path / "one", [ROWS])
    arrow = next(folder.glob("*.arrow"))
    whole = arrow.read_bytes()
    arrow.write_bytes(whole[: len(whole) // 2])
    assert re.search(r"\.arrow is missing or not a whole Arrow file \(.*\); save the data set again\.", message(folder))
    arrow.unlink()
    assert re.search(r"Cannot read .*\.arrow: No such file or directory; save the data set again\.", message(folder))
    for entries in ("[3]", '["a.arrow"]', "[{}]", '[{"filename": 3}]', '[{"filename": "../a.arrow"}]'):
        (folder / "state.json").write_text(f'{{"_data_files": {entries}}}')
        assert re.search(
            r"state\.json is not what .* writes \(a data file has no filename of its own\); save", message(folder)
        )
    mixed = save_hf(tmp_path / "mixed", [[{"en": "one"}], [{"es": 1}]])
    assert re.search(r"mixed do not have the same columns \([^\n]*\); save the data set again\.", message(mixed))
    (folder / "state.json").write_text("{}")
    assert re.search(r"state\.json is not what save_to_disk of HF datasets writes \(.*\); save", message(folder))
    (folder / "dataset_dict.json").write_text('{"splits": "train"}')
    assert "dataset_dict.json is not what save_to_disk of HF datasets writes" in message(folder)


def test_a_file_that_is_cut_off_while_it_is_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    rows = opened(path)
    os.truncate(path, 12)
    assert rows[0] == {"a": 1}
    with pytest.raises(InputError, match="line 2 was cut off while the file was read; write it whole, and start again"):
        rows[1]
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert opened(path)[1] == {"a": 2}
