"""Tasks: what is held out, what is drawn, and how rows are rendered."""

import itertools
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensjax.core.errors import InputError
from lensjax.tasks.rows import Jsonl, Rows
from lensjax.tasks.sources.files import Files
from lensjax.tasks.sources.saved import Saved
from lensjax.tasks.spec import TaskSpec
from lensjax.tasks.task import Example, Task, fingerprint, load_task, permutation

Save = Callable[..., Path]
Make = Callable[..., TaskSpec]


def sums(start: int, stop: int) -> list[dict[str, Any]]:
    return [{"a": i, "b": 1, "c": i + 1} for i in range(start, stop)]


def texts(examples: Any) -> list[tuple[str, str]]:
    return [example.text for example in examples]


def test_permutation_never_changes() -> None:
    assert permutation(10, 0).tolist() == [3, 2, 1, 8, 6, 0, 7, 4, 5, 9]
    assert sorted(permutation(1000, 7, 1).tolist()) == list(range(1000))
    assert permutation(0, 0).tolist() == []
    drawn = [tuple(permutation(50, seed, stream)) for seed in (0, 1) for stream in (0, 1)]
    assert len(set(drawn)) == 4


def test_held_out_of_train(save_jsonl: Save, make_spec: Make) -> None:
    save_jsonl("train.jsonl", sums(0, 100))
    task = load_task(make_spec(validation=20, test=30))
    drawn = [texts(task.test), texts(task.validation), texts(task.train(0, 50))]
    assert [len(part) for part in drawn] == [30, 20, 50]
    assert len(set(itertools.chain(*drawn))) == 100
    assert task.available() == 50
    again = load_task(make_spec(validation=20, test=30))
    assert [texts(again.test), texts(again.validation), texts(again.train(0, 50))] == drawn
    assert texts(again.train(1, 50)) != drawn[2]
    assert set(texts(again.train(1, 50))) == set(drawn[2])
    smaller = load_task(make_spec(validation=10, test=30))
    assert (smaller.test, smaller.validation) == (task.test, task.validation[:10])


def test_splits_that_are_there(save_jsonl: Save, make_spec: Make) -> None:
    save_jsonl("train.jsonl", sums(0, 100))
    save_jsonl("validation.jsonl", sums(200, 250))
    save_jsonl("test.jsonl", sums(300, 350))
    task = load_task(make_spec(validation=20, test=50))
    assert all("validation.jsonl" in example.where for example in task.validation)
    assert all("test.jsonl" in example.where for example in task.test)
    assert (len(task.validation), len(task.test), task.available()) == (20, 50, 100)
    assert task.validation != tuple(sorted(task.validation, key=lambda example: int(example.where.split()[-1])))


def test_nothing_is_in_two_sets(save_jsonl: Save, make_spec: Make) -> None:
    save_jsonl("test.jsonl", sums(0, 30))
    save_jsonl("validation.jsonl", [row | {"c": f" {row['c']}\n"} for row in sums(20, 60)])
    save_jsonl("train.jsonl", sums(0, 100) * 2)
    task = load_task(make_spec(validation=30, test=30))
    assert task.available() == 80  # 40 of the texts, twice each
    assert task.available(7) == 7
    assert set(texts(task.validation)) == {(f"{i}+1=", str(i + 1)) for i in range(30, 60)}
    train = task.train(3, 80)
    assert sorted(set(texts(train))) == sorted((f"{i}+1=", str(i + 1)) for i in range(60, 100))
    message = r"The task sums has 80 examples to train on beside .* and 81 are asked for; ask for fewer, or add rows"
    with pytest.raises(InputError, match=message):
        task.train(3, 81)
    with pytest.raises(InputError, match=r"has at most 200 examples .* and 1,000 are asked for"):
        task.train(3, 1000)


