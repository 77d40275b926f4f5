"""Token ids of examples, as flat arrays that are mapped from disk.

A causal model reads prompt and target as one sequence; an encoder–decoder reads the prompt and writes the target.
Either way the loss is on the tokens of the target, of which the last is the end-of-text token unless it was cut.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
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
    from transformers import PreTrainedTokenizerBase as Tokenizer

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

    A prompt has the special tokens that its tokenizer adds; for a causal model, none closes it. An empty prompt becomes
    the beginning-of-text token, or else the end-of-text token. Prompts lose tokens of their text before special ones. A
    target ends with the end-of-text token, and is cut after that was added.

    Args:
      examples: The examples, which are tokenised a thousand at a time.
      tokenizer: Tokenizer of `transformers`.
      spec: Its `max_prompt_tokens`, `max_target_tokens` and `cut_prompt`.
      encoder_decoder: Whether the model reads prompts with an encoder.

    Raises:
      InputError: the tokenizer has no end-of-text token, or a target has no tokens.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise InputError(
            f"The tokenizer in {shorten(tokenizer.name_or_path, 400)} has no end-of-text token, which targets end "
            "with; name its eos_token in tokenizer_config.json."
        )
    start = end if encoder_decoder or tokenizer.bos_token_id is None else tokenizer.bos_token_id
    pieces: list[Int[np.ndarray, " _"]] = []
    lengths: list[int] = []
    prompts: list[int] = []
    cut: list[tuple[bool, bool]] = []
    iterator = iter(examples)
    while batch := list(itertools.islice(iterator, _BATCH)):
        ids: list[int] = []
        prompt_texts, target_texts = zip(*((example.prompt, example.target) for example in batch), strict=True)
        encoded_prompts = _encode(tokenizer, prompt_texts)
        encoded_targets = _encode(tokenizer, target_texts, target=encoder_decoder, special=encoder_decoder)
        for example, prompt, target in zip(batch, encoded_prompts, encoded_targets, strict=True):
            prompt = prompt if encoder_decoder else _Encoded(prompt.before, prompt.text, [])
            kept = prompt.cut(spec.max_prompt_tokens, spec.cut_prompt) or [start]
            wanted = target.ids if target.after[-1:] == [end] else [*target.ids, end]
            if all(token == end for token in target.text):
                raise InputError(f"{example.where} has a target without tokens; fill it in or remove the row.")
            if len(target.before) >= spec.max_target_tokens:
                raise InputError(
                    f"max_target_tokens is {spec.max_target_tokens}, which leaves nothing of the target of "
                    f"{example.where}; allow more."
                )
            ids += kept
            ids += wanted[: spec.max_target_tokens]
            prompts.append(len(kept))
            lengths.append(len(kept) + min(len(wanted), spec.max_target_tokens))
            cut.append((len(prompt.ids) > spec.max_prompt_tokens, len(wanted) > spec.max_target_tokens))
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


def _encode(
    tokenizer: "Tokenizer", texts: Sequence[str], *, target: bool = False, special: bool = True
) -> Iterator[_Encoded]:
    # The text added last shows how many special tokens open a text, which a text without other tokens does not.
    options = {"text_target" if target else "text": [*texts, "a"], "add_special_tokens": special}
    # verbose=False silences warnings of lengths, which the tokenizer cannot know will be cut.
    encoded = tokenizer(**options, return_special_tokens_mask=True, return_attention_mask=False, verbose=False)
    opening = list(itertools.takewhile(bool, encoded["special_tokens_mask"][-1]))
    for ids, marks in zip(encoded["input_ids"][:-1], encoded["special_tokens_mask"][:-1], strict=True):
        if all(marks):
            yield _Encoded(ids[: len(opening)], [], ids[len(opening) :])
            continue
        first, last = marks.index(0), len(marks) - marks[::-1].index(0)
        yield _Encoded(ids[:first], ids[first:last], ids[last:])
