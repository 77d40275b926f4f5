"""Packing: the examples of a training step in fewer rows than one each, so that fewer tokens are padding.

A step has the same examples as without packing, and each counts the same in its loss. Rows are filled by first-fit
decreasing, which depends on the examples of the step alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from lensjax.models.losses import IGNORED
from lensjax.tasks.tokens import Tokens


@dataclass(frozen=True)
class PackedShape:
    """The shape of batches whose rows hold several examples: rows over all devices, and tokens of each."""

    rows: int
    length: int


def fill_rows(lengths: Int[np.ndarray, " examples"], rows: int, length: int) -> list[list[int]] | None:
    """The examples in each row, by first-fit decreasing; None if they do not fit.

    Args:
      lengths: Number of tokens of each example.
      rows: Number of rows.
      length: Number of tokens of a row.
    """
    held: list[list[int]] = [[] for _ in range(rows)]
    room = np.full(rows, length)
    for example in np.argsort(-lengths, kind="stable").tolist():
        row = int(np.argmax(room >= lengths[example]))
        if room[row] < lengths[example]:
            return None
        held[row].append(example)
        room[row] -= lengths[example]
    return held


def collate_packed(
    tokens: Tokens,
    examples: Sequence[int] | np.ndarray,
    held: Sequence[Sequence[int]],
    rows: Sequence[int],
    length: int,
    padding: int,
) -> dict[str, Int[np.ndarray, "rows time"]]:
    """Some rows of a packed batch.

    Args:
      tokens: The examples.
      examples: Numbers of the examples in the batch.
      held: The places in `examples` of those in each row, see `fill_rows`.
      rows: The rows to make.
      length: Tokens of a row.
      padding: Token that fills rows up.

    Returns:
      `input_ids`, `labels` (−100 at prompts and padding) and `segment_ids` (from 1 on in each row, 0 at padding).
    """
    made = {name: np.zeros((len(rows), length), np.int32) for name in ("input_ids", "labels", "segment_ids")}
    made["input_ids"] += np.int32(padding)
    made["labels"] += np.int32(IGNORED)
    for at, row in enumerate(rows):
        start = 0
        for number, place in enumerate(held[row], start=1):
            example = int(examples[place])
            prompt, target = tokens.prompt(example), tokens.target(example)
            begin, stop = start + prompt.size, start + prompt.size + target.size
            made["input_ids"][at, start:begin], made["input_ids"][at, begin:stop] = prompt, target
            made["labels"][at, begin:stop] = np.where(tokens.learned_of(example), target, IGNORED)
            made["segment_ids"][at, start:stop] = number
            start = stop
    return made
