"""Conversations as texts: rendered by the chat template of a tokenizer, or by a plain one where it has none.

Templates are Jinja programs that come with tokenizers; transformers runs them in a sandbox. Where the contents of turns
lie in a rendered text is found by rendering marks in their place, so templates need no `{% generation %}`.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING

from lensjax.core.errors import InputError, one_line, shorten
from lensjax.tasks.conversations import Role, Turn, Turns, fold_system, plain_pieces
from lensjax.tasks.task import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

Span = tuple[int, int]

_MARK = "\ue000{}\ue001"  # of Unicode's private use, in which nobody writes template text
_TODAY = date(2024, 7, 26)  # in templates that write the date, so that texts are the same on every day
_DATE = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")


class TemplateRefuses(InputError):
    """A tokenizer's chat template does not render a conversation as it was written."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as a text.

    Attributes:
      text: The text, up to the end of the last learned turn.
      contents: The characters of every turn's content, from and to, in the order of turns.
      answers: Those of the learned turns.
      learned: The characters that the loss is on: the answers, each with the token that ends a turn where the template
        writes one.
      ended: Whether the last learned turn has such a token.
    """

    text: str
    contents: tuple[Span, ...]
    answers: tuple[Span, ...]
    learned: tuple[Span, ...]
    ended: bool


def chat_remark(tokenizer: "Tokenizer", examples: Iterable[Example], *, encoder_decoder: bool) -> str:
    """What users should know of how a model reads conversations.

    Args:
      tokenizer: The model's.
      examples: Some of the task.
      encoder_decoder: Whether the model reads prompts with an encoder.

    Returns:
      A clause such as "the tokenizer has no chat template, so …"; "" if the tokenizer's own template does all, or there
      are no conversations.
    """
    roles = {turn.role for example in examples for turn in example.turns}
    if not roles:
        return ""
    if encoder_decoder:
        return "the encoder reads the turns before each answer in a plain template, and the decoder learns the answer"
    chat = ChatFormat(tokenizer)
    if chat.is_plain:
        return "the tokenizer has no chat template, so conversations are in a plain one (User: … Assistant: …)"
    if "system" in roles and chat.folds_system:
        return "the chat template takes no system turn, so it is put in front of the first user turn"
    return ""


class ChatFormat:
    """How a tokenizer's model writes conversations.

    Args:
      tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._pieces: dict[tuple[Role, ...], list[str] | None] = {}

    @property
    def is_plain(self) -> bool:
        """Whether the tokenizer has no chat template."""
        return self._tokenizer.chat_template is None

    @cached_property
    def folds_system(self) -> bool:
        """Whether system turns are put in front of the first user turn, as the template takes none."""
        return not self.is_plain and self._found(("system", "user", "assistant")) is None

    def render(self, turns: Turns, where: str) -> Rendered:
        """A conversation as the model reads and writes it.

        Args:
          turns: See `lensjax.tasks.conversations.read_turns`.
          where: The row's place in messages.

        Raises:
          TemplateRefuses: the template refuses the conversation, or changes what is said in it.
        """
        pieces = self._found(tuple(turn.role for turn in turns))
        if pieces is None and any(turn.role == "system" for turn in turns):
            turns = fold_system(turns)
            pieces = self._found(tuple(turn.role for turn in turns))
        if pieces is None:
            raise self._refused(turns, where)
        contents = self._as_rendered(turns, pieces, where)
        return _put_together(turns, pieces, contents, self._closing(pieces[-1]))

    @property
    def _name(self) -> str:
        return shorten(self._tokenizer.name_or_path or "the tokenizer", 200)

    @cached_property
    def _template(self) -> str:
        try:
            template: str = self._tokenizer.get_chat_template()
        except ValueError as error:
            raise InputError(
                f"The tokenizer of {self._name} has several chat templates and none named default; name one so in its "
                "tokenizer_config.json."
            ) from error
        formats = sorted({found for _, found in _DATE.findall(template)})
        if "strftime_now" not in template:
            return template
        dates = {form: _TODAY.strftime(form) for form in formats}
        pinned = f"{{{{ {dates!r}.get(form, {str(_TODAY)!r}) }}}}"
        return f"{{%- macro strftime_now(form) -%}}{pinned}{{%- endmacro %}}{{{{ '' }}}}{template}"

    def _apply(self, turns: Sequence[Turn]) -> str:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        return str(self._tokenizer.apply_chat_template(messages, chat_template=self._template, tokenize=False))

    def _found(self, roles: tuple[Role, ...]) -> list[str] | None:
        """The texts before, between and after the contents of turns; None if the template refuses or drops turns."""
        if roles not in self._pieces:
            self._pieces[roles] = self._find(roles)
        return self._pieces[roles]

    def _find(self, roles: tuple[Role, ...]) -> list[str] | None:
        if self.is_plain:
            return plain_pieces(roles, self._tokenizer.eos_token or "")
        marks = [_MARK.format(number) for number in range(len(roles))]
        try:
            text = self._apply([Turn(role, mark) for role, mark in zip(roles, marks, strict=True)])
        except Exception:  # of Jinja, or of Python in what a template computes
            return None
        pieces = re.split("|".join(map(re.escape, marks)), text)
        return pieces if re.findall(_MARK.format(r"\d+"), text) == marks else None

    def _refused(self, turns: Turns, where: str) -> TemplateRefuses:
        why = "it drops or repeats turns"
        try:
            self._apply(turns)
        except Exception as error:
            why = f"it says '{one_line(error, 200)}'"
        return TemplateRefuses(
            f"{where} cannot be rendered by the chat template of {self._name}: {why}; mend the row, or choose another "
            "model."
        )

    def _as_rendered(self, turns: Turns, pieces: Sequence[str], where: str) -> list[str]:
        """The contents of turns as the template writes them, which may be without white space at their ends."""
        written = [turn.content for turn in turns]
        if self.is_plain:
            return written
        try:
            text = self._apply(turns)
        except Exception as error:
            raise self._refused(turns, where) from error
        others = {turn.role for turn in turns} - {"assistant"}
        for trimmed in itertools.chain.from_iterable(itertools.combinations(sorted(others), n) for n in range(3)):
            contents = [turn.content.strip() if turn.role in trimmed else turn.content for turn in turns]
            if text == "".join(itertools.chain(*zip(pieces, contents, strict=False))) + pieces[-1]:
                return contents
        raise TemplateRefuses(
            f"The chat template of {self._name} leaves out or changes a part of what is said in {where}, such as "
            "<think>…</think> in a turn of an assistant; remove it there, or choose another model."
        )

    def _closing(self, after: str) -> str:
        """The token that ends a turn, with white space before it, at the start of the text after the last turn."""
        added = {token.content for token in self._tokenizer.added_tokens_decoder.values()}
        names = sorted({*added, *self._tokenizer.all_special_tokens} - {""}, key=len, reverse=True)
        found = re.match(rf"\s*(?:{'|'.join(map(re.escape, names))})", after) if names else None
        return "" if found is None else found[0]


def _put_together(turns: Turns, pieces: Sequence[str], contents: Sequence[str], closing: str) -> Rendered:
    text = ""
    spans: list[Span] = []
    answers: list[Span] = []
    learned: list[Span] = []
    for turn, piece, content, following in zip(turns, pieces, contents, pieces[1:], strict=False):
        text += piece
        spans.append((len(text), len(text) + len(content)))
        text += content
        if turn.learned:
            end = len(text) + (len(closing) if following.startswith(closing) else 0)
            answers.append(spans[-1])
            learned.append((spans[-1][0], end))
    text += pieces[-1]
    return Rendered(text[: learned[-1][1]], tuple(spans), tuple(answers), tuple(learned), bool(closing))
