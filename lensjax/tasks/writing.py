"""Whether a tokenizer reads the prompts and writes the targets of a task: its tokens of a text, decoded, give the text.

What a tokenizer cannot write, its model never answers, however low the loss on the tokens that stand in its place.
"""

import itertools
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lensjax.core import text
from lensjax.core.errors import InputError, shorten
from lensjax.core.specs import Strict
from lensjax.tasks.boundary import encode
from lensjax.tasks.task import Example, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

MOST_ROWS = 5000
MOST_CHARACTERS = 2_000_000
SHARES = ("prompts unknown", "prompts changed", "targets unknown", "targets changed")  # headings of `Writing.shares`
_SHOWN = 3
_WIDTH = 30  # characters of a text in a sentence
_BEFORE = 12  # of those, before the first one that changes
_TOGETHER = 500  # texts that are decoded at once


class Writing(Strict):
    """How many prompts and targets a tokenizer cannot represent.

    Attributes:
      rows: Number of examples that were looked at; see `sample`.
      unknown_prompts, unknown_targets: Number of texts with unknown tokens in the place of some of their characters.
      changed_prompts, changed_targets: Number of texts that are read back from their tokens as other texts, those with
        unknown tokens included. White space around a text does not count, nor does another Unicode form of it (NFC).
      examples: Pairs of a target and what it is read back as, for the first few that change, cut around the first
        character that does.
    """

    rows: int
    unknown_prompts: int = 0
    unknown_targets: int = 0
    changed_prompts: int = 0
    changed_targets: int = 0
    examples: tuple[tuple[str, str], ...] = ()

    @property
    def unwritable(self) -> float:
        """Share of the targets that cannot be written."""
        return self.changed_targets / self.rows

    def why_not(self, allowed: float) -> str:
        """Why a model with this tokenizer may not be chosen, without a full stop; "" where it may.

        Args:
          allowed: Largest share of targets that it may be unable to write.
        """
        if self.unwritable <= allowed:
            return ""
        share = text.share(self.unwritable)
        limit = f"more than {text.share(allowed)}" if allowed else "and must write all"
        return f"it cannot write {share} of the {self.rows:,} targets looked at, {limit}: {self.shown}"

    @property
    def shares(self) -> list[str]:
        """Shares in percent under `SHARES`."""
        counts = (self.unknown_prompts, self.changed_prompts, self.unknown_targets, self.changed_targets)
        return [text.share(count / self.rows) if count else "0" for count in counts]

    @property
    def is_whole(self) -> bool:
        """Whether every prompt and target is read back as it was written."""
        return not (self.changed_prompts or self.changed_targets)

    @property
    def shown(self) -> str:
        """The examples in words."""
        return ", ".join(f"{_quoted(written)} is read back as {_quoted(back)}" for written, back in self.examples)


def in_words(found: Sequence[Writing]) -> str:
    """What the shares of some models mean, in a sentence or two."""
    rows = max(one.rows for one in found)
    looked_at = f"{rows:,} example{'s' * (rows != 1)} looked at"
    if all(one.is_whole for one in found):
        every = "Every model's tokenizer" if len(found) > 1 else "The tokenizer"
        return f"{every} gives back the prompts and targets of all {looked_at} as they were written."
    return (
        f"Of {looked_at}: texts with unknown tokens, and texts that decoding gives back otherwise than they were "
        "written, these included."
    )


def sample(task: Task) -> list[Example]:
    """The examples by which tokenizers are judged: test, validation, then training examples in the order of seed 0.

    They are all that the task has, or the first 5,000 or 2 million characters of them.

    Raises:
      InputError: a template cannot be filled with a row.
    """
    taken: list[Example] = []
    characters = 0
    for example in _all(task):
        taken.append(example)
        characters += len(example.prompt) + len(example.target)
        if len(taken) == MOST_ROWS or characters >= MOST_CHARACTERS:
            break
    return taken


def _all(task: Task) -> Iterator[Example]:
    yield from task.test
    yield from task.validation
    yield from task.shuffled(0)


