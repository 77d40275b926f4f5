"""Tables of other delimiters, folders of shards, fields within fields, and numbers of classes."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lensjax.core.errors import InputError
from lensjax.tasks.source import as_source
from lensjax.tasks.sources.files import split_of
from lensjax.tasks.spec import TaskSpec
from lensjax.tasks.task import load_task


def rows_of(source, split="train"):
    rows = as_source(source).open(split)
    return None if rows is None else [dict(rows[i]) for i in range(len(rows))]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "en\tes\none, two\tuno\n"),
        ("a.csv", 'en;es\n"one, two";uno\n'),
        ("b.csv", '\n"en"|"es"\n"one, two"|uno\n'),
        ("c.csv", 'en\tes\r\n"one, two"\tuno\r\n'),
        ("d.csv", 'en,es\n"one, two",uno\n'),
    ],
)
def test_tables_are_read_by_the_delimiter_that_their_headers_show(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    assert rows_of({"files": str(tmp_path / name)}) == [{"en": "one, two", "es": "uno"}]


def test_a_delimiter_can_be_given(tmp_path):
    (tmp_path / "a.csv").write_text("x;y:z\n1;2:3\n")
    assert rows_of({"files": str(tmp_path / "a.csv"), "delimiter": ":"}) == [{"x;y": "1;2", "z": "3"}]
    (tmp_path / "a.tsv").write_text("x;y\n1;2\n")
    assert rows_of({"files": str(tmp_path / "a.tsv"), "delimiter": ";"}) == [{"x": "1", "y": "2"}]


@pytest.mark.parametrize("given", ["", "*.jsonl", "**/*.jsonl"])
def test_folders_and_patterns_hold_shards_whose_names_say_their_split(given, tmp_path):
    for name in ("train-00001", "train-00000", "dev", "my.test.part", "contest"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"from": name}) + "\n")
    (tmp_path / "README.md").touch()
    (tmp_path / ".hidden.jsonl").touch()
    source = as_source({"files": str(tmp_path / given)})
    names = {split: [row["from"] for row in rows_of(source, split)] for split in ("train", "validation", "test")}
    assert names == {
        "train": ["contest", "train-00000", "train-00001"],
        "validation": ["dev"],
        "test": ["my.test.part"],
    }
    assert source.called("validation") == "dev.jsonl"
    assert [path.name for path in source.paths()][:2] == ["contest.jsonl", "train-00000.jsonl"]
    both = as_source({"files": {"train": str(tmp_path), "test": str(tmp_path / "dev.jsonl")}})
    assert len(both.by_split["train"]) == 5  # named splits are taken as they are


def test_what_a_folder_lacks_is_said(tmp_path):
    with pytest.raises(InputError, match=r"holds no \.jsonl.* file; mend source.files"):
        as_source({"files": str(tmp_path)}).open("train")
    (tmp_path / "dev.jsonl").touch()
    with pytest.raises(InputError, match=r"No file of source.files is one to train on \(dev.jsonl\)"):
        as_source({"files": str(tmp_path)}).open("train")
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(InputError, match=r"give it as source\.saved"):
        as_source({"files": str(tmp_path)}).open("train")


@pytest.mark.parametrize(
    ("name", "split"),
    [("training.csv", "train"), ("val_2.parquet", "validation"), ("EVAL.jsonl.gz", "test"), ("latest.csv", "train")],
)
def test_words_of_names_say_the_split(name, split):
    assert split_of(name) == split


def spec(source, prompt, target, **fields):
    return TaskSpec(name="t", source=source, prompt=prompt, target=target, validation=1, test=1, **fields)


def test_fields_within_fields(tmp_path):
    rows = [
        {"messages": [{"content": f"q{i}"}, {"content": f"a{i}"}], "meta": {"lang": "en"}, "a.b": i} for i in range(4)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    prompt, target = "{meta.lang} {messages[0][content]} {a.b}", " {messages[-1].content}"
    for name in ("a.jsonl", "a.parquet"):
        task = load_task(spec({"files": str(tmp_path / name)}, prompt, target))
        (example,) = task.test
        number = example.target[-1]
        assert (example.prompt, example.target) == (f"en q{number} {number}", f" a{number}")
    with pytest.raises(InputError, match=r"line \d has no field 'messages\[2\]\[content\]'"):
        load_task(spec({"files": str(tmp_path / "a.jsonl")}, "{messages[2][content]}", target))
    with pytest.raises(InputError, match=r"holds a list in the field 'messages'; templates take texts"):
        load_task(spec({"files": str(tmp_path / "a.jsonl")}, "{messages}", target))
    for wrong in ("{a..b}", "{[0]}", "{a[}", "{a[]}"):
        with pytest.raises(ValueError, match=r"braces|expected"):
            spec({"files": "a.jsonl"}, wrong, target)


def test_numbers_of_classes_are_their_names(tmp_path):
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "text": {"dtype": "string"}}
    table = pa.table({"label": [0, 1, -1], "text": ["a", "b", "c"]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [row["label"] for row in rows_of({"files": str(tmp_path / "a.parquet")})] == ["cat", "dog", None]
    pq.write_table(table.replace_schema_metadata({"huggingface": "[]"}), tmp_path / "b.parquet")
    assert [row["label"] for row in rows_of({"files": str(tmp_path / "b.parquet")})] == [0, 1, -1]
