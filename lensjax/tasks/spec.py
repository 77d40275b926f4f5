"""What a task is, as its user writes it: where its rows are, what becomes of them, and how many are held out."""

import os
import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lensjax.core.errors import InputError, one_line, shorten

Count = Annotated[int, Field(ge=1, strict=True)]
SplitName = Literal["train", "validation", "test"]


class Strict(BaseModel):
    """Frozen, and without fields that nobody knows."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Source(Strict):
    """Where a task's rows are: files, a TFDS data set, or a folder that HF datasets saved.

    Paths are relative to the folder of the spec.

    Attributes:
      files: JSONL, CSV or Parquet files of each split; a text or list alone is `train`.
      tfds: Name of a TensorFlow data set, as in "my_verses/plain:1.0.0", prepared in array_record format.
      data_dir: Where TFDS keeps its data sets; by default where TFDS itself looks.
      saved: Folder written by `save_to_disk` of HF datasets.
      splits: For `tfds` and `saved`, the names that `train`, `validation` and `test` have there, where they are called
        otherwise (for `tfds` also slices, as in "train[:90%]"); null for one to be held out of train instead.
    """

    files: dict[SplitName, list[Path]] | None = None
    tfds: str | None = None
    data_dir: Path | None = None
    saved: Path | None = None
    splits: dict[SplitName, str | None] | None = None

    @field_validator("files", mode="before")
    @classmethod
    def _by_split(cls, value: Any) -> Any:
        if isinstance(value, (str, list)):
            value = {"train": value}
        if isinstance(value, dict):
            return {split: [paths] if isinstance(paths, str) else paths for split, paths in value.items()}
        return value

    @field_validator("tfds")
    @classmethod
    def _tfds_name(cls, value: str | None) -> str | None:
        if value is not None and not _TFDS_NAME.fullmatch(value):
            raise ValueError("write it as in my_verses, my_verses/plain or my_verses/plain:1.0.0")
        return value

    @field_validator("splits")
    @classmethod
    def _keeps_train(cls, value: dict[SplitName, str | None] | None) -> dict[SplitName, str | None] | None:
        if value and "train" in value and not value["train"]:
            raise ValueError("train is what the others are held out of; name it")
        return value

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in ("files", "tfds", "saved") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of files, tfds and saved, not {' and '.join(given) or 'none of them'}")
        if self.files is not None:
            if not self.files.get("train"):
                raise ValueError("files names no train files; add files: {train: …}")
            if self.splits is not None:
                raise ValueError("splits renames the splits of tfds or saved; files names its own")
        if self.data_dir is not None and self.tfds is None:
            raise ValueError("data_dir belongs to tfds, which is not given")
        return self


class TaskSpec(Strict):
    """A task.

    Attributes:
      name: What the task is called; the stem of the spec's file where not given.
      source: Where the rows are.
      prompt: Template of what the model is given, with fields of a row in braces, as in "English: {en}\\nSpanish:".
      target: Template of what it should say, as in " {es}"; the loss is on its tokens, and on that of the end.
      validation: Number of examples that decide when to stop.
      test: Number of examples that the loss is reported on.
      max_prompt_tokens: Longer prompts are cut.
      max_target_tokens: Longer targets are cut, after the end-of-text token was added.
      cut_prompt: Which end of a long prompt is cut off.
    """

    name: str = ""
    source: Source
    prompt: str = ""
    target: str
    validation: Count = 1000
    test: Count = 1000
    max_prompt_tokens: Count = 512
    max_target_tokens: Count = 128
    cut_prompt: Literal["start", "end"] = "end"

    @field_validator("prompt", "target")
    @classmethod
    def _template(cls, value: str) -> str:
        template_fields(value)
        return value

    @field_validator("target")
    @classmethod
    def _says_something(cls, value: str) -> str:
        if not template_fields(value):
            raise ValueError("it names no field of a row; write it as in ' {answer}'")
        return value

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that the templates take from a row, each once."""
        return tuple(dict.fromkeys(template_fields(self.prompt) + template_fields(self.target)))


