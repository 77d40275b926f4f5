"""Specs of tasks, and what their users are told of mistakes."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from lensjax.core.errors import InputError
from lensjax.tasks.sources.files import Files
from lensjax.tasks.sources.saved import Saved
from lensjax.tasks.sources.tfds import Tfds
from lensjax.tasks.spec import TaskSpec, read_spec, template_fields, template_pieces
from lensjax.tasks.task import load_task

WHOLE = """
source:
  files: {train: [a.jsonl, more/b.csv], test: /data/test.parquet}
prompt: "English: {en}\\nSpanish:"
target: " {es}"
validation: 5
test: 7
cut_prompt: start
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "verses.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_read_whole(tmp_path: Path) -> None:
    spec = read_spec(write(tmp_path, WHOLE), TaskSpec)
    assert spec.name == "verses"
    assert spec.source.files == {
        "train": [tmp_path / "a.jsonl", tmp_path / "more" / "b.csv"],
        "test": [Path("/data/test.parquet")],
    }
    assert spec.prompt == "English: {en}\nSpanish:"
    assert (spec.validation, spec.test, spec.max_prompt_tokens, spec.max_target_tokens) == (5, 7, 512, 128)
    assert spec.cut_prompt == "start"
    assert spec.fields == ("en", "es")


def test_merged_fields_are_not_there_twice(tmp_path: Path) -> None:
    anchor = "&held {train: a.csv, test: b.csv}"
    spec = read_spec(write(tmp_path, f"source: {{files: {{test: c.csv, <<: {anchor}}}}}\ntarget: '{{a}}'"), TaskSpec)
    assert spec.source.files == {"train": [tmp_path / "a.csv"], "test": [tmp_path / "c.csv"]}
    deep = "splits: {<<: &B {<<: {test: x}, test: y}, <<: *B}"
    spec = read_spec(write(tmp_path, f"source: {{saved: a, {deep}}}\ntarget: '{{a}}'"), TaskSpec)
    assert spec.source.splits == {"test": "y"}


def test_one_file_is_train_and_prompts_may_be_empty(tmp_path: Path) -> None:
    spec = read_spec(write(tmp_path, "name: poems\nsource: {files: a.jsonl}\ntarget: '{text}'"), TaskSpec)
    assert spec.name == "poems"
    assert spec.source.files == {"train": [tmp_path / "a.jsonl"]}
    assert spec.prompt == ""


def test_paths_of_other_sources_are_taken_from_the_folder_of_the_spec(tmp_path: Path) -> None:
    saved = read_spec(write(tmp_path, "source: {saved: here}\ntarget: '{a}'"), TaskSpec)
    assert saved.source.saved == tmp_path / "here"
    tfds = read_spec(write(tmp_path, "source: {tfds: a/b:1.0.0, data_dir: ~/x}\ntarget: '{a}'"), TaskSpec)
    assert tfds.source.data_dir == Path.home() / "x"
    nobody = read_spec(write(tmp_path, "source: {files: ~no.body/x.csv}\ntarget: '{a}'"), TaskSpec)
    assert nobody.source.files == {"train": [tmp_path / "~no.body" / "x.csv"]}


def test_each_set_may_have_a_source_of_its_own(tmp_path: Path, save_jsonl: Callable[..., Path]) -> None:
    save_jsonl("all.jsonl", ({"a": n} for n in range(30)))
    (tmp_path / "dev.json").write_text('[{"a": 3}, {"a": 40}, {"a": 41}]')
    text = "source: {train: {files: all.jsonl}, validation: {files: dev.json}, test: {files: {train: all.jsonl}}}\n"
    spec = read_spec(write(tmp_path, text + "target: '{a}'\nvalidation: 2\ntest: 10"), TaskSpec)
    assert spec.source.validation.files == {"train": [tmp_path / "dev.json"]}
    assert TaskSpec.model_validate(spec.model_dump(mode="json")) == spec
    task = load_task(spec)
    validation, test = ({int(example.target) for example in sets} for sets in (task.validation, task.test))
    assert validation <= {3, 40, 41}
    assert not validation & test
    assert {int(example.target) for example in task.shuffled(0)} == set(range(30)) - validation - test
    only = read_spec(
        write(tmp_path, "source: {train: {files: all.jsonl}}\ntarget: '{a}'\nvalidation: 4\ntest: 5"), TaskSpec
    )
    assert load_task(only).available() == 21
    assert spec.source.origin == ""
    assert spec.source.pinned() == spec.source


@pytest.mark.parametrize("name", ["verses", "verses/plain", "verses:1.0.0", "verses/en-es:1.*.*"])
def test_names_of_tfds(name: str) -> None:
    assert Tfds(tfds=name).tfds == name


def test_a_split_can_be_renamed_or_held_out() -> None:
    splits = Saved(saved=Path("x"), splits={"validation": "dev", "test": None}).splits
    assert splits == {"validation": "dev", "test": None}


def test_empty_fields_of_other_sources_are_none() -> None:
    """As specs have them that earlier versions wrote beside results."""
    spec = TaskSpec.model_validate(
        {"source": {"files": {"train": ["a.csv"]}, "tfds": None, "saved": None, "splits": None}, "target": "{a}"}
    )
    assert spec.source == Files(files={"train": [Path("a.csv")]})
    assert TaskSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_specs_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TaskSpec(source=Files(files={"train": [Path("a.csv")]}), target="{a}").test = 3


