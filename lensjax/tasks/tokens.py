"""Token ids of examples, as flat arrays that are mapped from disk.

A causal model reads prompt and target as one text, which is encoded as one, so that no token of it depends on where it
is divided. An encoder–decoder reads the prompt and writes the target: two texts, which are encoded apart. Either way
the loss is on the tokens of the target, of which the last is the end-of-text token unless it was cut.
"""

import copy
import itertools
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int

from lensjax.core.errors import InputError, shorten
from lensjax.core.files import new_folder
from lensjax.tasks.spec import TaskSpec
from lensjax.tasks.task import Example

if TYPE_CHECKING:
    from transformers import BatchEncoding
    from transformers import PreTrainedTokenizerBase as Tokenizer

# Of the ids that a tokenizer, a text and a spec give. What was made of other ids is not used again: raise it with any
# change of them, or of the text of a field.
TOKENS_VERSION = 2
_BATCH = 1000
_DTYPES = {"ids": "int32", "starts": "int64", "prompts": "int32", "prompt_cut": "bool", "target_cut": "bool"}


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids of N examples, one after the other, the prompt of each before its target.

    Attributes:
      ids: Token ids, int32.
      starts: The place in `ids` where each example begins, and where the last one ends, int64.
      prompts: Number of tokens of each prompt, int32.
      prompt_cut, target_cut: Whether each prompt and each target was cut.
    """

    ids: Int[np.ndarray, " T"]
    starts: Int[np.ndarray, " N+1"]
    prompts: Int[np.ndarray, " N"]
    prompt_cut: Bool[np.ndarray, " N"]
    target_cut: Bool[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.prompts)

    def prompt(self, i: int) -> Int[np.ndarray, " P"]:
        """Token ids of the prompt of an example, counted from 0."""
        start = self.starts[i]
        return self.ids[start : start + self.prompts[i]]

    def target(self, i: int) -> Int[np.ndarray, " L"]:
        """Token ids of the target of an example, counted from 0."""
        return self.ids[self.starts[i] + self.prompts[i] : self.starts[i + 1]]

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
        n = min(n, len(self))
        return Tokens(
            self.ids[: self.starts[n]], self.starts[: n + 1], self.prompts[:n], self.prompt_cut[:n], self.target_cut[:n]
        )

    def save(self, folder: Path) -> None:
        """Write a new folder with a .npy file for each array, whole or not at all.

        Raises:
          InputError: the folder is there already and not empty, or cannot be written.
        """
        with new_folder(folder) as staging:
            for field in fields(self):
                np.save(staging / f"{field.name}.npy", getattr(self, field.name), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> "Tokens":
        """Map the arrays that `save` wrote from disk.

        Raises:
          InputError: a file is missing or damaged.
        """
        try:
            arrays = {
                field.name: np.load(folder / f"{field.name}.npy", mmap_mode="r", allow_pickle=False)
                for field in fields(cls)
            }
        except (OSError, ValueError) as error:
            why = shorten(getattr(error, "strerror", None) or error)
            raise InputError(f"{folder} does not hold whole token files ({why}); remove it to make it anew.") from error
        tokens = cls(**arrays)
        if not tokens._fits():
            raise InputError(f"{folder} holds token files that do not fit together; remove it to make it anew.")
        return tokens

    def _fits(self) -> bool:
        """Whether the arrays have the right types, and agree in their shapes."""
        one = all(getattr(self, name).dtype == kind and getattr(self, name).ndim == 1 for name, kind in _DTYPES.items())
        each = len(self.prompts) == len(self.prompt_cut) == len(self.target_cut) == len(self.starts) - 1
        return one and each and bool(self.starts[-1] == len(self.ids))


def tokenise(examples: Iterable[Example], tokenizer: "Tokenizer", spec: TaskSpec, *, encoder_decoder: bool) -> Tokens:
    """The token ids of examples, cut to the lengths that a spec allows.

    For a causal model, prompt and target are encoded as one text. A token that holds any of the target's text belongs
    to the target, with what it holds of the prompt, such as the space of "▁hola" where the prompt ends in one; only a
    special token that takes in the white space around it stays with the prompt that it is written in. Prompts have the
    special tokens that open a text; if there are none, and no other token, the beginning-of-text token, or else the
    end-of-text token. For an encoder–decoder, both have the special tokens that its tokenizer adds.

    No special token is added where the text has it already, and every target ends with one end-of-text token. Prompts
    lose tokens of their text before special ones, and targets are cut after the end-of-text token was added.

    Args:
      examples: The examples, which are tokenised a thousand at a time.
      tokenizer: Tokenizer of `transformers`. Those in Python alone do not say where in a text their tokens are: of
        theirs, the prompt has those with which both the prompt alone and the whole text begin.
      spec: Its `max_prompt_tokens`, `max_target_tokens` and `cut_prompt`.
      encoder_decoder: Whether the model reads prompts with an encoder.

    Raises:
      InputError: the tokenizer has no end-of-text token, or a target has no tokens.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"The tokenizer in {shorten(tokenizer.name_or_path, 400)} has no end-of-text token, which targets end "
            "with; name its eos_token in tokenizer_config.json."
        )
    encode = _apart(tokenizer) if encoder_decoder else _together(tokenizer)
    pieces: list[Int[np.ndarray, " _"]] = []
    lengths: list[int] = []
    prompts: list[int] = []
    cut: list[tuple[bool, bool]] = []
    iterator = iter(examples)
    while batch := list(itertools.islice(iterator, _BATCH)):
        ids: list[int] = []
        encoded = encode([example.prompt for example in batch], [example.target for example in batch])
        for example, (prompt, target) in zip(batch, encoded, strict=True):
            if not target.text:
                raise InputError(f"{example.where} has a target without tokens; fill it in or remove the row.")
            if len(target.before) >= spec.max_target_tokens:
                raise InputError(
                    f"max_target_tokens is {spec.max_target_tokens}, which leaves nothing of the target of "
                    f"{example.where}; allow more."
                )
            kept = prompt.cut(spec.max_prompt_tokens, spec.cut_prompt)
            answer = target.ids
            ids += kept
            ids += answer[: spec.max_target_tokens]
            prompts.append(len(kept))
            lengths.append(len(kept) + min(len(answer), spec.max_target_tokens))
            cut.append((len(prompt.ids) > spec.max_prompt_tokens, len(answer) > spec.max_target_tokens))
        pieces.append(np.array(ids, np.int32))
    flags = np.array(cut, bool).reshape(-1, 2)
    return Tokens(
        ids=np.concatenate(pieces) if pieces else np.zeros(0, np.int32),
        starts=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        prompts=np.array(prompts, np.int32),
        prompt_cut=flags[:, 0].copy(),
        target_cut=flags[:, 1].copy(),
    )


