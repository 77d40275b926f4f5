"""What Griffe does not know of our docstrings: `first, second: both in one item` of Args and Attributes."""

import re
from typing import Any

from griffe import Extension, Object

SECTIONS = ("Args:", "Attributes:")
ITEM = re.compile(r"( +)(\w+(?:, \w+)+):(.*)")


def one_each(docstring: str) -> str:
    """The docstring with an item for each name of a common item, so that each is held to the signature."""
    lines: list[str] = []
    indent = None  # of items, in a section that has them
    pending = docstring.split("\n")
    while pending:
        line = pending.pop(0)
        if line.strip() in SECTIONS:
            indent = len(line) - len(line.lstrip()) + 2
        elif indent is not None and line.strip() and len(line) - len(line.lstrip()) < indent:
            indent = None
        found = ITEM.fullmatch(line) if indent is not None else None
        if found is None or len(found[1]) < indent:
            lines.append(line)
            continue
        rest = []
        while pending and (len(pending[0]) - len(pending[0].lstrip()) > len(found[1])):
            rest.append(pending.pop(0))
        for name in found[2].split(", "):
            lines += [f"{found[1]}{name}:{found[3]}", *rest]
    return "\n".join(lines)


class CommonItems(Extension):
    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = one_each(obj.docstring.value)