@given(
    rows=st.lists(st.integers(0, 30), min_size=1, max_size=60),
    own_test=st.none() | st.lists(st.integers(0, 30), min_size=3, max_size=9),
    seed=st.integers(0, 2**32),
    small=st.integers(0, 60),
)
def test_sets_are_nested_and_disjoint(
    rows: list[int],
    own_test: list[int] | None,
    seed: int,
    small: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("task")
    files = {"train": rows} | ({} if own_test is None else {"test": own_test})
    for name, values in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"x": value}) + "\n" for value in values))
    source = Files(files={name: [folder / f"{name}.jsonl"] for name in files})
    spec = TaskSpec(name="x", source=source, prompt="{x} is", target="{x}", validation=2, test=3)
    try:
        task = load_task(spec)
    except InputError as error:
        assert re.search("ask for fewer, or name a (validation|test) split", str(error))  # noqa: PT017
        assert len(set(rows)) < 5
        return
    everything = list(task.shuffled(seed))
    assert not set(texts(task.validation)) & set(texts(task.test))
    assert not set(texts(everything)) & set(texts(task.validation + task.test))
    small = min(small, len(everything))
    assert task.train(seed, small) == everything[:small]
    assert len(everything) == task.available()
    assert sorted(texts(everything)) == sorted(
        (f"{x} is", str(x)) for x in rows if (f"{x} is", str(x)) not in texts(task.validation + task.test)
    )


class Counting(Rows):
    """A million rows made when they are asked for, and counted."""

    def __init__(self) -> None:
        self.made = 0

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, i: int) -> Mapping[str, object]:
        self.made += 1
        return {"a": i, "b": 0, "c": i}

    def where(self, i: int) -> str:
        return f"row {i}"


def test_only_what_is_needed_is_read(monkeypatch: pytest.MonkeyPatch, make_spec: Make, save_jsonl: Save) -> None:
    rows = Counting()
    monkeypatch.setattr(Files, "open", lambda source, split, fields: rows if split == "train" else None)
    save_jsonl("train.jsonl", [])
    task = load_task(make_spec(validation=100, test=100))
    assert rows.made == 200
    assert len(task.train(0, 200)) == 200
    assert rows.made == 400
    assert task.available() == 999_800
    assert rows.made == 400


def test_two_sets_from_one_split(tmp_path: Path, save_hf: Save, make_spec: Make) -> None:
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "dev"]}')
    save_hf(tmp_path / "all" / "train", [sums(0, 50)])
    save_hf(tmp_path / "all" / "dev", [sums(50, 90)])
    source = Saved(saved=tmp_path / "all", splits={"validation": "dev", "test": "dev"})
    task = load_task(make_spec(source=source, validation=15, test=25))
    assert len(set(texts(task.validation + task.test))) == 40
    with pytest.raises(InputError, match="validation of the task sums is 16, but its validation split has 15 examples"):
        load_task(make_spec(source=source, validation=16, test=25))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train", "test"], "test of the task sums is 30, but its test split has 10 examples; ask for no more."),
        (["train", "validation"], "validation of the task sums is 11, but its validation split has 10 examples that"),
        (["train"], "test of the task sums is 30, but there are 10 examples to hold out of its train split; ask for f"),
    ],
)
def test_too_few_to_hold_out(files: list[str], message: str, save_jsonl: Save, make_spec: Make) -> None:
    for name in files:
        save_jsonl(f"{name}.jsonl", sums(100, 200) if name == "train" and len(files) > 1 else sums(0, 10))
    with pytest.raises(InputError, match=re.escape(message)):
        load_task(make_spec(validation=11, test=30))


def one(save_jsonl: Save, make_spec: Make, row: dict[str, Any], **fields: Any) -> Example:
    save_jsonl("train.jsonl", [row])
    save_jsonl("validation.jsonl", [row | {"b": "other"}])
    save_jsonl("test.jsonl", [row])
    return load_task(make_spec(validation=1, test=1, **fields)).test[0]


def test_rendering(save_jsonl: Save, make_spec: Make) -> None:
    row = {"a": -0.5, "b": True, "c": " é\n", "other": None}
    example = one(save_jsonl, make_spec, row, prompt="{{{a}}} {b}{a}", target="{c}")
    assert (example.prompt, example.target) == ("{-0.5} True-0.5", " é\n")
    assert example.text == ("{-0.5} True-0.5", "é")
    assert example.where.endswith("test.jsonl line 1")
    assert one(save_jsonl, make_spec, row | {"a": ""}, prompt="{a}", target="{b} {c}").prompt == ""


