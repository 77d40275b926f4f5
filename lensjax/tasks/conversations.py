"""Conversations: rows that hold turns, as the files of fine-tuning services do.

{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from lensjax.core.errors import InputError, listing, shorten

Role = Literal["system", "user", "assistant"]

FIELDS = ("messages", "conversations")  # of a row, the first that it has
_ROLES: Mapping[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "chatgpt", "bot"), "assistant"),
}
_TOOLS = ("tool", "function", "function_call", "function_response", "observation", "ipython", "tool_call")
_NOT_TEXT = (  # fields of rows and of turns that hold more than text, and what they hold
    (("tools", "functions", "tool_calls", "tool_call_id", "function_call", "function_calls"), "tool calls"),
    (("image", "images", "image_url", "video", "videos"), "images"),
    (("audio", "audios", "input_audio"), "audio"),
    (("reasoning_content", "reasoning", "thinking"), "hidden reasoning"),
)
_LABELS: Mapping[Role, str] = {"system": "", "user": "User: ", "assistant": "Assistant: "}


@dataclass(frozen=True)
class Turn:
    """A turn of a conversation.

    Attributes:
      role: Who speaks.
      content: What is said; that of an assistant is without white space at its ends, which many templates drop.
      learned: Whether the loss is on it; of assistants alone, and not with `"weight": 0`.
    """

    role: Role
    content: str
    learned: bool = False


Turns = tuple[Turn, ...]


def read_turns(row: Mapping[str, object], name: str | None, where: str, as_text: Callable[[object, str], str]) -> Turns:
    """The turns of a row, up to the last one that the loss is on.

    Args:
      row: The row.
      name: Field that holds the turns; by default the first of `FIELDS` that the row has.
      where: The row's place in messages.
      as_text: Makes a text of the value of a field, given the field as messages call it.

    Raises:
      InputError: the row holds no conversation, one without an assistant's turn, or more than text.
    """
    named = name or next((field for field in FIELDS if row.get(field) is not None), None)
    if named is None or row.get(named) is None:
        wanted = " or ".join(f"'{field}'" for field in ((name,) if name else FIELDS))
        raise InputError(
            f"{where} has no {wanted}, only {listing([shorten(field) for field in row])}; name the field with the "
            "conversations (messages: …), or write templates (prompt: …, target: …)."
        )
    _only_text(row, where, "")
    turns = [
        _turn(message, where, f"{named}[{number}]", as_text)
        for number, message in enumerate(_messages(row[named], where, named))
    ]
    while turns and not turns[-1].learned:
        turns.pop()
    if not turns:
        raise InputError(f"{where} has no assistant's turn to learn in '{shorten(named)}'; add one or remove the row.")
    return tuple(turns)


def fold_system(turns: Turns) -> Turns:
    """The conversation with its system turns at the beginning put in front of the first user turn, as one with it."""
    first = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
    system, rest = turns[:first], turns[first:]
    if not system:
        return turns
    if rest and rest[0].role == "user":
        texts = [turn.content for turn in (*system, rest[0])]
        return (replace(rest[0], content="\n\n".join(texts)), *rest[1:])
    return (Turn("user", "\n\n".join(turn.content for turn in system)), *rest)


def plain_pieces(roles: Sequence[Role], end: str) -> list[str]:
    """A plain template, for tokenizers without one: the texts before, between and after the contents of turns.

    It is "User: …", an empty line, "Assistant: …", and so on; every assistant's turn is followed by `end`.
    """
    pieces = [_LABELS[roles[0]]]
    for role, following in itertools.pairwise(roles):
        pieces.append((end if role == "assistant" else "") + "\n\n" + _LABELS[following])
    return [*pieces, end if roles[-1] == "assistant" else ""]


def plain_prompt_and_target(turns: Turns) -> tuple[str, str]:
    """A conversation as a prompt and its last turn as the target, in a plain template."""
    pieces = plain_pieces([turn.role for turn in turns], "")
    *before, last = turns
    prompt = "".join(piece + turn.content for piece, turn in zip(pieces, before, strict=False))
    return (prompt + pieces[len(before)]).rstrip(" "), last.content


def conversation_text(turns: Turns) -> str:
    """A conversation as a text that no other one has."""
    return json.dumps([[turn.role, turn.content, turn.learned] for turn in turns], ensure_ascii=False)


def _messages(value: object, where: str, name: str) -> Iterator[Mapping[str, object]]:
    """The messages of a conversation: a list of mappings, a mapping of lists, or JSON text of either."""
    field = f"field '{shorten(name)}'"
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{where} holds a text in the {field} that is not JSON ({shorten(error)}); write it as in "
                '[{"role": "user", "content": …}, …].'
            ) from error
    if isinstance(value, Mapping):
        columns = {key: list(cells) for key, cells in value.items() if isinstance(cells, (list, tuple, np.ndarray))}
        if len({len(cells) for cells in columns.values()}) == 1:
            value = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    if not isinstance(value, (list, tuple, np.ndarray)):
        raise InputError(
            f"{where} holds a {type(value).__name__} in the {field}; conversations are lists of turns, as in "
            '[{"role": "user", "content": …}, …].'
        )
    for number, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise InputError(
                f"{where} holds a {type(message).__name__} in {shorten(name)}[{number}]; write each turn as in "
                '{"role": "user", "content": …}.'
            )
        yield message


def _turn(message: Mapping[str, object], where: str, place: str, as_text: Callable[[object, str], str]) -> Turn:
    place = shorten(place)
    key = next((key for key in ("role", "from") if message.get(key) is not None), None)
    if key is None:
        raise InputError(f"{where} has no role in {place}, only {listing([*map(str, message)])}; fill it in.")
    says = as_text(message[key], f"{place}.{key}")
    if says.lower() in _TOOLS:
        raise InputError(
            f"{where} holds tool calls ({place}.{key} is '{shorten(says)}'), which LensJAX cannot use; remove the row."
        )
    role = _ROLES.get(says.lower())
    if role is None:
        raise InputError(
            f"{where} has the role '{shorten(says)}' in {place}; the roles are system, user and assistant, or system, "
            "human and gpt."
        )
    _only_text(message, where, f"{place}.")
    key = next((key for key in ("content", "value") if message.get(key) is not None), "content")
    content = _content(message.get(key), where, f"{place}.{key}", as_text)
    if role != "assistant":
        return Turn(role, content)
    content = content.strip()
    if not content:
        raise InputError(f"{where} has a blank turn of an assistant in {place}; fill it in or remove the row.")
    weight = message.get("weight")
    if weight not in (None, 0, 1):
        raise InputError(f"{where} has the weight {shorten(weight)} in {place}; a turn's weight is 0 or 1.")
    return Turn(role, content, learned=weight != 0)


def _content(value: object, where: str, place: str, as_text: Callable[[object, str], str]) -> str:
    """The text of a turn: a text, or a list of parts that are texts."""
    if value is None:
        raise InputError(f"{where} has an empty {place}; fill it in or remove the row.")
    if not isinstance(value, (list, tuple)):
        return as_text(value, place)
    parts = []
    for number, part in enumerate(value):
        here = f"{place}[{number}]"
        if isinstance(part, Mapping):
            kind = part.get("type")
            if kind not in ("text", "input_text", "output_text", None):
                raise InputError(
                    f"{where} holds more than text ({here}.type is '{shorten(kind)}'), and LensJAX fine-tunes on text "
                    "alone; remove the row."
                )
            part = part.get("text")
        if part is None:
            raise InputError(f"{where} has an empty {here}.text; fill it in or remove the row.")
        parts.append(as_text(part, here))
    return "".join(parts)


def _only_text(fields: Mapping[str, object], where: str, place: str) -> None:
    for names, what in _NOT_TEXT:
        for name in names:
            if name in fields and not _is_empty(fields[name]):
                raise InputError(
                    f"{where} holds {what} ({place}{name}), and LensJAX fine-tunes on the text of system, user and "
                    "assistant alone; remove the field or the row."
                )


def _is_empty(value: object) -> bool:
    if isinstance(value, float) and value != value:
        return True
    if isinstance(value, str):
        return value.strip() in ("", "[]", "null")
    return value is None or (isinstance(value, (bytes, list, tuple, Mapping, np.ndarray)) and len(value) == 0)
