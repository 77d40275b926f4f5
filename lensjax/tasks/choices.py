"""The answers that a model chooses from, as tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int

from lensjax.tasks.batches import Lengths
from lensjax.tasks.target_bytes import target_bytes
from lensjax.tasks.task import Example
from lensjax.tasks.tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


@dataclass(frozen=True, eq=False)
class Choices:
    """The choices of examples that are not their targets, whose losses are known already.

    Attributes:
      tokens: Each with the prompt of its example.
      lengths: The shape of batches that hold them.
      examples: Number of the example that each belongs to, from 0, in ascending order.
      bytes: UTF-8 bytes of each choice's text.
      same: Whether a tokenizer makes the same of a choice and of the target.
    """

    tokens: Tokens
    lengths: Lengths
    examples: Int[np.ndarray, " C"]
    bytes: Int[np.ndarray, " C"]
    same: Bool[np.ndarray, " C"]

    @property
    def cut(self) -> int:
        """Number of choices that were cut, which cannot be compared with others."""
        return int(self.tokens.target_cut.sum())


def wrong_choices(examples: Sequence[Example]) -> list[Example]:
    """The choices that are not targets, as examples of their own, in the order of the examples."""
    return [
        replace(example, target=choice, choices=())
        for example in examples
        for choice in example.choices
        if choice != example.target
    ]


def choice_facts(
    examples: Sequence[Example], tokens: Tokens, wrong: Tokens, tokenizer: "Tokenizer", *, encoder_decoder: bool
) -> dict[str, list[int]]:
    """The fields `examples`, `bytes` and `same` of `Choices`, as lists for JSON.

    Args:
      examples: Examples with choices.
      tokens: Their tokens.
      wrong: Tokens of their `wrong_choices`.
      tokenizer: The one that made them.
      encoder_decoder: Whether the model reads prompts with an encoder.
    """
    of = [i for i, example in enumerate(examples) for _ in example.choices[1:]]
    sizes = target_bytes(wrong_choices(examples), wrong, tokenizer, encoder_decoder=encoder_decoder)
    same = [int(np.array_equal(_ids(wrong, j), _ids(tokens, i))) for j, i in enumerate(of)]
    return {"examples": of, "bytes": sizes, "same": same}


def _ids(tokens: Tokens, i: int) -> Int[np.ndarray, " T"]:
    return tokens.ids[tokens.starts[i] : tokens.starts[i + 1]]
