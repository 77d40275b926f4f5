"""Names of fields within fields of a row, as in meta.lang and messages[0][content]."""

import re
from collections.abc import Mapping, Sequence

_FIELD = re.compile(r"(?P<first>[^.\[\]{}]+)(?P<rest>(?:\.[^.\[\]{}]+|\[[^\[\]{}]+\])*)")
_PART = re.compile(r"\.([^.\[\]]+)|\[([^\[\]]+)\]")


def field_path(name: str) -> tuple[str, ...]:
    """The parts of a field's name, that of the row's own field first: ("messages", "0", "content").

    Raises:
      ValueError: it is no such name.
    """
    found = _FIELD.fullmatch(name)
    if found is None:
        raise ValueError("braces hold the name of a field, as in {text}, {meta.lang} or {messages[0][content]}")
    return (found["first"], *(one or other for one, other in _PART.findall(found["rest"])))


def value_at(row: Mapping[str, object], name: str) -> tuple[bool, object]:
    """Whether a row has a field, and its value; a field of the whole name comes before one within another."""
    if name in row:
        return True, row[name]
    value: object = row
    for part in field_path(name):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and _is_place(part, len(value)):
            value = value[int(part)]
        else:
            return False, None
    return True, value


def _is_place(part: str, length: int) -> bool:
    return re.fullmatch(r"-?\d+", part) is not None and -length <= int(part) < length
