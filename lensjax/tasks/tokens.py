"""Token ids of examples, as flat arrays that are mapped from disk.

A causal model reads prompt and target as one text, which is encoded as one, so that no token of it depends on where it
is divided. An encoder–decoder reads the prompt and writes the target: two texts, which are encoded apart. Either way
the loss is on the tokens of the target, of which the last is the end-of-text token unless it was cut.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int, Shaped
from pydantic import RootModel

from lensjax.core.artefacts import Damaged, read_sealed, sealed
from lensjax.core.errors import InputError, listing, shorten
from lensjax.core.files import new_folder, write_files
from lensjax.core.hashes import file_hashes
from lensjax.tasks.boundary import encode, make_split
from lensjax.tasks.chat import ChatFormat
from lensjax.tasks.spec import TaskSpec
from lensjax.tasks.task import Example, together

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

# Of the ids that a tokenizer, a text and a spec give. What was made of other ids is not used again: raise it with any
# change of them, or of the text of a field.
TOKENS_VERSION = 4
HASHES = "hashes.json"  # of the files beside it
_DTYPES = {"ids": "int32", "starts": "int64", "prompts": "int32"} | dict.fromkeys(
    ("prompt_cut", "target_cut", "learned", "firsts"), "bool"
)


class _Hashes(RootModel[dict[str, str]]):
    """SHA-256 of token files, by name."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids of N rows, one after the other, the prompt of each before its target.

    A row is an example, or of a conversation that an encoder–decoder learns, one of its turns.

    Attributes:
      ids: Token ids, int32.
      starts: The place in `ids` where each row begins, and where the last one ends, int64.
      prompts: Number of tokens of each prompt, int32.
      prompt_cut, target_cut: Whether each prompt and each target was cut.
      learned: Whether the loss is on each token: of targets, all, but for the turns of others in a conversation.
      firsts: Whether each row is the first of its example.
    """

    ids: Int[np.ndarray, " T"]
    starts: Int[np.ndarray, " N+1"]
    prompts: Int[np.ndarray, " N"]
    prompt_cut: Bool[np.ndarray, " N"]
    target_cut: Bool[np.ndarray, " N"]
    learned: Bool[np.ndarray, " T"]
    firsts: Bool[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def examples(self) -> int:
        """Number of examples."""
        return int(self.firsts.sum())

    def by_example(self, values: Shaped[np.ndarray, "*n N"]) -> Shaped[np.ndarray, "*n examples"]:
        """Sums over the rows of each example; of booleans, whether any is true."""
        if len(self) == self.examples:
            return values
        add = np.logical_or if values.dtype == bool else np.add
        summed: Shaped[np.ndarray, "*n examples"] = add.reduceat(values, np.flatnonzero(self.firsts), axis=-1)
        return summed

    def prompt(self, i: int) -> Int[np.ndarray, " P"]:
        """Token ids of the prompt of a row, counted from 0."""
        start = self.starts[i]
        return self.ids[start : start + self.prompts[i]]

    def target(self, i: int) -> Int[np.ndarray, " L"]:
        """Token ids of the target of a row, counted from 0."""
        return self.ids[self.starts[i] + self.prompts[i] : self.starts[i + 1]]

    def learned_of(self, i: int) -> Bool[np.ndarray, " L"]:
        """Whether the loss is on each token of the target of a row."""
        return self.learned[self.starts[i] + self.prompts[i] : self.starts[i + 1]]

    @property
    def prompt_lengths(self) -> Int[np.ndarray, " N"]:
        """Number of tokens of each prompt."""
        return self.prompts

    @property
    def target_lengths(self) -> Int[np.ndarray, " N"]:
        """Number of tokens of each target."""
        return np.diff(self.starts) - self.prompts

    def take(self, n: int) -> "Tokens":
        """The first `n` examples, as views of these arrays."""
        n = int(np.flatnonzero(self.firsts)[n]) if n < self.examples else len(self)
        last, end = self.starts[n], n + 1
        each = self.prompts[:n], self.prompt_cut[:n], self.target_cut[:n]
        return Tokens(self.ids[:last], self.starts[:end], *each, self.learned[:last], self.firsts[:n])

    def save(self, folder: Path) -> None:
        """Write a new folder with a .npy file for each array, whole or not at all.

        Raises:
          InputError: the folder is there already and not empty, or cannot be written.
        """
        with new_folder(folder) as staging:
            paths = [staging / f"{field.name}.npy" for field in fields(self)]
            for path in paths:
                np.save(path, getattr(self, path.stem), allow_pickle=False)
            hashes = {path.name: found for path, found in zip(paths, file_hashes(paths), strict=True)}
            write_files({staging / HASHES: sealed(hashes)})

    @classmethod
    def load(cls, folder: Path) -> "Tokens":
        """Map the arrays that `save` wrote from disk.

        Raises:
          Damaged: a file is missing or not what was written.
        """
        known = read_sealed(folder / HASHES, _Hashes)
        names = [f"{field.name}.npy" for field in fields(cls)]
        try:
            hashes = dict(zip(names, file_hashes([folder / name for name in names]), strict=True))
            if known is None or hashes != known.root:
                differing = [name for name in names if known is None or hashes[name] != known.root.get(name)]
                raise Damaged(folder, f"the content of {listing(differing)} is not what was written")
            arrays = {Path(name).stem: np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in names}
        except (OSError, ValueError) as error:
            if isinstance(error, Damaged):
                raise
            raise Damaged(folder, "it does not hold whole token files") from error
        tokens = cls(**arrays)
        if not tokens._fits():
            raise Damaged(folder, "its token files do not fit together")
        return tokens

    def _fits(self) -> bool:
        """Whether the arrays have the right types, and agree in their shapes."""
        one = all(getattr(self, name).dtype == kind and getattr(self, name).ndim == 1 for name, kind in _DTYPES.items())
        parts = (self.prompts, self.prompt_cut, self.target_cut, self.firsts)
        each = {len(part) for part in parts} == {len(self.starts) - 1}
        return one and each and bool(self.starts[-1] == len(self.ids) == len(self.learned))


def tokenise(
    examples: Iterable[Example],
    tokenizer: "Tokenizer",
    spec: TaskSpec,
    *,
    encoder_decoder: bool,
    embeddings: int | None = None,
) -> Tokens:
    """The token ids of examples, cut to the lengths that a spec allows.

    For a causal model, prompt and target are encoded as one text. A token that holds any of the target's text belongs
    to the target, with what it holds of the prompt, such as the space of "▁hola" where the prompt ends in one; only a
    special token that takes in the white space around it stays with the prompt that it is written in. Prompts have the
    special tokens that open a text; if there are none, and no other token, the beginning-of-text token, or else the
    end-of-text token. For an encoder–decoder, both have the special tokens that its tokenizer adds, and conversations
    have a row for each turn that is learned, so that the same turns are as for causal models.

    No special token is added where the text has it already, and every target ends with one end-of-text token. Prompts
    lose tokens of their text before special ones, and targets are cut after the end-of-text token was added.

    Args:
      examples: The examples, which are tokenised a thousand, or a million characters, at a time.
      tokenizer: Tokenizer of `transformers`. Those in Python alone do not say where in a text their tokens are: of
        theirs, the prompt has those with which both the prompt alone and the whole text begin.
      spec: Its `max_prompt_tokens`, `max_target_tokens` and `cut_prompt`.
      encoder_decoder: Whether the model reads prompts with an encoder.
      embeddings: Number of tokens that the model has an embedding for. Some tokenizers have more, as for images.

    Raises:
      InputError: the tokenizer has no end-of-text token, a target has no tokens, or a row has one without an embedding.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"The tokenizer in {shorten(tokenizer.name_or_path, 400)} has no end-of-text token, which targets end "
            "with; name its eos_token in tokenizer_config.json."
        )
    if encoder_decoder:
        encode_all = _apart(tokenizer)
    else:
        encode_all = _conversations(tokenizer) if spec.is_chat else _together(tokenizer)
    flags: list[Bool[np.ndarray, " _"]] = []
    pieces: list[Int[np.ndarray, " _"]] = []
    lengths: list[int] = []
    prompts: list[int] = []
    cut: list[tuple[bool, bool]] = []
    firsts: list[bool] = []
    rows = (one.rows(encoder_decoder=encoder_decoder) for one in examples)
    for numbered in together((row, not place) for several in rows for place, row in enumerate(several)):
        batch = [row for row, _ in numbered]
        firsts += [is_first for _, is_first in numbered]
        ids: list[int] = []
        learned: list[bool] = []
        for example, pair in zip(batch, encode_all(batch), strict=True):
            prompt, target = pair.prompt, pair.target
            if not target.text and _is_blank(example.target, tokenizer):
                raise InputError(f"{example.where} has a target without tokens; fill it in or remove the row.")
            if len(target.before) >= spec.max_target_tokens:
                raise InputError(
                    f"max_target_tokens is {spec.max_target_tokens}, which leaves nothing of the target of "
                    f"{example.where}; allow more."
                )
            kept = prompt.cut(spec.max_prompt_tokens, spec.cut_prompt)
            answer = target.ids
            if embeddings is not None and (last := max(*kept, *answer, -1)) >= embeddings:
                token = shorten(repr(tokenizer.convert_ids_to_tokens(last)))
                raise InputError(
                    f"{example.where} has the token {token} (number {last:,}), and the model has {embeddings:,} "
                    "embeddings, from 0 on; remove it from the row."
                )
            ids += kept
            ids += answer[: spec.max_target_tokens]
            learned += [False] * len(kept) + (pair.learned or [True] * len(answer))[: spec.max_target_tokens]
            prompts.append(len(kept))
            lengths.append(len(kept) + min(len(answer), spec.max_target_tokens))
            cut.append((len(prompt.ids) > spec.max_prompt_tokens, len(answer) > spec.max_target_tokens))
        pieces.append(np.array(ids, np.int32))
        flags.append(np.array(learned, bool))
    were_cut = np.array(cut, bool).reshape(-1, 2)
    return Tokens(
        ids=np.concatenate(pieces) if pieces else np.zeros(0, np.int32),
        starts=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        prompts=np.array(prompts, np.int32),
        prompt_cut=were_cut[:, 0].copy(),
        target_cut=were_cut[:, 1].copy(),
        learned=np.concatenate(flags) if flags else np.zeros(0, bool),
        firsts=np.array(firsts, bool),
    )


