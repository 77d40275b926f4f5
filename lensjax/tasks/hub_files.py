"""Parquet files of data sets on the Hugging Face hub: which there are, at which commit, of which configs and splits.

No code of a data set is run. Where a data set has no Parquet files of its own, those that the hub makes of it are read.
"""

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from lensjax.core.artefacts import read_sealed, sealed
from lensjax.core.errors import InputError, shorten
from lensjax.core.files import make_folder, write_files
from lensjax.core.specs import Strict
from lensjax.tasks.source import SPLIT_WORDS

CONVERTED = "refs/convert/parquet"  # the branch of the files that the hub makes
_PART = re.compile(r"(?P<split>.+?)-(?P<number>\d+)-of-\d+(?:-[0-9a-f]+)?")


class Listing(Strict):
    """The Parquet files of a data set.

    Attributes:
      hub: Its name.
      commit: Of the files.
      files: By config and split.
    """

    hub: str
    commit: str
    files: dict[str, dict[str, tuple[str, ...]]]


def list_files(hub: str, revision: str | None) -> Listing:
    """The Parquet files of a data set, as the hub says, or as it said before where it cannot be reached.

    Args:
      hub: Its name, as in "owner/name".
      revision: Branch, tag or commit; by default the main branch, or where that has none, the hub's own conversion.

    Raises:
      InputError: there is no such data set or revision, it has no Parquet files, or the hub cannot be reached.
    """
    from huggingface_hub import constants

    return _list_files(hub, revision, constants.ENDPOINT)


def fetch(listing: Listing, files: Sequence[str]) -> list[Path]:
    """The paths of some files of a listing, which are fetched where the hub's cache lacks them.

    Raises:
      InputError: the hub cannot be reached, or the cache not be written.
    """
    from huggingface_hub import snapshot_download

    where: dict[str, Any] = {"repo_type": "dataset", "revision": listing.commit, "allow_patterns": list(files)}

    def there(*, local: bool) -> list[Path]:
        folder = Path(snapshot_download(listing.hub, local_files_only=local, **where))
        return [folder / file for file in files]

    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        paths = there(local=True)
        if all(path.exists() for path in paths):
            return paths
    except LocalEntryNotFoundError:
        pass
    with _in_a_sentence(listing.hub, listing.commit):
        _check_online()
        return there(local=False)


@lru_cache(maxsize=32)
def _list_files(hub: str, revision: str | None, endpoint: str) -> Listing:
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # whichever httpx this version has

    known = user_cache_path("lensjax") / "hub" / f"{hub.replace('/', '--')}@{_as_name(revision)}.json"
    try:
        with _in_a_sentence(hub, revision):
            _check_online()
            found = _asked(hub, revision)
    except InputError as error:
        if not isinstance(error.__cause__, (httpx.HTTPError, ConnectionError)):
            raise
        kept = _kept(known)
        if kept is None:
            raise
        return kept
    make_folder(known.parent)
    write_files({known: sealed(found.model_dump())}, follow=False)
    return found


def _kept(known: Path) -> Listing | None:
    """What a file says that an earlier command kept; None where it is not whole."""
    try:
        return read_sealed(known, Listing)
    except InputError:
        return None


