"""A task: prompts and targets for training, validation and testing, the same at every run and on every machine.

Rows are drawn in the order of `permutation`, which depends on the seed and the number of rows alone.
"""

import functools
import hashlib
import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from lensjax.core.errors import InputError, listing, meant, shorten
from lensjax.tasks.conversations import Turns, conversation_text, plain_prompt_and_target, read_turns
from lensjax.tasks.paths import value_at
from lensjax.tasks.rows import Rows
from lensjax.tasks.source import SplitName
from lensjax.tasks.spec import TaskSpec, list_of_choices, template_pieces

_HELD_OUT = 0  # stream of the permutations that choose validation and test
_TRAIN = 1  # stream of those that order the pool
_COUNTED = 100_000  # rows that are read to count examples, at most
_TOGETHER = 1000  # rows that are encoded at once, while they have no more
_CHARACTERS = 1 << 20  # than so many: places of tokens take a hundred times as many bytes
Text = tuple[str, str]


class TooFewExamples(InputError):
    """A task has fewer examples than are to be held out."""


@dataclass(frozen=True)
class Example:
    """A row as a model sees it.

    Attributes:
      prompt: The text that the model reads.
      target: The text that it should answer.
      where: The row's place in messages, as in "train.jsonl line 12".
      turns: Of a conversation, all its turns, the last one learned. `target` is then that turn, and `prompt` those
        before it in a plain template, as an encoder reads them. Every learned turn of an assistant counts; see `rows`.
      choices: Of an example of `Task.test`, the targets to choose from, of which `target` is one; empty without any.
    """

    prompt: str
    target: str
    where: str
    turns: Turns = ()
    choices: tuple[str, ...] = ()

    @property
    def text(self) -> Text:
        """Prompt and target by which twins are known: in Unicode's NFC, with one space for any white space.

        Examples of equal texts are twins, of which no two are in different sets. White space around a text is dropped.
        """
        return _plain(self.prompt), _plain(self.target)

    @property
    def learned(self) -> tuple[str, ...]:
        """The texts that a model learns: the target, or of a conversation every assistant's turn."""
        return tuple(turn.content for turn in self.turns if turn.learned) if self.turns else (self.target,)

    def rows(self, *, encoder_decoder: bool) -> "tuple[Example, ...]":
        """What a model is shown of it at a time: all, but for a conversation an encoder–decoder, each turn to learn.

        A causal model reads and writes a whole conversation; a decoder writes one answer to what its encoder has read.
        """
        if not (encoder_decoder and self.turns):
            return (self,)
        ends = [number for number, turn in enumerate(self.turns, start=1) if turn.learned]
        pairs = (plain_prompt_and_target(self.turns[:end]) for end in ends)
        return tuple(replace(self, prompt=prompt, target=target, turns=()) for prompt, target in pairs)


@dataclass(frozen=True)
class Task:
    """A task whose validation and test sets are fixed, and whose training sets are drawn by a seed.

    Attributes:
      spec: The spec that it was made from.
      rows: Rows of the train split.
      pool: Numbers of those rows that are left to train on.
      validation: Examples that decide when training stops; none is a twin of one of `test`.
      test: Examples that the reported loss is measured on.
    """

    spec: TaskSpec
    rows: Rows
    pool: Int[np.ndarray, " P"]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]

    def available(self, most: int | None = None) -> int:
        """Number of examples to train on.

        If more than a hundred thousand rows would have to be read, twins of held-out examples count too.

        Args:
          most: Counting stops here, if given.

        Raises:
          InputError: a template cannot be filled with a row.
        """
        if min(len(self.pool), most or len(self.pool)) > _COUNTED:
            return len(self.pool) if most is None else min(len(self.pool), most)
        return sum(1 for _ in itertools.islice(self.shuffled(0), most))

    def shuffled(self, seed: int) -> Iterator[Example]:
        """Every example to train on, in the order of a seed; each row is read when its turn comes.

        No example is a twin of one of validation or test; see `Example.text`.

        Raises:
          InputError: a template cannot be filled with a row.
        """
        held_out = {example.text for example in self.validation + self.test}
        order = self.pool[permutation(len(self.pool), seed, _TRAIN)]
        return (example for example in _rendered(self.spec, self.rows, order) if example.text not in held_out)

    def train(self, seed: int, examples: int) -> list[Example]:
        """A training set: the first examples in the order of a seed, so smaller sets are nested in larger ones.

        Args:
          seed: Of the order.
          examples: Number of examples.

        Raises:
          InputError: there are fewer examples, or a template cannot be filled with a row.
        """
        there = f"at most {len(self.pool):,}"
        if examples <= len(self.pool):
            first = list(itertools.islice(self.shuffled(seed), examples))
            if len(first) == examples:
                return first
            there = f"{len(first):,}"
        raise InputError(
            f"The task {shorten(self.spec.name)} has {there} examples to train on beside those of validation and test, "
            f"and {examples:,} are asked for; ask for fewer, or add rows to its train split."
        )


