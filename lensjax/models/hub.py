"""Finding a checkpoint's folder, and reading and writing its configuration and tokenizer with `transformers`."""

import fnmatch
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

from lensjax.core.errors import InputError, shorten
from lensjax.core.reading import check_regular, read_text, unique_fields
from lensjax.models.family import family_of, of_all_layers, supported
from lensjax.models.gguf import tokenizer as gguf_tokenizer
from lensjax.models.gguf.config import config_values
from lensjax.models.gguf.header import SUFFIX, is_gguf, parts_of, write_card
from lensjax.models.pocket import SCHEME, bundled_folder

_CONFIG = "config.json"
_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.jinja",
)
Parts = Literal["config", "tokenizer", "model"]  # of a model on the hub; the last two include its configuration
_NEEDED: dict[Parts, tuple[str, ...]] = {
    "config": (_CONFIG,),
    "tokenizer": (_CONFIG, "tokenizer*.json"),
    "model": (_CONFIG, "*.safetensors"),
}
_FETCHED: dict[Parts, tuple[str, ...]] = {
    "config": (_CONFIG,),
    "tokenizer": (_CONFIG, *_TOKENIZER),
    "model": ("*.json", "*.safetensors", *_TOKENIZER),
}
_NOT_OURS = ["*/*", "consolidated*"]  # other formats of the same weights
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
_WITH_TEXT = ("gemma3", "gemma4", "mistral3", "qwen3_5")  # of images too; their text_config is of a family
_MOST, _MOST_LAYERS = 2**28, 2**12  # of any of these; the largest models have 126 layers and a vocabulary of 262,144
_NO_SIZES = ("rope", "theta", "token", "window")  # in the names of numbers that may be any


def find_folder(source: str | Path, revision: str | None = None, *, what: Parts = "model") -> Path:
    """Find the local folder of a model, or its GGUF file, and fetch what the hub's cache lacks of it.

    From the hub, only configuration, tokenizer and safetensors are ever fetched.

    Args:
      source: A folder, a GGUF file or a folder with one, a hub id such as "openai-community/gpt2", or "pocket:NAME" of
        a bundled model (`lensjax.models.pocket`), whose files are checked.
      revision: Branch, tag or commit on the hub.
      what: The parts that are needed: "config", "tokenizer" or "model"; the last two include the configuration.

    Returns:
      The folder or GGUF file itself, or the snapshot in the hub's cache.

    Raises:
      InputError: there is no such folder or hub id, or the hub cannot be reached.
    """
    here = local_folder(source)
    if here is not None:
        return here
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    name = str(source)
    try:
        folder = _snapshot(name, revision, what, local=True)
    except LocalEntryNotFoundError:
        return _download(name, revision, what)
    except HFValidationError as error:
        raise InputError(f"'{shorten(name)}' is neither a folder nor a name on the hub; give one of them.") from error
    whole = all(any(folder.glob(pattern)) for pattern in _NEEDED[what])
    return folder if whole else _download(name, revision, what)


def is_local(path: Path) -> bool:
    """Whether a path is a folder or a GGUF file, either of which may be a model."""
    return path.is_dir() or is_gguf(path)


def local_folder(source: str | Path) -> Path | None:
    """The folder or GGUF file of a model that is here or part of LensJAX; None where the name may be a hub id.

    Raises:
      InputError: there is no such folder, no such model in LensJAX, or a folder of several GGUF files and no other.
    """
    path, name = Path(os.path.expanduser(source)), str(source)
    if os.path.isdir(path):
        return _one_gguf(path) or path
    if is_gguf(path):
        return path
    if name.startswith(SCHEME):
        return bundled_folder(name)
    if os.path.exists(path) or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise InputError(f"There is no model folder {shorten(path, 400)}; give the folder that holds its config.json.")
    return None


def _one_gguf(folder: Path) -> Path | None:
    """The GGUF file in a folder that has nothing else to read a model from."""
    found = [] if (folder / _CONFIG).exists() else sorted(folder.glob(f"*{SUFFIX}"))
    if len(found) > 1 and found != parts_of(found[0]):
        raise InputError(f"{folder} has {len(found)} GGUF files; give one of them, such as {found[0]}.")
    return found[0] if found else None


