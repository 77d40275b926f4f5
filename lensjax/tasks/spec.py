"""What a task is, as its user writes it: where its rows are, what becomes of them, and how many are held out."""

import string
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, SerializeAsAny, field_validator

from lensjax.core.specs import Count, Strict, read_fields, validated
from lensjax.tasks.source import Source, as_source


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
    source: Annotated[SerializeAsAny[Source], BeforeValidator(as_source)]
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


Spec = TypeVar("Spec", bound=TaskSpec)


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
    return spec.model_copy(update={"source": spec.source.relative_to(path.parent)})