def padding_token(tokenizer: "Tokenizer", embeddings: int) -> int:
    """The token that fills rows up; no loss and no attention sees it.

    Args:
      tokenizer: Whose token for padding it is, or else that for the end of a text.
      embeddings: Number of tokens that the model has an embedding for, of which it is one.
    """
    named = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((token for token in named if token is not None and token < embeddings), 0)


@dataclass(frozen=True)
class _Encoded:
    """Token ids of a text, and the special tokens before and after it."""

    before: list[int]
    text: list[int]
    after: list[int]

    @property
    def ids(self) -> list[int]:
        return self.before + self.text + self.after

    def cut(self, limit: int, end: str) -> list[int]:
        """At most `limit` ids; those of the text are dropped first, from the given end, and those before it last."""
        room = limit - len(self.before) - len(self.after)
        if room >= len(self.text):
            return self.ids
        room = max(room, 0)
        text = self.text[:room] if end == "end" else self.text[len(self.text) - room :]
        after = self.after[-limit:]
        return (self.before + text)[: limit - len(after)] + after


@dataclass(frozen=True)
class _Pair:
    """An example's prompt and target, and which of the target's tokens are learned; by default all."""

    prompt: _Encoded
    target: _Encoded
    learned: list[bool] | None = None


_Encode = Callable[[list[Example]], Iterator[_Pair]]


