"""Where in a tokenised text a place between two of its characters lies."""

import copy
import itertools
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transformers import BatchEncoding
    from transformers import PreTrainedTokenizerBase as Tokenizer


class Place(NamedTuple):
    """A place in a text, as numbers of tokens.

    Attributes:
      before: Tokens that hold nothing but what is before it.
      reached: Tokens that hold anything of what is before it.
    """

    before: int
    reached: int


Split = Callable[[list[str], Sequence[Sequence[int]]], Iterator[tuple[list[int], list[Place]]]]


def make_split(tokenizer: "Tokenizer") -> Split:
    """Makes a function of texts, and of places in each by the number of characters before.

    It gives the token ids of each text, without special tokens that are not in it, and the places among them.

    Args:
      tokenizer: Those in Python alone do not say where in a text their tokens are: of theirs, the tokens before a place
        are those with which both the text before it and the whole text begin.
    """
    return _split_by_offsets(tokenizer) if tokenizer.is_fast else _split_by_prefix(tokenizer)


def encode(tokenizer: "Tokenizer", *, offsets: bool = False, **texts: list[str]) -> "BatchEncoding":
    """Token ids of texts without special tokens that are not in them."""
    # verbose=False silences warnings of lengths, which the tokenizer cannot know will be cut.
    return tokenizer(
        **texts,
        add_special_tokens=False,
        return_attention_mask=False,
        verbose=False,
        **({"return_offsets_mapping": True} if offsets else {}),
    )


def _split_by_offsets(tokenizer: "Tokenizer") -> Split:
    twin = _with_whole_offsets(tokenizer)
    added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}

    def split(texts: list[str], cuts: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], list[Place]]]:
        encoded = encode(twin, text=texts, offsets=True)
        columns = encoded["input_ids"], encoded["offset_mapping"]
        for text, sizes, ids, offsets in zip(texts, cuts, *columns, strict=True):

            def find(
                size: int, text: str = text, ids: list[int] = ids, offsets: list[tuple[int, int]] = offsets
            ) -> Place:
                before = _boundary(text, size, offsets)
                if before < len(ids) and text[offsets[before][0] : size].strip() == added.get(ids[before]):
                    before += 1  # it only takes in white space of what follows
                reached = next((at for at, (first, _) in enumerate(offsets) if first >= size), len(offsets))
                return Place(before, max(before, reached))

            yield ids, [find(size) for size in sizes]

    return split


_twins: "WeakKeyDictionary[Tokenizer, tuple[object, Tokenizer]]" = WeakKeyDictionary()


def _with_whole_offsets(tokenizer: "Tokenizer") -> "Tokenizer":
    """The tokenizer, or where its offsets are without the white space at the ends of tokens, a copy with it.

    Offsets without it do not tell a token "a " from "a". Copies are kept, as a large vocabulary takes a second.
    """
    backend = tokenizer.backend_tokenizer
    if backend.post_processor is None or b'"trim_offsets":true' not in backend.post_processor.__getstate__():
        return tokenizer
    from tokenizers.processors import TemplateProcessing

    parts = (backend.normalizer, backend.pre_tokenizer, backend.post_processor)
    state = (
        len(tokenizer),
        repr(tokenizer.added_tokens_decoder),
        *(None if part is None else part.__getstate__() for part in parts),
    )
    kept, twin = _twins.get(tokenizer, (None, tokenizer))
    if kept != state:
        twin = copy.deepcopy(tokenizer)
        twin.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
        _twins[tokenizer] = state, twin
    return twin


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


def _split_by_prefix(tokenizer: "Tokenizer") -> Split:
    """The same for tokenizers without offsets."""

    def split(texts: list[str], cuts: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], list[Place]]]:
        whole = encode(tokenizer, text=texts)["input_ids"]
        for text, sizes, ids in zip(texts, cuts, whole, strict=True):
            starts = encode(tokenizer, text=[text[:size] for size in sizes])["input_ids"] if sizes else []
            common = [sum(1 for _ in itertools.takewhile(_equal, zip(ids, start, strict=False))) for start in starts]
            yield ids, [Place(number, number) for number in common]

    return split


def _equal(pair: tuple[int, int]) -> bool:
    return pair[0] == pair[1]
