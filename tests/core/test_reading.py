"""What is read of users: regular files, fields that are there once, and values that do not hold themselves."""

import json
import os

import pytest

from lensjax.core.errors import InputError, shorten
from lensjax.core.hashes import file_hash
from lensjax.core.reading import unique_fields
from lensjax.core.specs import read_fields, with_settings


def test_a_field_that_is_there_twice_is_refused_at_any_depth():
    text = '{"a": 1, "b": {"c": 1, "d": 2, "c": 3}}'
    with pytest.raises(ValueError, match="'c' is there twice"):
        json.loads(text, object_pairs_hook=unique_fields)
    assert json.loads('{"a": {"a": []}}', object_pairs_hook=unique_fields) == {"a": {"a": []}}


def test_anchors_are_taken_and_bombs_are_not(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("base: &b {x: 1, z: [1, 2]}\none: *b\ntwo: {<<: *b, x: 2}\n")
    base = {"x": 1, "z": [1, 2]}
    assert read_fields(path, "a task", "source") == {"base": base, "one": base, "two": base | {"x": 2}}
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))]
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"a.yaml is not YAML .*more than 1,000,000 values"):
        read_fields(path, "a task", "source")
    path.write_text("a: &a\n  b: *a\n")
    with pytest.raises(InputError, match="a value holds itself"):
        read_fields(path, "a task", "source")
    assert with_settings({}, ["a=" + "[" * 10_000])["a"] == "[" * 10_000


def test_numbers_of_any_length_can_be_quoted():
    assert shorten(16**5000) == "a number of thousands of digits"
    assert shorten([16**5000]) == "a number of thousands of digits"


def test_only_files_are_hashed(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(InputError, match=r"Cannot read .*: it is a .*; mend it, or fetch it again"):
            file_hash(path)