def padding_token(tokenizer: "Tokenizer") -> int:
    """The token that fills rows up; no loss and no attention sees it."""
    return next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)


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


_Encode = Callable[[list[str], list[str]], Iterator[tuple[_Encoded, _Encoded]]]


def _together(tokenizer: "Tokenizer") -> _Encode:
    """Encodes prompts and targets for causal models, each pair as one text."""
    before, _ = _added(tokenizer, "text")
    end, start = _end(tokenizer), tokenizer.bos_token_id
    split = _split_by_offsets(tokenizer) if tokenizer.is_fast else _split_by_prefix(tokenizer)

    def encode(prompts: list[str], targets: list[str]) -> Iterator[tuple[_Encoded, _Encoded]]:
        for ids, place in split(prompts, targets):
            opening = before or ([] if place else [end if start is None else start])
            text = _without_start(ids, opening)
            place = max(place - len(ids) + len(text), 0)
            yield _Encoded(opening, text[:place], []), _Encoded([], _without_end(text[place:], end), [end])

    return encode


def _apart(tokenizer: "Tokenizer") -> _Encode:
    """Encodes prompts and targets for encoder–decoders."""
    end = _end(tokenizer)
    before, after = _added(tokenizer, "text")
    target_before, target_after = _added(tokenizer, "text_target")
    target_after = target_after if end in target_after else [*target_after, end]

    def encode(prompts: list[str], targets: list[str]) -> Iterator[tuple[_Encoded, _Encoded]]:
        read = _encode(tokenizer, text=prompts)["input_ids"]
        written = _encode(tokenizer, text_target=targets)["input_ids"]
        for ids, target in zip(read, written, strict=True):
            if after and ids[-len(after) :] == after:
                ids = ids[: -len(after)]
            prompt = _Encoded(before, _without_start(ids, before), after if before or ids or after else [end])
            text = _without_start(_without_end(target, end), target_before)
            yield prompt, _Encoded(target_before, text, target_after)

    return encode