def load_task(spec: TaskSpec) -> Task:
    """Open a task's source and draw its validation and test sets.

    Each is the beginning of a fixed permutation of its split. Where the source has no such split, it is the beginning
    of what is left of the train split: test first, then validation.

    Args:
      spec: See `lensjax.tasks.spec.read_spec`.

    Raises:
      TooFewExamples: a split has fewer examples than are to be held out.
      InputError: the source cannot be read, or a template cannot be filled with a row.
    """
    train = spec.source.open("train", spec.fields)
    if train is None:
        raise InputError(f"The task {shorten(spec.name)} has no train split; name it in source.")
    order = permutation(len(train), 0, _HELD_OUT)
    used = 0

    def draw(split: SplitName, wanted: int, not_these: frozenset[Text]) -> tuple[Example, ...]:
        nonlocal used
        own = spec.source.open(split, spec.fields)
        drawn: list[Example] = []
        if own is None:
            candidates = _rendered(spec, train, order[used:], choices=split == "test")
        else:
            candidates = _rendered(spec, own, permutation(len(own), 0, _HELD_OUT), choices=split == "test")
        prompts: set[str] = set()
        texts: set[Text] = set()
        for example in candidates:
            used += own is None
            if len(prompts) < 2:
                prompts.add(example.prompt)
                texts.add(example.text)
            if example.text not in not_these:
                drawn.append(example)
            if len(drawn) == wanted:
                return tuple(drawn)
        if len(prompts) == 1 < len(texts) and not spec.is_chat:
            raise InputError(
                f"All prompts of the task {shorten(spec.name)} are the same ({shorten(repr(prompts.pop()))}), and too "
                "few examples differ; put a field that is not the same in all rows into prompt, in braces."
            )
        raise TooFewExamples(_too_few(spec, split, len(drawn), own is not None))

    test = draw("test", spec.test, frozenset())
    validation = draw("validation", spec.validation, frozenset(example.text for example in test))
    pool = np.sort(order[used:])
    return Task(spec, train, pool, validation, test)


def permutation(size: int, seed: int, stream: int = 0) -> Int[np.ndarray, " size"]:
    """The numbers below `size` in an order that depends on seed and stream alone, on every machine and version.

    They are sorted by 64 random bits each, of PCG64. NumPy guarantees the bits of a seeded generator for good, but not
    its `permutation`; a stable sort is the same everywhere.
    """
    keys = np.random.PCG64([stream, seed]).random_raw(size)
    return np.argsort(keys, kind="stable")


def fingerprint(examples: Sequence[Example]) -> str:
    """SHA-256, in hexadecimal, of prompts, targets and choices, or of conversations, in their order."""
    return fingerprints(examples, [len(examples)])[len(examples)]


def fingerprints(examples: Iterable[Example], sizes: Iterable[int]) -> dict[int, str]:
    """The `fingerprint`s of the first n examples, by n, for each n of `sizes` for which there are enough."""
    digest, wanted = hashlib.sha256(), set(sizes)
    prints = {0: digest.hexdigest()} if 0 in wanted else {}
    for size, example in enumerate(examples, start=1):
        rendered = (conversation_text(example.turns),) if example.turns else (example.prompt, example.target)
        for text in (*rendered, *example.choices):
            content = text.encode("utf-8")
            digest.update(len(content).to_bytes(8, "big") + content)
        if size in wanted:
            prints[size] = digest.hexdigest()
    return prints