MISSING = r"test\.jsonl line 1 has an empty field 'c' \(%s is a missing value\); fill it in or remove the row\."
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nan": ({"a": 1, "b": 2, "c": math.nan}, MISSING % "nan"),
    "infinite": ({"a": 1, "b": 2, "c": math.inf}, MISSING % "inf"),
    "negative infinite": ({"a": 1, "b": 2, "c": -math.inf}, MISSING % "-inf"),
    "missing": ({"a": 1, "b": 2}, r"test\.jsonl line 1 has no field 'c', only a, b; mend the template or the row\."),
    "null": ({"a": 1, "b": 2, "c": None}, r"test\.jsonl line 1 has an empty field 'c'; fill it in or remove"),
    "list": ({"a": [1], "b": 2, "c": 3}, r"line 1 holds a list in the field 'a'; templates take texts and numbers"),
    "blank": ({"a": 1, "b": 2, "c": " \n"}, r"test\.jsonl line 1 has a blank target; fill it in or remove the row\."),
    "surrogate": ({"a": 1, "b": 2, "c": "\ud800"}, "line 1 holds half a character in the field 'c'"),
}


@pytest.mark.parametrize("kind", BAD)
def test_rows_that_cannot_be_rendered(kind: str, tmp_path: Path, make_spec: Make) -> None:
    row, message = BAD[kind]
    for name in ("train", "test", "validation"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=message):
        load_task(make_spec(validation=1, test=1))


def test_numbers_beyond_floats_are_missing(tmp_path: Path, make_spec: Make) -> None:
    for value in ("1e400", "-1e400", "NaN", "Infinity"):
        for name in ("train", "test", "validation"):
            (tmp_path / f"{name}.jsonl").write_text(f'{{"a": {value}, "b": 2, "c": 3}}\n')
        with pytest.raises(InputError, match=r"line 1 has an empty field 'a' \(-?(nan|inf) is a missing value\)"):
            load_task(make_spec(validation=1, test=1))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "dictionary"])
def test_floats_of_arrow_that_are_no_numbers(kind: str, value: float, tmp_path: Path, make_spec: Make) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    column = pa.array(np.array([value] * 3, "float32" if kind == "dictionary" else kind), from_pandas=False)
    column = column.dictionary_encode() if kind == "dictionary" else column
    pq.write_table(pa.table({"a": [1, 2, 3], "b": [1, 2, 3], "c": column}), tmp_path / "a.parquet")
    source = Files(files={"train": [tmp_path / "a.parquet"]})
    with pytest.raises(InputError, match=r"row \d has an empty field 'c' \(-?(nan|inf) is a missing value\)"):
        load_task(make_spec(source=source, validation=1, test=1))


@pytest.mark.parametrize("value", [np.float32("nan"), np.float16("inf"), np.float64("-inf"), np.datetime64("NaT")])
def test_scalars_of_tfds_that_are_no_numbers(
    value: Any, monkeypatch: pytest.MonkeyPatch, make_spec: Make, save_jsonl: Save
) -> None:
    save_jsonl("train.jsonl", sums(0, 3))
    monkeypatch.setattr(Jsonl, "__getitem__", lambda self, i: {"a": i, "b": 1, "c": value})
    with pytest.raises(InputError, match=r"has an empty field 'c' \(.* is a missing value\)"):
        load_task(make_spec(validation=1, test=1))


def test_cells_of_csv_are_text(tmp_path: Path, make_spec: Make) -> None:
    (tmp_path / "a.csv").write_text("a,b,c\n" + "".join(f"{i},NaN,inf\n" for i in range(3)))
    task = load_task(make_spec(source=Files(files={"train": [tmp_path / "a.csv"]}), validation=1, test=1))
    assert task.test[0].text[1] == "inf"
    assert "+NaN=" in task.test[0].prompt


@pytest.mark.parametrize("dictionary", [False, True])
def test_narrow_floats_print_their_shortest_text(dictionary: bool, tmp_path: Path, make_spec: Make) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    columns = {"a": np.array([0.3] * 3, "float32"), "b": np.array([0.1] * 3, "float16"), "c": [0.1, 0.25, 1e300]}
    arrays = {name: pa.array(values) for name, values in columns.items()}
    if dictionary:
        arrays["a"] = arrays["a"].dictionary_encode()
    pq.write_table(pa.table(arrays), tmp_path / "a.parquet")
    source = Files(files={"train": [tmp_path / "a.parquet"]})
    task = load_task(make_spec(source=source, validation=1, test=1))
    three = [*task.test, *task.validation, *task.train(0, 1)]
    assert {example.prompt for example in three} == {"0.3+0.1="}
    assert sorted(example.target for example in three) == ["0.1", "0.25", "1e+300"]