def examine(examples: Sequence[Example], tokenizer: "Tokenizer", *, encoder_decoder: bool, model: str) -> Writing:
    """Encode prompts and targets, and compare what decoding gives back.

    A conversation is written where every turn that is learned is.

    Args:
      examples: See `sample`; one at least.
      tokenizer: Tokenizer of `transformers`.
      encoder_decoder: Whether the model reads prompts with an encoder.
      model: Its name in messages.

    Raises:
      InputError: every target has unknown tokens.
    """
    counts = Counter(unknown_prompts=0, unknown_targets=0, changed_prompts=0, changed_targets=0)
    shown: list[tuple[str, str]] = []
    reader = _Reader(tokenizer)
    for at in range(0, len(examples), _TOGETHER):
        some = examples[at : at + _TOGETHER]
        learned = [example.learned for example in some]
        prompts = reader.read([example.prompt for example in some], "text")
        targets = reader.read([*itertools.chain(*learned)], "text_target" if encoder_decoder else "text")
        for example, texts in zip(some, learned, strict=True):
            for part, looked_at in (
                ("prompts", [prompts[example.prompt]]),
                ("targets", [targets[one] for one in texts]),
            ):
                changed = [one for one in looked_at if one.is_changed]
                counts[f"changed_{part}"] += bool(changed)
                counts[f"unknown_{part}"] += any(one.is_unknown for one in changed)
                if part == "targets" and len(shown) < _SHOWN:
                    shown += [_around(one.written, one.back) for one in changed[:1]]
    found = Writing(rows=len(examples), **counts, examples=tuple(shown))
    if found.unknown_targets == found.rows:
        raise InputError(
            f"The tokenizer of {shorten(model, 200)} can write none of the {found.rows:,} targets looked at "
            f"({found.shown}); choose another model."
        )
    return found


class _Text(NamedTuple):
    """A text, what it is read back as, and whether that is another text, and due to unknown tokens."""

    written: str
    back: str
    is_changed: bool
    is_unknown: bool


class _Reader:
    """Encodes and decodes texts."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer, self._unknown = tokenizer, _unknown(tokenizer)
        self._ends = tuple(filter(None, (tokenizer.bos_token, tokenizer.eos_token)))

    def read(self, texts: Sequence[str], kind: str) -> dict[str, _Text]:
        """Every different text, as an input of the tokenizer of that name."""
        different = list(dict.fromkeys(texts))
        inputs: dict[str, Any] = {kind: different}
        encoded = encode(self._tokenizer, **inputs)["input_ids"]
        backs = self._tokenizer.batch_decode(encoded, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        found = {}
        for one, ids, back in zip(different, encoded, backs, strict=True):
            written, read = self._plain(one), self._plain(back)
            found[one] = _Text(written, read, written != read, not self._unknown.isdisjoint(ids))
        return found

    def _plain(self, written: str) -> str:
        """A text without white space and special tokens around it, which encoding adds and drops, in NFC."""
        plain = unicodedata.normalize("NFC", written).strip()
        for token in self._ends:
            plain = plain.removeprefix(token).removesuffix(token).strip()
        return plain


def _unknown(tokenizer: "Tokenizer") -> set[int]:
    """Ids that stand for what is not in the vocabulary: as `transformers` calls it, and as the model itself does."""
    ids = {tokenizer.unk_token_id}
    if tokenizer.is_fast:
        model = tokenizer.backend_tokenizer.model
        if type(model).__name__ != "Unigram":
            ids.add(tokenizer.convert_tokens_to_ids(getattr(model, "unk_token", None) or ""))
        elif tokenizer.unk_token_id is None:
            ids.add(json.loads(tokenizer.backend_tokenizer.to_str())["model"].get("unk_id"))
    return {number for number in ids if number is not None}


def _around(written: str, back: str) -> tuple[str, str]:
    """Two texts, cut around the first character in which they differ."""
    pairs = zip(written, back, strict=False)
    first = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(written), len(back)))
    start = max(0, first - _BEFORE) if first > _WIDTH - _BEFORE else 0
    return _part(written, start), _part(back, start)


def _part(whole: str, start: int) -> str:
    return f"{'…' * (start > 0)}{whole[start : start + _WIDTH]}{'…' * (start + _WIDTH < len(whole))}"


def _quoted(part: str) -> str:
    """A text on one line, in quotes."""
    return "'" + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in part) + "'"
