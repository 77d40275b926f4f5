"""YAML files that users write, read into Pydantic models; errors name the field."""

import itertools
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, ValidationError

from lensjax.core.errors import InputError, meant, one_line, shorten
from lensjax.core.reading import read_text
from lensjax.core.text import significant

Fields = TypeVar("Fields", bound=BaseModel)

_MERGE = "tag:yaml.org,2002:merge"  # <<, which may be there several times
_MOST_VALUES = 1_000_000  # of a file, each counted as often as its anchor is named
_PRECISIONS = {"bf16": "bfloat16", "fp16": "float16", "f16": "float16", "half": "float16"} | {
    short: f"float{short[-2:]}" for short in ("fp32", "f32", "fp64", "f64")
}
_DATA = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".gz", ".zst")  # endings of rows, which are no YAML
_SHOW = ("lensjax", "data", "show")
_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12, "p": 1e15}


def quantity(value: Any) -> float:
    """A positive number, also of a text with a prefix such as 124M, 1.5B, 2 G or 1e9.

    Raises:
      ValueError: it is none.
    """
    found = re.fullmatch(r"\s*([\d.]+(?:e[+-]?\d+)?)\s*([kmgbtp]?)\s*", str(value), re.IGNORECASE)
    try:
        number = math.nan if found is None or isinstance(value, bool) else float(found[1]) * _PREFIXES[found[2].lower()]
    except ValueError:  # as of 1.2.3
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError("give a positive number, such as 500M, 1.5B or 2e9")
    return number


def whole(value: Any) -> Any:
    """The whole number that a text with a prefix stands for, such as 12k or 1.6M; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        number = quantity(value)
    except ValueError:
        return value
    return round(number) if number == round(number) else value


def precision(value: Any) -> Any:
    """The name of a type that a short one stands for, such as bf16 or fp32; anything else as it is."""
    return _PRECISIONS.get(value.lower(), value) if isinstance(value, str) else value


def _plain_number(value: Any) -> Any:
    """The number that a text without a unit stands for, as YAML reads 8e9 as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _no_truth(value: Any) -> Any:
    """A value as it is, which no truth value is a number for."""
    if isinstance(value, bool):
        raise ValueError("give a number, not true or false")
    return value


def pattern(value: str) -> str:
    """A text that is a name or a regular expression.

    Raises:
      ValueError: it is none.
    """
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"it is no regular expression ({error}); give a name, or mend it") from error
    return value


_MOST_COUNTED = 10**15
Count = Annotated[int, Field(ge=1, le=_MOST_COUNTED, strict=True), BeforeValidator(whole)]
Natural = Annotated[int, Field(ge=0, le=2**63 - 1, strict=True), BeforeValidator(whole)]
_Number = Annotated[float, BeforeValidator(_no_truth), Field(allow_inf_nan=False)]
Positive = Annotated[_Number, Field(gt=0)]
NonNegative = Annotated[_Number, Field(ge=0)]
Share = Annotated[_Number, Field(ge=0, lt=1)]
Probability = Annotated[_Number, Field(gt=0, lt=1)]
Quantity = Annotated[float, BeforeValidator(quantity)]
Pattern = Annotated[str, AfterValidator(pattern)]
Bytes = Annotated[ByteSize, BeforeValidator(_plain_number), Field(gt=0)]  # as in 8 GB, 500 MiB


class Strict(BaseModel):
    """A frozen model that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Interval(Strict):
    """A number with both ends of its 90 % interval."""

    value: float
    lower: float
    upper: float

    def __str__(self) -> str:
        value, lower, upper = (significant(one, 3) for one in (self.value, self.lower, self.upper))
        return f"{value} ({lower} to {upper})"


def read_fields(path: Path, what: str, least: str) -> dict[str, Any]:
    """The fields of a YAML file.

    Args:
      path: The file.
      what: The thing that it describes, for messages, as in "a task".
      least: The fields that it must have, for messages, as in "source and target".

    Raises:
      InputError: the file cannot be read, is not YAML, or holds no fields.
    """
    where = shorten(path, 200)
    if path.suffix.lower() in _DATA and path.is_file():
        raise InputError(
            f"{where} holds rows, and this takes the YAML file of {what} that names them; see the rows, and how to "
            f"make one, with: {shlex.join([*_SHOW, str(path)])}"
        )
    text = read_text(path, f"give the YAML file of {what}")
    try:
        content = yaml.load(text, _UniqueKeys)  # noqa: S506  # a safe loader
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:  # as of 2024-13-45
        raise InputError(f"{where} is not YAML ({one_line(error, 200)}); mend it.") from error
    if not isinstance(content, dict):
        raise InputError(f"{where} holds no fields; write at least {least}.")
    return content


def validated(kind: type[Fields], content: Mapping[str, Any], path: Path) -> Fields:
    """The fields of a file as a Pydantic model.

    Args:
      kind: The model.
      content: The fields.
      path: The file, for messages.

    Raises:
      InputError: a field is missing, unknown or wrong; it names the first.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{shorten(path, 200)}: {_first(error, kind)}") from error