def _asked(hub: str, revision: str | None) -> Listing:
    """What the hub says."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RevisionNotFoundError

    def at(asked: str | None) -> Listing:
        info = HfApi().dataset_info(hub, revision=asked, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        names = [file.rfilename for file in info.siblings or ()]
        card = {} if info.card_data is None else info.card_data.to_dict()
        return Listing(hub=hub, commit=str(info.sha), files=sort_files(names, card))

    found = at(revision)
    if found.files:
        return found
    if revision is None:
        try:
            found = at(CONVERTED)
        except RevisionNotFoundError:
            found = Listing(hub=hub, commit="", files={})
        if found.files:
            return found
    nor = "" if revision is not None else f", and the hub has made none of it (branch {CONVERTED})"
    raise InputError(
        f"The data set {shorten(hub)} has no Parquet files{_at(revision)}{nor}; fetch its files, and name them in "
        "source.files."
    )


def sort_files(names: Sequence[str], card: Mapping[str, Any]) -> dict[str, dict[str, tuple[str, ...]]]:
    """The Parquet files among some names, by config and split.

    Args:
      names: Of all files in the repository.
      card: Metadata of its README.md, whose `configs` say which files are which; otherwise their names do.
    """
    parquet = sorted((name for name in names if name.lower().endswith(".parquet")), key=_order)
    sorted_: dict[str, dict[str, tuple[str, ...]]] = {}
    for config, split, patterns in _of_card(card):
        found = tuple(name for name in parquet if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))
        for name in found:
            _add(sorted_, config, split or _by_name(name)[1], name)
    for name in () if sorted_ else parquet:
        _add(sorted_, *_by_name(name), name)
    return sorted_


def _add(sorted_: dict[str, dict[str, tuple[str, ...]]], config: str, split: str, name: str) -> None:
    of_config = sorted_.setdefault(config, {})
    of_config[split] = (*of_config.get(split, ()), name)


def _of_card(card: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """Config, split, and patterns of names, as a card lists them; "" for a split that names tell."""
    configs = card.get("configs")
    for config in configs if isinstance(configs, list) else ():
        if not isinstance(config, dict):
            continue
        name, given = str(config.get("config_name", "default")), config.get("data_files")
        folder = str(config.get("data_dir") or "").strip("/")
        if isinstance(given, dict):
            given = [{"split": split, "path": path} for split, path in given.items()]
        if given is None and folder:
            yield name, "", [f"{folder}/*"]
        given = given if isinstance(given, list) else [] if given is None else [given]
        loose = [entry for entry in given if isinstance(entry, str)]
        entries = [entry for entry in given if isinstance(entry, dict)]
        for entry in [*entries, *([{"split": "train", "path": loose}] if loose else [])]:
            paths = entry.get("path")
            patterns = paths if isinstance(paths, list) else [paths]
            yield name, str(entry.get("split", "train")), [_pattern(folder, str(one)) for one in patterns]


def _pattern(folder: str, path: str) -> str:
    whole = f"{folder}/{path}" if folder else path
    return whole.removeprefix("./").replace("**/", "*")


def _by_name(name: str) -> tuple[str, str]:
    """Config and split of a file, as of en/train-00000-of-00002.parquet, en/train/0000.parquet or train.parquet."""
    *folders, last = name.split("/")
    stem = last[: -len(".parquet")]
    if part := _PART.fullmatch(stem):
        split = part["split"]
    elif stem.isdigit() and folders:
        split = folders.pop()
    else:
        split = _keyword(stem) or next(filter(None, map(_keyword, reversed(folders))), "train")
        folders = [folder for folder in folders if not _keyword(folder)]
    return "/".join(folders[1:] if folders[:1] == ["data"] else folders) or "default", split


def _keyword(text: str) -> str | None:
    """The split whose name stands in a text as a word."""
    words = re.split(r"[^a-z]+", text.lower())
    return next((split for split, names in SPLIT_WORDS.items() if any(name in words for name in names)), None)


def _order(name: str) -> list[tuple[int, str]]:
    """A key by which part 10 comes after part 9."""
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", name)]


@contextmanager
def _in_a_sentence(hub: str, revision: str | None) -> Iterator[None]:
    """Says in a sentence what goes wrong with a data set on the hub."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    name = shorten(hub)
    try:
        yield
    except InputError:
        raise
    except HFValidationError as error:
        raise InputError(f"'{name}' is no name of a data set on the hub; write it as owner/name.") from error
    except GatedRepoError as error:
        raise InputError(
            f"The data set {name} asks for its terms to be accepted on the hub; do so, and log in with `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(
            f"The data set {name} has no revision '{shorten(revision)}' on the hub; give one of its branches, tags or "
            "commits in source.revision."
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"There is no public data set {name} on the hub; mend source.hub, or log in with `hf auth login` where it "
            "is private."
        ) from error
    except (httpx.HTTPError, LocalEntryNotFoundError, ConnectionError, ValueError) as error:
        raise InputError(
            f"The data set {name}{_at(revision)} is not whole in the hub's cache, and the hub cannot be reached; fetch "
            "it where it can, or name files of your own in source.files."
        ) from error
    except OSError as error:
        raise InputError(
            f"The data set {name} cannot be written to the hub's cache ({shorten(error.strerror or error)}); make "
            "room, or set HF_HOME to another folder."
        ) from error


def _check_online() -> None:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set")


def _at(revision: str | None) -> str:
    return "" if revision is None else f" at {shorten(revision)}"


def _as_name(revision: str | None) -> str:
    return re.sub(r"[^\w.-]", "-", revision or "main")