_TFDS_NAME = re.compile(r"\w+(/[\w.+-]+)?(:[\d.*]+)?")
_MERGE = "tag:yaml.org,2002:merge"  # <<, which may be there several times
Spec = TypeVar("Spec", bound=TaskSpec)
Fields = TypeVar("Fields", bound=BaseModel)


def template_pieces(template: str) -> tuple[tuple[str, str | None], ...]:
    """A template as texts, each with the name of the field after it; None where none follows.

    Raises:
      ValueError: braces do not match, or hold something other than a name.
    """
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{error}; write a brace that is meant as such twice") from error
    for _, name, form, conversion in pieces:
        if name is not None and (not name or form or conversion or any(mark in name for mark in ".[]{")):
            raise ValueError("braces hold the name of a field and nothing else; write a brace that is meant twice")
    return tuple((text, name) for text, name, _, _ in pieces)


def template_fields(template: str) -> tuple[str, ...]:
    """Names of the fields in a template, in order.

    Raises:
      ValueError: braces do not match, or hold something other than a name.
    """
    return tuple(name for _, name in template_pieces(template) if name is not None)


def read_spec(path: str | Path, kind: type[Spec]) -> Spec:
    """Read a task's spec of the given kind from a YAML file; relative paths in it become relative to its folder.

    Raises:
      InputError: the file cannot be read or is not YAML, or a field is missing, unknown or wrong; names it.
    """
    path = Path(path)
    content = read_fields(path, "a task", "source and target")
    content.setdefault("name", path.stem)
    spec = validated(kind, content, path)
    return spec.model_copy(update={"source": from_folder(spec.source, path.parent)})


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, which refuses a field that is there twice, as YAML 1.2 does, instead of taking the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)  # before << is filled in
        seen: set[tuple[str, object]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            if (key.tag, key.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"{shorten(key.value)} is there twice", problem_mark=key.start_mark)
            seen.add((key.tag, key.value))
        return node


def read_fields(path: Path, what: str, least: str) -> dict[str, Any]:
    """The fields of a YAML file.

    Args:
      path: The file.
      what: What it describes, as in "a task".
      least: The fields that it needs at least, as in "source and target".

    Raises:
      InputError: it cannot be read, is not YAML, or holds no fields.
    """
    where = shorten(path, 200)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"Cannot read {where}: {why}; give the YAML file of {what}.") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:  # as of 2024-13-45
        raise InputError(f"{where} is not YAML ({one_line(error, 200)}); mend it.") from error
    if not isinstance(content, dict):
        raise InputError(f"{where} holds no fields; write at least {least}.")
    return content


def validated(kind: type[Fields], content: Mapping[str, Any], path: Path) -> Fields:
    """The fields of a file as a model of the given kind.

    Raises:
      InputError: a field is missing, unknown or wrong; names it.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{shorten(path, 200)}: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    """The first thing wrong with a spec, naming the field: one that nobody knows, as it may be one that is missing."""
    found = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    field = shorten(".".join(str(part) for part in found["loc"] if part != "[key]"))
    why = found["msg"].removeprefix("Value error, ")
    if found["type"] == "missing":
        return f"the field {field} is missing; add it."
    if found["type"] == "extra_forbidden":
        return f"there is no field {field}; remove it or mend its name."
    value = "" if isinstance(found["input"], (dict, list)) else f" is {_quoted(found['input'])}"
    return f"{field or 'the spec'}{value}: {why[:1].lower()}{why[1:]}."


def _quoted(value: object) -> str:
    """A value of a spec as its YAML has it."""
    return "empty" if value is None else f"'{shorten(value)}'"


def from_folder(source: Source, folder: Path) -> Source:
    """The source with paths taken from the folder of the spec."""

    def within(path: Path) -> Path:
        return folder / os.path.expanduser(path)  # which leaves the ~ of nobody as it is

    update: dict[str, object] = {
        name: within(path) for name in ("data_dir", "saved") if (path := getattr(source, name)) is not None
    }
    if source.files is not None:
        update["files"] = {split: [within(path) for path in paths] for split, paths in source.files.items()}
    return source.model_copy(update=update)
