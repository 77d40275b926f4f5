"""The spec of a task, as its user writes it in YAML: its rows, templates, held-out sets and limits."""

import string
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BeforeValidator, SerializeAsAny, field_validator, model_validator

from lensjax.core.errors import shorten
from lensjax.core.specs import Count, Share, Strict, read_fields, validated, with_settings
from lensjax.tasks.paths import field_path
from lensjax.tasks.source import Source, as_source


class TaskSpec(Strict):
    """A task.

    Attributes:
      name: The task's name; by default the stem of the spec's file.
      source: Where the rows are: the fields of one of the sources in `lensjax.tasks.sources`.
      prompt: Template of the prompt, with fields of a row in braces, as in "English: {en}\\nSpanish:"; fields within
        others are `{meta.lang}` and `{messages[0][content]}`.
      target: Template of the answer, as in " {es}"; the loss is on its tokens and on the end-of-text token.
      choices: The answers to choose from, each of which can stand in the target's field: a list for all rows, or the
        name of a field that holds the list of its row.
      messages: Field of a row that holds a conversation. Rows have conversations where neither `prompt` nor `target` is
        given: in "messages" or "conversations", unless this names another field.
      validation: Number of examples that decide when training stops.
      test: Number of examples that the reported loss is measured on.
      max_prompt_tokens: Longer prompts are cut. The prompt of a conversation is all before its first learned turn; it
        is cut within the text of turns, not within the template.
      max_target_tokens: Longer targets are cut, after the end-of-text token was added. The target of a conversation is
        all from its first learned turn on, with the turns of others; by default 1024 tokens.
      cut_prompt: The end at which long prompts are cut.
      max_unwritable: Largest share of targets that a candidate's tokenizer may be unable to write. A candidate beyond
        it is measured, but never chosen; see `lensjax.tasks.writing`.
    """

    name: str = ""
    source: Annotated[SerializeAsAny[Source], BeforeValidator(as_source)]
    prompt: str = ""
    target: str = ""
    choices: tuple[str, ...] | str | None = None
    messages: str | None = None
    validation: Count = 1000
    test: Count = 1000
    max_prompt_tokens: Count = 512
    max_target_tokens: Count = 128
    cut_prompt: Literal["start", "end"] = "end"
    max_unwritable: Share = 0.001

    @field_validator("prompt", "target")
    @classmethod
    def _template(cls, value: str) -> str:
        template_fields(value)
        return value

    @field_validator("target")
    @classmethod
    def _says_something(cls, value: str) -> str:
        if value and not template_fields(value):
            raise ValueError("it names no field of a row; write it as in ' {answer}'")
        return value

    @field_validator("choices", mode="before")
    @classmethod
    def _texts(cls, value: object) -> object:
        return list_of_choices(value) if isinstance(value, (list, tuple)) else value

    @model_validator(mode="before")
    @classmethod
    def _room_for_turns(cls, value: Any) -> Any:
        chat = isinstance(value, Mapping) and not value.get("target")
        return {"max_target_tokens": _CHAT_TOKENS, **value} if chat else value

    @model_validator(mode="after")
    def _templates_or_conversations(self) -> Self:
        if self.messages and (self.prompt or self.target):
            raise ValueError(
                "messages is given and prompt or target too; conversations have no templates, so remove one"
            )
        if self.prompt and not self.target:
            raise ValueError("target is missing; write it as in ' {answer}', or remove prompt where rows hold messages")
        return self

    @model_validator(mode="after")
    def _choices_have_a_place(self) -> Self:
        if self.choices is not None and len(set(template_fields(self.target))) != 1:
            raise ValueError("choices stand in the target's field, so target names one field, as in ' {answer}'")
        return self

    @property
    def is_chat(self) -> bool:
        """Whether rows hold conversations."""
        return not self.target

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields of a row that are used, each once; () for conversations, which need all."""
        own = (self.choices,) if isinstance(self.choices, str) else ()
        return tuple(dict.fromkeys(template_fields(self.prompt) + template_fields(self.target) + own))


Spec = TypeVar("Spec", bound=TaskSpec)
_CHAT_TOKENS = 1024
_MOST_FIELDS = 1000  # of a template, each of which is looked up in every row


def list_of_choices(value: Sequence[object]) -> tuple[str, ...]:
    """A list of choices as texts.

    Raises:
      ValueError: one is neither a text nor a number, is blank, or is there twice, or there is only one.
    """
    for one in value:
        if isinstance(one, bool):
            raise ValueError(f"choices are texts, and {one} is none: YAML takes yes, no, on and off for it; quote it")
        if not isinstance(one, (str, int, float)) or one != one:
            raise ValueError(f"choices are texts, and one of them is {_kind_of(one)}; write each as a text")
    texts = tuple(str(one) for one in value)
    if any(not text.strip() for text in texts):
        raise ValueError("one of the choices is blank; fill it in or remove it")
    known = [" ".join(unicodedata.normalize("NFC", text).split()) for text in texts]
    twice = next((text for i, text in enumerate(known) if text in known[:i]), None)
    if twice is not None:
        raise ValueError(f"'{shorten(twice)}' is among the choices twice; keep one")
    if len(texts) < 2:
        raise ValueError(f"there is nothing to choose from with {len(texts) or 'no'} choices; give two or more")
    return texts


def _kind_of(value: object) -> str:
    return "empty" if value is None or value != value else f"a {type(value).__name__}"


def template_pieces(template: str) -> tuple[tuple[str, str | None], ...]:
    """A template as pairs of a text and the name of the field after it, or None at the end.

    Raises:
      ValueError: braces do not match, or hold something other than a name, or there are more than a thousand.
    """
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{error}; write a brace that is meant as such twice") from error
    for _, name, form, conversion in pieces:
        if name is not None and (not name or form or conversion or "{" in name):
            raise ValueError("braces hold the name of a field and nothing else; write a brace that is meant twice")
        if name is not None:
            field_path(name)
    fields = sum(name is not None for _, name, _, _ in pieces)
    if fields > _MOST_FIELDS:
        raise ValueError(f"it names {fields:,} fields, and a template has {_MOST_FIELDS:,} at most; write fewer")
    return tuple((text, name) for text, name, _, _ in pieces)


def template_fields(template: str) -> tuple[str, ...]:
    """Names of the fields in a template, in order.

    Raises:
      ValueError: braces do not match, or hold something other than a name.
    """
    return tuple(name for _, name in template_pieces(template) if name is not None)


def read_spec(path: str | Path, kind: type[Spec], settings: Sequence[str] = ()) -> Spec:
    """Read the spec of a task from a YAML file.

    Args:
      path: The file; relative paths in it are taken from its folder.
      kind: `TaskSpec`, or `lensjax.train.spec.FinetuneSpec`, which has `training` too.
      settings: Fields that are not as in the file; see `lensjax.core.specs.with_settings`.

    Returns:
      The spec, whose name is that of the file unless it has one.

    Raises:
      InputError: the file cannot be read or is not YAML, or a field is missing, unknown or wrong; it names the field.
    """
    path = Path(path)
    content = with_settings(read_fields(path, "a task", "source and target"), settings)
    content.setdefault("name", path.stem)
    spec = validated(kind, content, path)
    return spec.model_copy(update={"source": spec.source.relative_to(path.parent)})