def folder_here(source: str | Path) -> Path | None:
    """The folder of a model whose weights are here, without asking the hub; None where they are not."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = local_folder(source) or _snapshot(str(source), None, "model", local=True)
    except (InputError, HFValidationError, LocalEntryNotFoundError):
        return None
    return folder if is_gguf(folder) or any(folder.glob("*.safetensors")) else None


def _snapshot(name: str, revision: str | None, what: Parts, *, local: bool) -> Path:
    from huggingface_hub import snapshot_download

    files = list(_FETCHED[what])
    return Path(
        snapshot_download(
            name, revision=revision, allow_patterns=files, ignore_patterns=_NOT_OURS, local_files_only=local
        )
    )


def _download(name: str, revision: str | None, what: Parts) -> Path:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # whichever httpx this version has

    unreachable = f"{shorten(name)} is neither a folder nor whole in the hub's cache, and the hub cannot be reached"
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"{unreachable} (HF_HUB_OFFLINE is set); download it first, or give a folder.")
    try:
        # A download waits forever for a hub that does not answer, so ask for something small first.
        info = HfApi().model_info(name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        there = [file.rfilename for file in info.siblings or () if "/" not in file.rfilename]
        lacking = [pattern for pattern in _NEEDED[what] if not fnmatch.filter(there, pattern)]
        if not lacking:
            return _snapshot(name, revision, what, local=False)
    except GatedRepoError as error:
        raise InputError(
            f"{name} asks for its terms to be accepted on the hub; do so, and log in with `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(
            f"{name} has no revision '{shorten(revision)}' on the hub; give one of its branches, tags or commits."
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"There is no folder and no public model on the hub named {shorten(name)}; mend the name, or log in with "
            "`hf auth login` where the model is private."
        ) from error
    except (httpx.HTTPError, LocalEntryNotFoundError, ConnectionError, ValueError) as error:
        raise InputError(f"{unreachable}; download it where it can, or give a folder.") from error
    except OSError as error:
        raise InputError(
            f"{shorten(name)} cannot be written to the hub's cache ({shorten(error.strerror or error)}); make room, or "
            "set HF_HOME to another folder."
        ) from error
    raise InputError(
        f"{name} has no {lacking[0]} on the hub; give a model or a revision that has, or save it anew with "
        "transformers' save_pretrained where you trust it."
    )


def read_config(folder: Path) -> Any:
    """Read the configuration in a folder; code that a checkpoint brings is never run.

    Args:
      folder: Folder with config.json, or a GGUF file.

    Returns:
      The Hugging Face configuration; of a model that reads images or sound too, that of its text model.

    Raises:
      InputError: config.json or the file is missing or malformed, or describes a model that is not supported.
    """
    if is_gguf(folder):
        return _make_config(config_values(folder), folder)
    path = folder / _CONFIG
    if not os.path.lexists(path):
        if (folder / "adapter_config.json").exists():
            raise InputError(
                f"{folder} holds adapters and not the model that they are for; load that model, then its adapters by "
                "load_adapters."
            )
        raise InputError(f"{folder} has no config.json; give the folder of a model as transformers saves it.")
    text = read_text(path, "fetch it again")
    try:
        values = json.loads(text, parse_constant=_refuse, object_pairs_hook=unique_fields)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({shorten(error)}); fetch it again.") from error
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise InputError(f"{path} does not say its model_type; take the config.json that came with the weights.")
    if values["model_type"] == "mistral" and "layer_types" in values:
        values["model_type"] = "ministral"  # as transformers' AutoConfig does
    model_type = values["model_type"]
    if values.get("auto_map") and model_type not in (*supported(), *_WITH_TEXT):
        raise InputError(
            f"{path} (model_type '{shorten(model_type)}') needs code of its own (trust_remote_code), which LensJAX "
            f"never runs; it has {', '.join(supported())}."
        )
    if model_type not in _WITH_TEXT:
        family_of(model_type, str(path))
    if values.get("quantization_config"):
        raise InputError(
            f"{path} has a quantization_config; only floating-point weights can be loaded, so take the model as it "
            "was before quantisation."
        )
    return _make_config(values, path)


def _make_config(values: dict[str, Any], path: Path) -> Any:
    """The configuration of those values, which a file holds."""
    for part in (values, values.get("text_config")):
        _check_sizes(part if isinstance(part, dict) else {}, path)
    from transformers import AutoConfig

    model_type = values["model_type"]
    try:
        config = AutoConfig.for_model(**values)
    except Exception as error:  # configuration classes check their own fields, and raise errors of any kind
        why = shorten(" ".join(str(error).split()), 200).rstrip(".")
        raise InputError(
            f"{path} does not describe a {model_type} model ({why}); mend it or fetch it again."
        ) from error
    if model_type in _WITH_TEXT:
        config = _text_part(config, values, path)
    for one in (config, *(config.per_layer_config if getattr(config, "is_heterogeneous", False) else ())):
        _check_sizes({name: of_all_layers(one, name) for name in _SIZES}, path)
    return config


def _text_part(whole: Any, values: Mapping[str, Any], path: Path) -> Any:
    """The configuration of the text model in one that reads images or sound too."""
    text = whole.text_config
    family_of(text.model_type, f"text_config of {path}")
    text.tie_word_embeddings = whole.tie_word_embeddings
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if name in values:
            setattr(text, name, values[name])
    return text


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"it holds {constant}")


def _check_sizes(values: Mapping[str, Any], path: Path) -> None:
    """Check what configuration classes do not: sizes are positive and possible, and key heads divide the others."""
    sizes = {name: values[name] for name in _SIZES if isinstance(values.get(name), (int, float))}
    for name, value in sizes.items():
        most = _MOST_LAYERS if "layer" in name else _MOST
        if type(value) is not int or not 1 <= value <= most:
            raise InputError(
                f"{path} says {name} is {shorten(value)}, which is no whole number from 1 to {most:,}; take the "
                "config.json that came with the weights."
            )
    for name, value in values.items():
        most = _MOST_LAYERS if re.search(r"layers?$|layer_types$", name) else _MOST
        large = len(value) if isinstance(value, list) else abs(value) if type(value) is int else 0
        if large > most and not any(part in name for part in _NO_SIZES):
            raise InputError(
                f"{path} says {shorten(name)} is {shorten(value)}, and no model has more than {most:,}; take the "
                "config.json that came with the weights."
            )
    heads, shared = sizes.get("num_attention_heads", 1), sizes.get("num_key_value_heads", 1)
    if heads % shared:
        raise InputError(
            f"{path} says num_key_value_heads is {shared}, which does not divide num_attention_heads {heads}; "
            "take the config.json that came with the weights."
        )


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder or GGUF file holds a tokenizer."""
    if is_gguf(folder):
        return gguf_tokenizer.has_tokenizer(folder)
    return any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json"))