TWINS = ["café  olé", "cafe\u0301 ole\u0301", " café\tolé\n", "café\u00a0olé", "café\u3000\r\nolé"]


def test_twins_are_known_in_any_writing(save_jsonl: Save, make_spec: Make) -> None:
    for held_out, *others in (TWINS[i:] + TWINS[:i] for i in range(len(TWINS))):
        save_jsonl("test.jsonl", [{"a": held_out, "c": held_out}])
        spare = [{"a": "cafe olé", "c": "x"}, {"a": "caféolé", "c": "y"}]
        save_jsonl("validation.jsonl", [*({"a": other, "c": held_out} for other in others), *spare])
        save_jsonl("train.jsonl", [{"a": other, "c": one} for other in others for one in others] + sums(0, 9))
        task = load_task(make_spec(prompt="{a}", validation=2, test=1))
        assert {example.target for example in task.validation} == {"x", "y"}
        assert task.test[0].target == held_out  # what is read is what was written
        assert task.available() == 9
        assert {example.target for example in task.shuffled(3)} == {str(i + 1) for i in range(9)}
        with pytest.raises(InputError, match="its validation split has 2 examples that are not in test"):
            load_task(make_spec(prompt="{a}", validation=3, test=1))


def test_prompts_that_are_all_the_same_are_named(save_jsonl: Save, make_spec: Make) -> None:
    save_jsonl("train.jsonl", [{"a": "yes", "c": "no" if i % 2 else "maybe"} for i in range(9)])
    for prompt in ("asked", "{a}"):
        with pytest.raises(InputError, match=r"All prompts of the task .* are the same \('(asked|yes)'\)"):
            load_task(make_spec(prompt=prompt, validation=3, test=3))
    assert len(load_task(make_spec(prompt="asked", validation=1, test=1)).test) == 1  # there are two texts


def test_bytes_are_text(tmp_path: Path, save_hf: Save, make_spec: Make) -> None:
    def load(value: bytes) -> Task:
        folder = tmp_path / str(len(value))
        save_hf(folder, [[{"a": 1, "b": i, "c": value} for i in range(3)]])
        return load_task(make_spec(source=Saved(saved=folder), validation=1, test=1))

    assert load("né".encode()).test[0].target == "né"
    with pytest.raises(InputError, match=r"row \d holds bytes that are not UTF-8 text in the field 'c'; mend or"):
        load(b"\xff")


def test_a_field_that_no_row_of_a_parquet_file_has(tmp_path: Path, make_spec: Make) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(sums(0, 5)), tmp_path / "a.parquet")
    source = Files(files={"train": [tmp_path / "a.parquet"]})
    with pytest.raises(InputError, match=r"a\.parquet has no column 'd' but a, b, c"):
        load_task(make_spec(source=source, target="{d}", validation=1, test=1))


def test_fingerprint_tells_changes_of_text_and_order() -> None:
    examples = [Example("ab", "c", "x"), Example("d", "e", "x")]
    found = fingerprint(examples)
    assert re.fullmatch("[0-9a-f]{64}", found)
    assert fingerprint([Example(e.prompt, e.target, "elsewhere") for e in examples]) == found
    others = [
        examples[::-1],
        examples[:1],
        [Example("a", "bc", "x"), examples[1]],
        [Example("ab", "c ", "x"), examples[1]],
        [],
    ]
    assert len({found, *map(fingerprint, others)}) == 6


def test_numbers_of_tfds_are_text_too(monkeypatch: pytest.MonkeyPatch, make_spec: Make, save_jsonl: Save) -> None:
    save_jsonl("train.jsonl", sums(0, 3))
    monkeypatch.setattr(Jsonl, "__getitem__", lambda self, i: {"a": np.int32(i), "b": np.float32(0.1), "c": b"x%d" % i})
    task = load_task(make_spec(validation=1, test=1))
    assert {example.text for example in [*task.test, *task.validation, *task.train(0, 1)]} == {
        (f"{i}+0.1=", f"x{i}") for i in range(3)
    }