def test_templates() -> None:
    assert template_fields("{a} and {b c}, {a}; {{not}}") == ("a", "b c", "a")
    assert template_pieces("{{x}} {a}.") == (("{", None), ("x}", None), (" ", "a"), (".", None))
    assert template_pieces("") == ()


GOOD = "source: {files: a.jsonl}\ntarget: '{a}'\n"
BAD = {
    "not YAML": ("source: [", r"verses\.yaml is not YAML \(.*\); mend it\."),
    "twice": (GOOD + "test: 5\ntest: 6", r"verses\.yaml is not YAML \(test is there twice.*line 4.*\); mend it\."),
    "twice within": ("source: {files: a, files: b}\ntarget: '{a}'", "files is there twice"),
    "no mapping": ("source: !!map [x]", r"is not YAML \(expected a mapping node"),
    "not text": ("source: \0", "is not YAML"),
    "no date": (GOOD + "name: 2024-13-45", r"is not YAML \(month must be in 1\.\.12.*\); mend it"),
    "no number": (GOOD + "test: !!int ''", "is not YAML"),
    "no time": (GOOD + "test: !!timestamp x", "is not YAML"),
    "no fields": ("just text", "holds no fields; write at least source and target"),
    "empty": ("", "holds no fields"),
    "no source": ("target: '{a}'", "the field source is missing; add it"),
    "no target": ("source: {files: a.jsonl}\nprompt: '{a}'", "target is missing; write it as"),
    "unknown field": (GOOD + "tests: 3", "there is no field tests; did you mean test"),
    "misspelt": ("sauce: {files: a.jsonl}\ntarget: '{a}'", "there is no field sauce; did you mean source"),
    "unknown in source": (
        "source: {file: a.jsonl}\ntarget: '{a}'",
        r"there is no field source\.file; did you mean source\.files",
    ),
    "number as field": (GOOD + "3: 3", "the field|3.*should be strings|keys"),
    "two sources": ("source: {files: a.csv, saved: b}\ntarget: '{a}'", "source: give one of .* not files and saved"),
    "none of them": ("source: {}\ntarget: '{a}'", "not none of them"),
    "files without their source": (
        "source: {train: a.csv, test: b.csv}\ntarget: '{a}'",
        r"source: train is a source, as in train: \{files: train\.jsonl\}",
    ),
    "no name on the hub": (
        "source: {hub: a/b/c}\ntarget: '{a}'",
        "hub.*write the name of a data set on the hub as owner",
    ),
    "two splits to train on": (
        "source: {hub: a/b, split: c, splits: {train: d}}\ntarget: '{a}'",
        "split and splits.train name two splits to train on; leave one out",
    ),
    "no source at all": ("source:\ntarget: '{a}'", "source is empty: input should be"),
    "no train": ("source: {files: {test: a.csv}}\ntarget: '{a}'", "names no train files; add files: {train: …}"),
    "unknown split": (
        "source: {files: {train: a.csv, dev: b.csv}}\ntarget: '{a}'",
        r"source\.files\.dev is 'dev': inp",
    ),
    "splits of files": ("source: {files: a.csv, splits: {test: t}}\ntarget: '{a}'", "files names its own"),
    "no train name": ("source: {saved: a, splits: {train: null}}\ntarget: '{a}'", "train is what the others are held"),
    "data_dir alone": ("source: {files: a.csv, data_dir: b}\ntarget: '{a}'", "data_dir belongs to tfds"),
    "name of tfds": (
        "source: {tfds: 'hub:x y'}\ntarget: '{a}'",
        r"source\.tfds is 'hub:x y': write it as in my_verses",
    ),
    "no field in target": ("source: {files: a.csv}\ntarget: yes sir", "target is 'yes sir': it names no field"),
    "open brace": (GOOD + "prompt: 'a { b'", "prompt is 'a { b': .*; write a brace that is meant as such twice"),
    "empty braces": (GOOD + "prompt: '{}'", "prompt is '{}': braces hold the name of a field and nothing else"),
    "attribute": (GOOD + "prompt: '{a..b}'", "braces hold the name of a field"),
    "item": (GOOD + "prompt: '{a[0]x}'", "braces hold the name of a field"),
    "conversion": (GOOD + "prompt: '{a!r}'", "braces hold the name of a field"),
    "format": (GOOD + "prompt: '{a:>9}'", "braces hold the name of a field"),
    "nested": (GOOD + "prompt: '{a:{b}}'", "braces hold the name of a field"),
    "none": (GOOD + "test: 0", "test is '0': input should be greater than or equal to 1"),
    "text as number": (GOOD + "validation: many", "validation is 'many': input should be a valid integer"),
    "yes as number": (GOOD + "validation: yes", "validation is 'True': input should be a valid integer"),
    "which end": (GOOD + "cut_prompt: middle", "cut_prompt is 'middle': input should be 'start' or 'end'"),
}


@pytest.mark.parametrize("kind", BAD)
def test_mistakes_are_named_in_one_sentence(kind: str, tmp_path: Path) -> None:
    text, message = BAD[kind]
    with pytest.raises(InputError, match=message) as raised:
        read_spec(write(tmp_path, text), TaskSpec)
    assert re.fullmatch(r"[^\n]+[.?]", str(raised.value))
    assert "verses.yaml" in str(raised.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Cannot read .*none\.yaml: No such file or directory; give the YAML file of"):
        read_spec(tmp_path / "none.yaml", TaskSpec)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary\.yaml is not UTF-8 text; give the YAML file"):
        read_spec(tmp_path / "binary.yaml", TaskSpec)