def read_tokenizer(folder: Path | None, config: Any) -> Any:
    """Read the tokenizer in a folder.

    Args:
      folder: Folder with the tokenizer's files, or GGUF file; None for a model that was made from a configuration.
      config: The model's Hugging Face configuration.

    Raises:
      InputError: there is none, or it is another model's: it has tokens without an embedding that were not added to a
        vocabulary, as those for images or padding are.
    """
    if folder is None or not has_tokenizer(folder):
        raise InputError(
            f"{folder or 'A model made from a configuration'} has no tokenizer; "
            "take the folder with the tokenizer files that came with the weights."
        )
    tokenizer = gguf_tokenizer.make_tokenizer(folder) if is_gguf(folder) else _tokenizer_in(folder)
    if len(tokenizer) > config.vocab_size and _without_embedding(tokenizer, config.vocab_size):
        raise InputError(
            f"The tokenizer in {folder} has {len(tokenizer)} tokens and the model {config.vocab_size} embeddings; "
            "take tokenizer and weights from one model."
        )
    return tokenizer


def _tokenizer_in(folder: Path) -> Any:
    for pattern in _TOKENIZER:
        for path in folder.glob(pattern):
            check_regular(path, "fetch it again")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer("a")  # settings of wrong types are noticed when they are used
        return tokenizer
    except Exception as error:  # the tokenizers library raises Exception itself
        why = shorten(" ".join(str(error).split()), 200).rstrip(".")
        raise InputError(f"The tokenizer in {folder} cannot be read ({why}); fetch it again.") from error


def _without_embedding(tokenizer: Any, embeddings: int) -> bool:
    """Whether tokens of the vocabulary itself have no embedding."""
    beyond = {number for number in tokenizer.get_vocab().values() if number >= embeddings}
    return not beyond <= set(tokenizer.added_tokens_decoder)


def write_config(config: Any, architecture: str, dtype: str, folder: Path) -> None:
    """Write config.json with the names of the class that opens the weights, and of their type."""
    values = config.to_dict() | {"architectures": [architecture], "dtype": dtype}
    values.pop("auto_map", None)
    for told_by_tensors in ("has_logits_bias", "one_embedding"):
        values.pop(told_by_tensors, None)
    if getattr(config, "one_embedding", False) and family_of(config.model_type).two_embeddings:
        values["tie_word_embeddings"] = True  # or else there would be two; that the head differs, its tensor tells
    (folder / _CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def model_files(folder: Path) -> list[Path]:
    """The files of a model besides its weights: configuration and tokenizer, which a GGUF file holds too."""
    if is_gguf(folder):
        return []
    found = {path for pattern in (_CONFIG, *_TOKENIZER) for path in folder.glob(pattern) if path.is_file()}
    return sorted(found)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the files of a model's tokenizer, and its settings for generating, where there are any.

    Of a GGUF file, they are made, with a model card that says where the weights are from.
    """
    if is_gguf(source):
        write_card(source, folder)
        if has_tokenizer(source):
            gguf_tokenizer.make_tokenizer(source).save_pretrained(folder)
        return
    for pattern in (*_TOKENIZER, "generation_config.json"):
        for path in filter(Path.is_file, source.glob(pattern)):
            shutil.copyfile(path, folder / path.name)
