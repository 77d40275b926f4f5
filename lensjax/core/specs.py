"""YAML files that users write, read into Pydantic models; errors name the field."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, ValidationError

from lensjax.core.errors import InputError, one_line, shorten
from lensjax.core.reading import read_text
from lensjax.core.text import significant

Count = Annotated[int, Field(ge=1, strict=True)]
Natural = Annotated[int, Field(ge=0, strict=True)]
Fields = TypeVar("Fields", bound=BaseModel)

_MERGE = "tag:yaml.org,2002:merge"  # <<, which may be there several times
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


_Number = Annotated[float, BeforeValidator(_no_truth), Field(allow_inf_nan=False)]
Positive = Annotated[_Number, Field(gt=0)]
NonNegative = Annotated[_Number, Field(ge=0)]
Share = Annotated[_Number, Field(ge=0, lt=1)]
Probability = Annotated[_Number, Field(gt=0, lt=1)]
Quantity = Annotated[float, BeforeValidator(quantity)]
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
        raise InputError(f"{shorten(path, 200)}: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    """The first mistake in a spec, preferably an unknown field, which may be the misspelt name of a missing one."""
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    field = shorten(".".join(str(part) for part in first["loc"] if part != "[key]"))
    why = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"the field {field} is missing; add it."
    if first["type"] == "extra_forbidden":
        return f"there is no field {field}; remove it or mend its name."
    value = "" if isinstance(first["input"], (dict, list)) else f" is {_quoted(first['input'])}"
    return f"{field or 'the spec'}{value}: {why[:1].lower()}{why[1:]}."


def _quoted(value: object) -> str:
    """A value of a spec as its YAML has it."""
    return "empty" if value is None else f"'{shorten(value)}'"


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
