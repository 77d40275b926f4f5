"""Finding a checkpoint's folder, and reading and writing its configuration and tokenizer with `transformers`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lensjax.errors import InputError, shorten
from lensjax.models.family import family_of

if TYPE_CHECKING:
    from lensjax.models.base import Model

_FILES = ("*.json", "*.safetensors", "tokenizer*", "*.model", "vocab.*", "merges.txt", "*.jinja")


def find_folder(source: str | Path, revision: str | None = None) -> Path:
    """The local folder of a model: `source` itself, or the snapshot of a hub id, fetched where it is not there yet.

    Only configuration, tokenizer and safetensors are ever fetched.

    Raises:
      InputError: there is no such folder or hub id, or the hub cannot be reached.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    name = str(source)
    if path.exists() or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise InputError(f"There is no model folder {shorten(path, 400)}; give the folder that holds its config.json.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_FILES), local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise InputError(f"'{shorten(name)}' is neither a folder nor a name on the hub; give one of them.") from error
    return _download(name, revision)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    offline = f"{shorten(name)} is neither a folder here nor in the hub's cache, and the hub cannot be reached"
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"{offline} (HF_HUB_OFFLINE is set); download it first, or give a folder.")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_FILES)))
    except GatedRepoError as error:
        raise InputError(
            f"{name} asks for its terms to be accepted on the hub; do so, and log in with `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(f"There is no folder and no model on the hub named {shorten(name)}; mend the name.") from error
    except (OSError, HfHubHTTPError) as error:
        raise InputError(f"{offline}; download it where it can, or give a folder.") from error


def read_config(folder: Path) -> Any:
    """The configuration in a folder; code that a checkpoint brings is never run.

    Raises:
      InputError: config.json is missing or malformed, or describes a model that is not supported.
    """
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} has no config.json; give the folder of a model as transformers saves it."
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not JSON ({shorten(error)}); fetch it again.") from error
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise InputError(f"{path} does not say its model_type; take the config.json that came with the weights.")
    model_type = values["model_type"]
    if values.get("auto_map") and model_type not in _supported():
        raise InputError(
            f"{path} (model_type '{shorten(model_type)}') needs code of its own (trust_remote_code), which LensJAX "
            f"never runs; it has {', '.join(_supported())}."
        )
    family_of(model_type, str(path))
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(**values)
    except Exception as error:  # each configuration class checks its own fields, and raises what it likes
        raise InputError(f"{path} does not describe a {model_type} model: {shorten(error, 200)}") from error


def read_tokenizer(folder: Path | None, config: Any) -> Any:
    """The tokenizer in a folder.

    Raises:
      InputError: there is none, or it has more tokens than the model has embeddings.
    """
    if folder is None or not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise InputError(
            f"{folder or 'A model made from a configuration'} has no tokenizer; "
            "take the folder with the tokenizer files that came with the weights."
        )
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(
            f"The tokenizer in {folder} cannot be read ({shorten(error, 200)}); fetch it again."
        ) from error
    if len(tokenizer) > config.vocab_size:
        raise InputError(
            f"The tokenizer in {folder} has {len(tokenizer)} tokens and the model {config.vocab_size} embeddings; "
            "take tokenizer and weights from one model."
        )
    return tokenizer


def write_config(config: Any, architecture: str, dtype: str, folder: Path) -> None:
    """Write config.json, naming the class that opens the weights and their type."""
    values = config.to_dict() | {"architectures": [architecture], "dtype": dtype}
    values.pop("auto_map", None)
    (folder / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_tokenizer(model: "Model", folder: Path) -> None:
    """Write the model's tokenizer, where it has one."""
    try:
        tokenizer = model.tokenizer
    except InputError:
        return
    tokenizer.save_pretrained(folder)
    if model.folder is not None and (model.folder / "generation_config.json").exists():
        source = model.folder / "generation_config.json"
        (folder / source.name).write_bytes(source.read_bytes())


def _supported() -> list[str]:
    from lensjax.models.family import supported

    return supported()
