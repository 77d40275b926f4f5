"""The help of commands, without what tyro says of Python in it: None, and the line breaks of docstrings."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import reduce, wraps
from inspect import Parameter, cleandoc, signature
from operator import or_
from types import NoneType
from typing import Annotated, Any, get_args, get_type_hints

from tyro.conf import UseAppendAction, arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

_UNTOLD = arg(help_behavior_hint="")


def readers_of_options() -> ConstructorRegistry:
    """How options are read that may be None in Python: as what else they may be. On the command line none is None."""
    readers = ConstructorRegistry()

    @readers.primitive_rule
    def optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        members = get_args(info.type)
        given = tuple(member for member in members if member is not NoneType)
        if len(given) in (0, len(members)):
            return None
        reader = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(reduce(or_, given), info.markers))
        if not isinstance(reader, PrimitiveConstructorSpec):
            return None
        return replace(
            reader,
            is_instance=lambda value: value is None or reader.is_instance(value),
            str_from_instance=lambda value: [] if value is None else reader.str_from_instance(value),
        )

    return readers


def told_well(command: Callable[..., None]) -> Callable[..., None]:
    """The command, whose help does not tell of defaults that are nothing, and has each option's in one paragraph."""

    @wraps(command)
    def same(*arguments: Any, **options: Any) -> None:
        command(*arguments, **options)

    parameters = signature(command).parameters
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in parameters.items():
        repeated = UseAppendAction in getattr(hints[name], "__metadata__", ())  # of which tyro says so
        if parameter.default in (None, "", (), Parameter.empty) and not repeated:
            hints[name] = Annotated[hints[name], _UNTOLD]
    same.__annotations__, same.__signature__ = hints, signature(command)  # type: ignore[attr-defined]
    del same.__wrapped__  # which tyro would look at in its place
    same.__doc__ = in_paragraphs(command.__doc__ or "")
    return same


def in_paragraphs(docstring: str) -> str:
    """A docstring in which what each argument is stands in one line."""
    text, heading, arguments = cleandoc(docstring).partition("\nArgs:\n")
    return text + heading + re.sub(r"\n {8,}", " ", arguments)
