"""The tokenizer in a GGUF file's metadata, made by `transformers`."""

from pathlib import Path
from typing import Any

from lensjax.core.errors import InputError, shorten
from lensjax.models.gguf.header import Header, read_header

_START = "tokenizer.ggml."
_FIELDS = {  # what transformers calls them
    "model": "tokenizer_type",
    "pre": "pre_tokenizer_type",
    "tokens": "tokens",
    "scores": "scores",
    "token_type": "token_type",
    "merges": "merges",
}
_SPECIAL = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
_BYTES = "gpt2"  # byte-level BPE, of which files say how texts are split; "llama" is SentencePiece
_DIGITS = ("smollm", "starcoder", "refact", "command-r")  # GPT-2's splits, each digit by itself
_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "tekken")  # words of the vocabulary are no subject to merges
_OPENED = ("llama-bpe", "llama3", "llama-v3")  # texts begin with a token, unless the file says otherwise


def has_tokenizer(path: Path) -> bool:
    """Whether a GGUF file has a tokenizer."""
    return f"{_START}tokens" in read_header(path).fields


def make_tokenizer(path: Path) -> Any:
    """Make the tokenizer that a GGUF file describes.

    Raises:
      InputError: there is none, or it is of a kind that is not known.
    """
    header = read_header(path)
    keys = ((ours, f"{_START}{name}") for name, ours in _FIELDS.items())
    fields = {ours: header.fields[key] for ours, key in keys if key in header.fields}
    tokens = fields.get("tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise InputError(f"{path} has no tokenizer; take a file that has.")
    try:
        from transformers import PreTrainedTokenizerFast
        from transformers.integrations.gguf.gguf_tokenizer_mapping import (
            GGUF_PRE_TOKENIZER_SPLITS,
            convert_gguf_tokenizer,
        )
    except ImportError as error:
        raise InputError(
            f"The tokenizer in {path} needs a later transformers; run `pip install -U transformers`."
        ) from error
    split = fields.get("pre_tokenizer_type")
    if fields.get("tokenizer_type") == _BYTES and split not in ("gpt-2", *_DIGITS, *GGUF_PRE_TOKENIZER_SPLITS):
        raise InputError(
            f"{path} splits texts as {shorten(split)} does, which LensJAX does not know; take the model's safetensors."
        )
    try:
        backend, _ = convert_gguf_tokenizer(header.architecture, fields)
        _mend(backend, split, header.fields.get(f"{_START}add_space_prefix", True) is not False)
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, **_settings(header, tokens, fields.get("tokenizer_type"), split)
        )
    except Exception as error:  # the tokenizers library raises Exception itself
        why = shorten(" ".join(str(error).split()), 200).rstrip(".")
        raise InputError(f"The tokenizer in {path} cannot be read ({why}); fetch it again.") from error


def _mend(backend: Any, split: object, space: bool) -> None:
    """Split texts and words as llama.cpp does, where transformers does not; texts begin with a `space` or do not."""
    from tokenizers import pre_tokenizers

    if split in _DIGITS:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if not space and isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
        backend.pre_tokenizer.prepend_scheme = "never"
    if split in _WHOLE_WORDS:
        backend.model.ignore_merges = True


def _settings(header: Header, tokens: list[str], kind: object, split: object) -> dict[str, Any]:
    """What a tokenizer_config.json would say."""
    found = {name: header.fields.get(f"{_START}{theirs}_token_id") for theirs, name in _SPECIAL.items()}
    special = {f"{name}_token": tokens[i] for name, i in found.items() if type(i) is int and 0 <= i < len(tokens)}
    begins = kind == "llama" or split in _OPENED
    return {
        **{f"{name}_token": None for name in _SPECIAL.values()},
        **special,
        "add_bos_token": bool(header.fields.get(f"{_START}add_bos_token", begins)) and "bos_token" in special,
        "add_eos_token": bool(header.fields.get(f"{_START}add_eos_token", False)) and "eos_token" in special,
        "chat_template": header.fields.get("tokenizer.chat_template"),
    }
