"""Runs on disk: the folder of a spec's results that commands share, and the results in it."""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lensjax.core.artefacts import QUARANTINE, Damaged, read_sealed, sealed, set_aside
from lensjax.core.errors import InputError, listing, shorten
from lensjax.core.files import LOCK, is_leftover, locked, make_folder, write_files
from lensjax.core.processes import on_first
from lensjax.core.specs import changed_settings
from lensjax.models.inputs import model_fingerprint
from lensjax.tasks.source import as_source
from lensjax.tasks.tokens import TOKENS_VERSION
from lensjax.train.prepare import FOLDER as TOKENS
from lensjax.train.prepare import Examples
from lensjax.train.results import CURVES, Result, read_result
from lensjax.train.spec import FinetuneSpec

SPEC = "spec.json"
CLAIM = "model.json"  # whose results a model's folder holds
SEARCH = "learning_rates"  # folder of the runs that a learning rate is chosen by
ADAPTERS = "adapters"  # folder of a run's adapters, in PEFT's format
MODEL = "model"  # folder of a run's fine-tuned model
KEPT = "kept.json"  # its hash


class KeptSpec(BaseModel):
    """The spec that the runs in a folder were made with.

    Attributes:
      digest: See `FinetuneSpec.digest`.
      tokens: `TOKENS_VERSION` of the version that wrote it; None of the first ones.
      spec: Its fields.
    """

    digest: str
    tokens: int | None = None
    spec: dict[str, Any]


class Claim(BaseModel):
    """The model whose runs a folder holds.

    Attributes:
      source: Its folder or hub id.
      weights: See `lensjax.models.inputs.model_fingerprint`.
    """

    source: str
    weights: str


class Kept(BaseModel):
    """The fine-tuned model that a run left; see `lensjax.models.inputs.model_fingerprint`."""

    model: str


@dataclass(frozen=True)
class Run:
    """A fine-tuning run: number of training examples, seed, learning rate (0 without training), and folder."""

    examples: int
    seed: int
    rate: float
    folder: Path

    @classmethod
    def of(cls, model: Path, examples: int, seed: int, rate: float = 0.0) -> "Run":
        """The run of a rung, in the folder of a model's runs."""
        return cls(examples, seed, rate, model / f"examples-{examples}-seed-{seed}")

    @property
    def model(self) -> Path:
        """Folder of the fine-tuned model, where it is kept."""
        return self.folder / MODEL

    @property
    def adapters(self) -> Path:
        """Folder of the adapters in PEFT's format, where the model is kept and has some."""
        return self.folder / ADAPTERS

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints, which goes when the run has ended well."""
        return self.folder / "checkpoints"


def pinned(spec: FinetuneSpec, out: Path) -> FinetuneSpec:
    """A spec whose source is what it was for the runs in a folder, or where there are none, what it is now.

    Raises:
      InputError: the source cannot be reached.
    """

    def pin() -> dict[str, Any]:
        try:
            made = read_sealed(out / SPEC, KeptSpec, required=False)
            kept = None if made is None else as_source(made.spec.get("source"))
        except (Damaged, ValueError):  # which opening the folder sees to; or it is of another version
            kept = None
        return spec.source.pinned(kept).model_dump(mode="json")

    return spec.model_copy(update={"source": as_source(on_first(pin))})


def open_folder(out: Path, spec: FinetuneSpec, digest: str) -> None:
    """Make the folder of a spec's results, or go on in it.

    Args:
      out: The folder.
      spec: The spec.
      digest: See `FinetuneSpec.digest`.

    Raises:
      InputError: the folder holds results of another spec or other data, or cannot be written.
    """

    def open_it() -> None:
        with opened_folder(out, spec, digest):
            pass

    on_first(open_it)


@contextmanager
def opened_folder(out: Path, spec: FinetuneSpec, digest: str) -> Iterator[None]:
    """A context in which the folder belongs to a spec, and no other command can change that; see `open_folder`."""
    if out.exists() and (not out.is_dir() or _is_foreign(out)):
        raise InputError(f"{shorten(out, 400)} is there already and holds something else; give a new folder.")
    make_folder(out)
    with locked(out / LOCK):
        try:
            kept = kept_spec(out)
        except Damaged as error:
            set_aside(out / SPEC, error.why, out)
            kept = None
        if kept is None:
            _check_all_of(out, digest)
            content = KeptSpec(digest=digest, tokens=TOKENS_VERSION, spec=spec.model_dump(mode="json"))
            write_files({out / SPEC: sealed(content.model_dump())}, follow=False)
        elif kept.digest != digest and not has_our_tokens(kept):
            raise InputError(
                f"{shorten(out, 400)} holds results of another version of LensJAX, which made other tokens of the same "
                "texts; give a new folder."
            )
        elif kept.digest != digest:
            raise _of_another_spec(out, changed_settings(kept.spec, spec.deciding()))
        yield


def _check_all_of(out: Path, digest: str) -> None:
    """Make sure that all results in a folder without a spec are of this one."""
    for folder in out.glob("*/examples-*"):
        try:
            result = read_result(folder)
        except Damaged:  # it is made again
            continue
        if result is not None and result.spec not in ("", digest):
            raise _of_another_spec(out)


def _of_another_spec(out: Path, changed: Sequence[str] = ()) -> InputError:
    how = f": {listing(list(changed))}" if changed else ", or of other validation and test data"
    return InputError(
        f"{shorten(out, 400)} holds results of another spec{how}; give a new folder, or the spec that it was made with."
    )


def kept_spec(out: Path) -> KeptSpec | None:
    """The spec that the runs in a folder were made with; None if there are no runs.

    Raises:
      Damaged: it does not hold a spec.
      InputError: it cannot be read.
    """
    began = any(out.glob("*/examples-*")) or any(out.glob(f"*/{SEARCH}"))
    return read_sealed(out / SPEC, KeptSpec, required=False) if began else None


def has_our_tokens(kept: KeptSpec) -> bool:
    """Whether the version that wrote a spec made the same tokens of texts as this one."""
    return kept.tokens == TOKENS_VERSION


def _is_foreign(folder: Path) -> bool:
    """Whether a folder holds something else than a spec's results; leftovers of killed commands do not count."""

    def of_model(path: Path) -> bool:
        return any((path / name).exists() for name in (CLAIM, SEARCH)) or any(path.glob("examples-*"))

    paths = list(folder.iterdir())
    models = [path for path in paths if of_model(path)]
    try:
        known = read_sealed(folder / SPEC, KeptSpec, required=False) is not None
    except Damaged:
        known = False
    ours = {LOCK, CURVES, TOKENS, QUARANTINE} | ({SPEC} if models else set())
    others = [path for path in paths if path not in models and path.name not in ours and not is_leftover(path.name)]
    return bool(others) and not known