_Split = Callable[[list[str], list[str]], Iterator[tuple[list[int], int]]]


def _split_by_offsets(tokenizer: "Tokenizer") -> _Split:
    """Token ids of prompts with their targets, and how many of them are of the prompt alone."""
    twin, processor = tokenizer, tokenizer.backend_tokenizer.post_processor
    if processor is not None and b'"trim_offsets":true' in processor.__getstate__():
        from tokenizers.processors import TemplateProcessing

        # Offsets without the white space at the ends of a token do not tell a token "a " from "a".
        twin = copy.deepcopy(tokenizer)
        twin.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}

    def split(prompts: list[str], targets: list[str]) -> Iterator[tuple[list[int], int]]:
        texts = list(map("".join, zip(prompts, targets, strict=True)))
        encoded = _encode(twin, text=texts, offsets=True)
        columns = encoded["input_ids"], encoded["offset_mapping"]
        for prompt, text, ids, offsets in zip(prompts, texts, *columns, strict=True):
            place = _boundary(text, len(prompt), offsets)
            if place < len(ids) and prompt[offsets[place][0] :].strip() == added.get(ids[place]):
                place += 1  # it only takes in white space of the target
            yield ids, place

    return split


def _boundary(text: str, size: int, offsets: list[tuple[int, int]]) -> int:
    """Number of tokens that hold nothing but the first `size` characters of a text."""
    while 0 < size < len(text) and unicodedata.combining(text[size]):
        size -= 1  # a normaliser may join an accent with the letter before it, and give the place of the letter alone
    reaching = (place for place, (first, last) in enumerate(offsets) if first >= size or last > size)
    place = next(reaching, len(offsets))
    if place < len(offsets) and offsets[place][0] < size:
        first, last = offsets[place]
        # Bytes of unknown characters that follow one another all have the place of the whole.
        if offsets[place:].count((first, last)) == len(text[first:last].encode()):
            place += len(text[first:size].encode())
    return place


def _split_by_prefix(tokenizer: "Tokenizer") -> _Split:
    """The same for tokenizers without offsets."""

    def split(prompts: list[str], targets: list[str]) -> Iterator[tuple[list[int], int]]:
        texts = list(map("".join, zip(prompts, targets, strict=True)))
        whole = _encode(tokenizer, text=texts)["input_ids"]
        for ids, alone in zip(whole, _encode(tokenizer, text=prompts)["input_ids"], strict=True):
            pairs = zip(ids, alone, strict=False)
            yield ids, sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    return split


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


def _encode(tokenizer: "Tokenizer", *, offsets: bool = False, **texts: list[str]) -> "BatchEncoding":
    # verbose=False silences warnings of lengths, which the tokenizer cannot know will be cut.
    return tokenizer(
        **texts,
        add_special_tokens=False,
        return_attention_mask=False,
        verbose=False,
        **({"return_offsets_mapping": True} if offsets else {}),
    )


def _without_start(ids: list[int], start: list[int]) -> list[int]:
    return ids[len(start) :] if start and ids[: len(start)] == start else ids


def _without_end(ids: list[int], end: int) -> list[int]:
    kept = len(ids)
    while kept and ids[kept - 1] == end:
        kept -= 1
    return ids[:kept]