def _together(tokenizer: "Tokenizer") -> _Encode:
    """Encodes prompts and targets for causal models, each pair as one text."""
    before, _ = _added(tokenizer, "text")
    end, start = _end(tokenizer), tokenizer.bos_token_id
    split = make_split(tokenizer)

    def encode_pairs(batch: list[Example]) -> Iterator[_Pair]:
        texts = [example.prompt + example.target for example in batch]
        for ids, (place,) in split(texts, [[len(example.prompt)] for example in batch]):
            opening = before or ([] if place.before else [end if start is None else start])
            text = _without_start(ids, opening)
            at = max(place.before - len(ids) + len(text), 0)
            yield _Pair(_Encoded(opening, text[:at], []), _Encoded([], _without_end(text[at:], end), [end]))

    return encode_pairs


def _conversations(tokenizer: "Tokenizer") -> _Encode:
    """Encodes conversations for causal models, each as one text."""
    before, _ = _added(tokenizer, "text")
    end, start = _end(tokenizer), tokenizer.bos_token_id
    split, chat = make_split(tokenizer), ChatFormat(tokenizer)

    def encode_turns(batch: list[Example]) -> Iterator[_Pair]:
        rendered = [chat.render(example.turns, example.where) for example in batch]
        cuts = []
        for one in rendered:
            first = one.learned[0][0]
            read = [span for span in one.contents if span[1] <= first] or [(first, first)]
            cuts.append([read[0][0], read[-1][1], *itertools.chain(*one.learned)])
        for one, (ids, places) in zip(rendered, split([one.text for one in rendered], cuts), strict=True):
            head, tail, *spans = places
            place = spans[0].before
            opening = before if chat.is_plain else []  # a template writes those that it wants
            if not (place or opening):
                opening = [end if start is None else start]
            if opening and ids[: len(opening)] == opening:
                opening = []
            head_at, tail_at = min(head.before, place), min(tail.reached, place)
            learned = [False] * (len(ids) - place)
            for begin, stop in zip(spans[::2], spans[1::2], strict=True):
                learned[begin.before - place : stop.reached - place] = [True] * (stop.reached - begin.before)
            closing = [] if one.ended else [end]
            yield _Pair(
                _Encoded(opening + ids[:head_at], ids[head_at:tail_at], ids[tail_at:place]),
                _Encoded([], ids[place:] if any(learned) else [], closing),
                learned + [True] * len(closing),
            )

    return encode_turns