def with_settings(content: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """The fields of a spec with others in their places.

    Args:
      content: The fields, as `read_fields` reads them.
      settings: Each the name of a field, in parts with full stops between, and its value as in YAML: "budget=400",
        "training.epochs=3", "candidates.0.name=mine". What is no YAML is text, as are templates: "task.prompt={en}".

    Raises:
      InputError: a setting is not of this form, or what it names is in no field or list.
    """
    changed: dict[str, Any] = _copied(content)
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not (equals and name):
            raise InputError(f"--set {shorten(setting)} is no setting; write FIELD=VALUE, as in training.epochs=3.")
        given = _yaml_value(value)
        place: Any = changed
        *parts, last = name.split(".")
        for part in parts:
            if isinstance(place, dict):
                place[part] = {} if place.get(part) is None else place[part]
            place = place[_key(place, part, setting)]
        place[_key(place, last, setting)] = given
    return changed


def _yaml_value(value: str) -> Any:
    """A value as YAML reads it, or the text itself where YAML does not read it, or reads a template as a mapping."""
    try:
        given = yaml.load(value, _UniqueKeys)  # noqa: S506  # a safe loader
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError):
        return value
    return value if isinstance(given, dict) and None in given.values() else given


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any], inside: str = "") -> list[str]:
    """The fields of `now` that were another value before, and both values, as in "training.epochs (10 then, 3 now)"."""
    changed = []
    for name, value in now.items():
        old = before.get(name)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            changed += changed_settings(old, value, f"{inside}{name}.")
        elif value != old:
            changed.append(f"{inside}{name} ({shorten(old, 40)} then, {shorten(value, 40)} now)")
    return changed


def _copied(value: Any) -> Any:
    """Fields whose mappings and lists are no one else's."""
    if isinstance(value, Mapping):
        return {key: _copied(one) for key, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, (list, tuple)) else value


def _key(place: Any, part: str, setting: str) -> Any:
    """The key of a part of a setting's name in what holds it."""
    if isinstance(place, dict):
        return part
    if isinstance(place, list) and part.isdecimal() and int(part) < len(place):
        return int(part)
    held = f"a list of {len(place)}, counted from 0" if isinstance(place, list) else "a value without fields"
    raise InputError(f"--set {shorten(setting)} asks for '{shorten(part)}' of {held}; name what is there.")


def field_names(kind: type[BaseModel], before: str = "") -> Iterator[str]:
    """The names of all fields of a model and of those within it, in parts with full stops between."""
    for name, field in kind.model_fields.items():
        yield before + name
        for inner in _models_in(field.annotation):
            yield from field_names(inner, f"{before}{name}.")


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _meant_field(loc: Sequence[int | str], kind: type[BaseModel]) -> str | None:
    """The field that a misspelt or misplaced one may stand for: one beside it first, and else one of that very name."""
    *inside, last = [str(part) for part in loc if not isinstance(part, int)]
    names, beside = list(field_names(kind)), "".join(f"{part}." for part in inside)
    near = meant(str(last), [name.removeprefix(beside) for name in names if name.rpartition(".")[0] == beside[:-1]])
    if near is not None:
        return beside + near
    return next((name for name in names if name.rpartition(".")[2] == last), None)


def _first(error: ValidationError, kind: type[BaseModel]) -> str:
    """The first mistake in a spec, preferably an unknown field, which may be the misspelt name of a missing one."""
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    field = shorten(".".join(str(part) for part in first["loc"] if part != "[key]"))
    why = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"the field {field} is missing; add it."
    if first["type"] == "extra_forbidden":
        near = first.get("ctx", {}).get("meant")  # of fields that this model does not know
        near = _meant_field(first["loc"], kind) if near is None else f"{field.rpartition('.')[0]}.{near}".lstrip(".")
        return f"there is no field {field}; {f'did you mean {near}?' if near else 'remove it or mend its name.'}"
    value = "" if isinstance(first["input"], (dict, list)) else f" is {_quoted(first['input'])}"
    return f"{field or 'the spec'}{value}: {why[:1].lower()}{why[1:]}."


def _quoted(value: object) -> str:
    """A value of a spec as its YAML has it."""
    return "empty" if value is None else f"'{shorten(value)}'"


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, which refuses a field that is there twice, as YAML 1.2 does, instead of taking the last.

    It also refuses values that hold themselves, and those of few lines that stand for millions.
    """

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _count(node, {})
        return node

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


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of values that a node stands for, with those of the anchors that it names.

    Args:
      node: The node.
      known: The numbers of nodes that were counted, by identity; 0 while one is being counted.

    Raises:
      yaml.MarkedYAMLError: it holds itself, or there are too many.
    """
    if id(node) in known:
        if not known[id(node)]:
            raise yaml.MarkedYAMLError(problem="a value holds itself", problem_mark=node.start_mark)
        return known[id(node)]
    known[id(node)] = 0
    parts = node.value if isinstance(node, yaml.CollectionNode) else []
    held = itertools.chain.from_iterable(parts) if isinstance(node, yaml.MappingNode) else parts
    count = 1 + sum(_count(part, known) for part in held)
    if count > _MOST_VALUES:
        raise yaml.MarkedYAMLError(
            problem=f"it stands for more than {_MOST_VALUES:,} values", problem_mark=node.start_mark
        )
    known[id(node)] = count
    return count