def together(rows: Iterable[tuple[Example, bool]]) -> Iterator[list[tuple[Example, bool]]]:
    """Rows, each with a mark, that are encoded at once: a thousand, or few where they are long."""
    batch: list[tuple[Example, bool]] = []
    characters = 0
    for row, mark in rows:
        batch.append((row, mark))
        characters += len(row.prompt) + len(row.target)
        if len(batch) == _TOGETHER or characters >= _CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _too_few(spec: TaskSpec, split: SplitName, there: int, own: bool) -> str:
    wanted = getattr(spec, split)
    unlike = " that are not in test" if split == "validation" else ""
    if own:
        return (
            f"{split} of the task {shorten(spec.name)} is {wanted:,}, but its {split} split has {there:,} examples"
            f"{unlike}; ask for no more."
        )
    return (
        f"{split} of the task {shorten(spec.name)} is {wanted:,}, but there are {there:,} examples{unlike} to hold out "
        f"of its train split; ask for fewer, or name a {split} split in source."
    )


def _rendered(
    spec: TaskSpec, rows: Rows, numbers: Int[np.ndarray, " N"], *, choices: bool = False
) -> Iterator[Example]:
    """The examples of some rows, one by one; all must have their target among their choices, which some keep."""
    prompt_pieces, target_pieces = template_pieces(spec.prompt), template_pieces(spec.target)
    offered = _targets(target_pieces, spec.choices) if isinstance(spec.choices, tuple) else ()
    # Numbers of millions of rows are made into Python's as they are needed.
    for i, row in zip(map(int, numbers), rows.read(map(int, numbers)), strict=True):
        where = rows.where(i)
        if spec.is_chat:
            turns = read_turns(row, spec.messages, where, functools.partial(_as_text, where=where))
            yield Example(*plain_prompt_and_target(turns), where, turns)
            continue
        prompt, target = _fill(prompt_pieces, row, where), _fill(target_pieces, row, where)
        if not target.strip():
            raise InputError(f"{where} has a blank target; fill it in or remove the row.")
        if isinstance(spec.choices, str):
            offered = _targets(target_pieces, _listed(spec.choices, row, where))
        if offered and target not in offered:
            raise InputError(
                f"{where} has the target {shorten(repr(target))}, which is none of its choices "
                f"({shorten(', '.join(map(repr, offered)), 200)}); mend the row or choices."
            )
        yield Example(prompt, target, where, choices=offered if choices else ())


def _targets(pieces: Sequence[tuple[str, str | None]], choices: Iterable[str]) -> tuple[str, ...]:
    """The targets that choices make when they stand in their field."""
    return tuple("".join(text + ("" if name is None else one) for text, name in pieces) for one in choices)


def _listed(name: str, row: Mapping[str, object], where: str) -> tuple[str, ...]:
    """The choices in a field of a row."""
    field = f"field '{shorten(name)}'"
    there, value = value_at(row, name)
    if not there:
        raise InputError(f"{where} has no {field}, only {listing(list(row))}; mend choices or the row.")
    if not isinstance(value, (list, tuple, np.ndarray)):
        raise InputError(
            f"{where} holds no list in the {field}, which choices names; name another, or list the choices in the spec."
        )
    try:
        return list_of_choices([one.item() if isinstance(one, np.generic) else one for one in value])
    except ValueError as error:
        raise InputError(f"{where} holds choices in the {field} that are of no use: {error}.") from error


def _fill(pieces: Sequence[tuple[str, str | None]], row: Mapping[str, object], where: str) -> str:
    return "".join(text + ("" if name is None else _text(name, row, where)) for text, name in pieces)


def _text(name: str, row: Mapping[str, object], where: str) -> str:
    """A field of a row as text."""
    there, value = value_at(row, name)
    if type(value) is str and value.isascii():
        return value
    if value is None:
        field = f"field '{shorten(name)}'"
        if there:
            raise InputError(f"{where} has an empty {field}; fill it in or remove the row.")
        near = meant(name, row)
        mend = f"did you mean {{{near}}}?" if near else "mend the template or the row."
        raise InputError(f"{where} has no {field}, only {listing(list(row))}; {mend}")
    return _as_text(value, f"field '{shorten(name)}'", where=where)


def _as_text(value: object, field: str, *, where: str) -> str:
    """The value of a field as text."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{where} holds bytes that are not UTF-8 text in the {field}; mend or remove it."
            ) from error
    if isinstance(value, (float, np.inexact, np.datetime64, np.timedelta64)) and not np.isfinite(value):
        raise InputError(f"{where} has an empty {field} ({value} is a missing value); fill it in or remove the row.")
    if not isinstance(value, (str, int, float, np.generic)):
        kind = type(value).__name__
        raise InputError(f"{where} holds a {kind} in the {field}; templates take texts and numbers, so choose another.")
    text = str(value)
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"{where} holds half a character in the {field} (a lone surrogate); mend it.") from error
    return text