def _apart(tokenizer: "Tokenizer") -> _Encode:
    """Encodes prompts and targets for encoder–decoders."""
    end = _end(tokenizer)
    before, after = _added(tokenizer, "text")
    target_before, target_after = _added(tokenizer, "text_target")
    target_after = target_after if end in target_after else [*target_after, end]

    def encode_apart(batch: list[Example]) -> Iterator[_Pair]:
        read = encode(tokenizer, text=[example.prompt for example in batch])["input_ids"]
        written = encode(tokenizer, text_target=[example.target for example in batch])["input_ids"]
        for ids, target in zip(read, written, strict=True):
            if after and ids[-len(after) :] == after:
                ids = ids[: -len(after)]
            prompt = _Encoded(before, _without_start(ids, before), after if before or ids or after else [end])
            text = _without_start(_without_end(target, end), target_before)
            yield _Pair(prompt, _Encoded(target_before, text, target_after))

    return encode_apart


def _is_blank(target: str, tokenizer: "Tokenizer") -> bool:
    """Whether a target holds nothing but special tokens; one that a tokenizer has no token for is not blank."""
    for token in tokenizer.all_special_tokens:
        target = target.replace(token, "")
    return not target.strip()


def _end(tokenizer: "Tokenizer") -> int:
    end: int = tokenizer.eos_token_id
    return end


def _added(tokenizer: "Tokenizer", kind: str) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and after a text."""
    encoded = tokenizer(**{kind: "a"}, return_special_tokens_mask=True, return_attention_mask=False)
    ids, marks = encoded["input_ids"], encoded["special_tokens_mask"]
    if all(marks):
        return ids, []
    return ids[: marks.index(0)], ids[len(marks) - marks[::-1].index(0) :]


def _without_start(ids: list[int], start: list[int]) -> list[int]:
    return ids[len(start) :] if start and ids[: len(start)] == start else ids


def _without_end(ids: list[int], end: int) -> list[int]:
    kept = len(ids)
    while kept and ids[kept - 1] == end:
        kept -= 1
    return ids[:kept]
