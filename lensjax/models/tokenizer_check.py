"""Whether the tokenizer that `transformers` makes of a folder makes the tokens that its tokenizer.json does.

transformers 5 rebuilds many tokenizers by the class that tokenizer_config.json names, out of the vocabulary in
tokenizer.json: what the class does not know of is lost, such as the token that a post-processor puts before a text.
"""

from pathlib import Path
from typing import NamedTuple

from lensjax.core.errors import InputError, shorten
from lensjax.models.hub import read_config, read_tokenizer

_FILE = "tokenizer.json"
TEXTS = (
    "Which of these language models should we fine-tune on our data?",
    " two  spaces, a\ttab,\nand a new line ",
    "naïve café, 你好, 2,048 = 2^11, {'a': [1]} <b>",
    "",
)


class Differs(NamedTuple):
    """A text of which a tokenizer makes other tokens than its file.

    Attributes:
      text: The text.
      ours, stored: Tokens as LensJAX uses them, and as tokenizer.json makes them, special ones included.
    """

    text: str
    ours: list[str]
    stored: list[str]

    def __str__(self) -> str:
        pairs = zip(self.ours, self.stored, strict=False)
        equal = min(len(self.ours), len(self.stored))
        at = next((i for i, (one, other) in enumerate(pairs) if one != other), equal)
        ours, stored = (" ".join(map(repr, tokens[at : at + 5])) or "none" for tokens in (self.ours, self.stored))
        place = "begins with" if at == 0 else f"has, after {at} equal tokens,"
        return f"{shorten(self.text, 40)!r} {place} {ours} where {_FILE} has {stored}"


def compare_tokenizer(folder: Path, texts: tuple[str, ...] = TEXTS) -> list[Differs] | None:
    """Compare the tokenizer of a folder with its tokenizer.json, read without `transformers`.

    Args:
      folder: Of a model.
      texts: To be encoded, with the special tokens that are added to a text.

    Returns:
      The texts that differ; None where there is no tokenizer.json.

    Raises:
      InputError: a tokenizer cannot be read.
    """
    path = folder / _FILE
    if not path.exists():
        return None
    from tokenizers import Tokenizer

    try:
        stored = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises Exception itself
        raise InputError(f"{path} cannot be read ({shorten(error)}); fetch it again.") from error
    stored.no_padding()
    stored.no_truncation()
    tokenizer = read_tokenizer(folder, read_config(folder))
    found = []
    for text in texts:
        ours, theirs = tokenizer(text)["input_ids"], stored.encode(text).ids
        if ours != theirs:
            found.append(
                Differs(text, tokenizer.convert_ids_to_tokens(ours), [str(stored.id_to_token(i)) for i in theirs])
            )
    return found
