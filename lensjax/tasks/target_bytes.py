"""The bytes that a loss per byte is divided by: those of targets as they are written, not as tokens spell them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lensjax.tasks.chat import ChatFormat
from lensjax.tasks.task import Example
from lensjax.tasks.tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

UNKNOWN = -1


def target_bytes(
    examples: Sequence[Example], tokens: Tokens, tokenizer: "Tokenizer", *, encoder_decoder: bool
) -> list[int]:
    """The number of UTF-8 bytes of each target that its tokens stand for.

    That is the whole text, whatever a tokenizer makes of it: one that writes it with unknown tokens, or normalises it,
    gains nothing. Of a target that was cut, it is the text before the first token that was left out, by its offset. A
    character that the cut divides does not count, so a cut never makes the loss per byte lower. Of a conversation, the
    texts are those of every learned turn.

    A token may hold the end of the prompt too, such as the space before " hola" where the prompt ends in it. All of its
    loss counts, and here its bytes of the target alone. Such a model pays for a part of the prompt, which is little
    once it has learned how prompts end, and gains nothing; were those bytes counted, it would gain by each of them.

    Args:
      examples: The examples.
      tokens: The same as tokens.
      tokenizer: The one that made them.
      encoder_decoder: Whether the model reads prompts with an encoder.

    Returns:
      A number for each example; `UNKNOWN` for a cut target whose tokens have no known place in its text.
    """
    rows = [row for example in examples for row in example.rows(encoder_decoder=encoder_decoder)]
    counts = [sum(map(_size, row.learned)) for row in rows]
    chat = ChatFormat(tokenizer)
    for i in map(int, tokens.target_cut.nonzero()[0]):
        prompt, target = "" if encoder_decoder else rows[i].prompt, rows[i].target
        answers = [(len(prompt), len(prompt) + len(target))]
        if rows[i].turns:
            rendered = chat.render(rows[i].turns, rows[i].where)
            begin, answers = rendered.answers[0][0], list(rendered.answers)
            prompt, target = rendered.text[:begin], rendered.text[begin:]
        kept = _kept(prompt, target, tokens.target(i).tolist(), tokenizer)
        if kept is None:
            counts[i] = UNKNOWN
        else:
            text = prompt + kept
            counts[i] = sum(_size(text[first:last]) for first, last in answers)
    unknown = tokens.by_example(np.array(counts) == UNKNOWN)
    summed: list[int] = np.where(unknown, UNKNOWN, tokens.by_example(np.array(counts))).tolist()
    return summed


def _kept(prompt: str, target: str, ids: list[int], tokenizer: "Tokenizer") -> str | None:
    """What a cut target's tokens hold of its text, which follows a prompt; None if that is not known."""
    if not tokenizer.is_fast:
        return None
    text, begin = prompt + target, len(prompt)
    options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    encoded = tokenizer(text, **options)
    whole, offsets = encoded["input_ids"], encoded["offset_mapping"]
    while ids and ids[0] in tokenizer.all_special_ids and ids[0] not in whole:  # such as that which opens a target
        ids = ids[1:]
    for at, (first, last) in enumerate(offsets):
        if last > begin and not text[begin:first].strip() and whole[at : at + len(ids)] == ids:
            following = offsets[at + len(ids) :]
            # Places of tokens may be without the white space around them, or of a character that they divide.
            return target if not following else text[begin : min(offsets[at + len(ids) - 1][1], following[0][0])]
    return None


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