def known_result(examples: Examples, run: Run, retry: bool, save_model: bool = False) -> Result | None:
    """The result of a run that is on disk; None if the run must be made.

    Args:
      examples: Those of the largest run.
      run: The run.
      retry: Forget the result if the run failed.
      save_model: A result without its model does not count.

    Raises:
      InputError: the result is of other training examples.
    """

    def read() -> dict[str, Any] | None:
        result = read_result(run.folder)
        if result is not None and result.data != examples.fingerprint(run.seed, run.examples):
            raise InputError(
                f"{shorten(run.folder, 400)} holds a result of other training examples than the source has now; "
                "give a new folder."
            )
        if result is not None and result.status == "failed" and retry:
            result = None
            shutil.rmtree(run.folder, ignore_errors=True)  # from its last checkpoint it would fail again
        if result is not None and result.status == "ok":
            shutil.rmtree(run.checkpoints, ignore_errors=True)  # where it was killed before doing so
            if save_model and not has_model(run.folder):
                shutil.rmtree(run.model, ignore_errors=True)
                result = None
        return None if result is None else result.model_dump(mode="json")

    known = on_first(read)
    return None if known is None else Result.model_validate(known)


def note_model(folder: Path) -> None:
    """Keep the hash of the model in a run's folder beside it.

    Raises:
      InputError: it cannot be read, or the hash not written.
    """
    write_files({folder / KEPT: sealed({"model": model_fingerprint(folder / MODEL)})}, follow=False)


def has_model(folder: Path) -> bool:
    """Whether a run's folder holds its model, as it was written; of earlier versions that is not known."""
    if not (folder / MODEL).is_dir():
        return False
    try:
        kept = read_sealed(folder / KEPT, Kept)
        return kept is None or kept.model == model_fingerprint(folder / MODEL)
    except InputError:  # one of them is damaged
        return False


def check_name(name: str) -> None:
    """Raise InputError if a name cannot be that of the folder of a model's results."""
    if not re.fullmatch(r"[\w+-][\w.+ -]*", name) or name in (TOKENS, CURVES, SPEC, QUARANTINE):
        raise InputError(f"'{shorten(name)}' cannot name a folder of results; give another name.")


def model_name(source: str) -> str:
    """The last part of the name of a folder, a model on the hub, or a bundled model."""
    path = Path(os.path.expanduser(source))
    return path.resolve().name if path.exists() else re.split("[/:]", source.rstrip("/"))[-1]
