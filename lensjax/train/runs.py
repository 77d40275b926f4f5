"""Runs on disk: the folder of a spec's results that commands share, results that are there, and runs that are made."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lensjax.core.errors import InputError, shorten
from lensjax.core.files import LOCK, is_leftover, locked, make_folder, read_json, remove_leftovers, write_files
from lensjax.core.processes import on_first
from lensjax.core.signals import stop_requested, stopping_on_signals
from lensjax.train.candidate import CHECKPOINTS, MODEL, Candidate, Cell
from lensjax.train.loop import Stopped
from lensjax.train.prepare import Examples
from lensjax.train.recorder import Recorder
from lensjax.train.results import Result, read_result
from lensjax.train.spec import FinetuneSpec

SPEC = "spec.json"
CLAIM = "model.json"  # whose results a model's folder holds
SEARCH = "learning_rates"  # folder of the runs that a learning rate is chosen by


def open_folder(out: Path, spec: FinetuneSpec, digest: str) -> None:
    """Make the folder of a spec's results, or go on in it.

    Raises:
      InputError: it holds the results of another spec or other data, or cannot be written.
    """

    def open_it() -> None:
        with _opened(out, spec, digest):
            pass

    on_first(open_it)


@contextmanager
def _opened(out: Path, spec: FinetuneSpec, digest: str) -> Iterator[None]:
    """Within it, the folder is of that spec, and no other command can change that.

    Raises:
      InputError: see `open_folder`.
    """
    if out.exists() and (not out.is_dir() or _is_foreign(out)):
        raise InputError(f"{shorten(out, 400)} is there already and holds something else; give a new folder.")
    make_folder(out)
    with locked(out / LOCK):
        found = kept_spec(out)
        if found is None:
            content = {"digest": digest, "spec": spec.model_dump(mode="json")}
            write_files({out / SPEC: json.dumps(content, indent=2) + "\n"})
        elif found.get("digest") != digest:
            raise InputError(
                f"{shorten(out, 400)} holds results of another spec, or of other validation and test data; give a new "
                "folder, or the spec that it was made with."
            )
        yield


def kept_spec(out: Path) -> dict[str, Any] | None:
    """The spec that the runs in a folder were made with, and its digest; None where there are no runs.

    Raises:
      InputError: it cannot be read.
    """
    began = any(out.glob("*/examples-*")) or any(out.glob(f"*/{SEARCH}"))
    return read_json(out / SPEC) if began else None


def _is_foreign(folder: Path) -> bool:
    """Whether a folder holds something and no spec, besides what commands leave that were killed before writing one."""
    names = {path.name for path in folder.iterdir()} - {LOCK}
    return not all(map(is_leftover, names)) and read_json(folder / SPEC) is None


def claim_folder(candidate: Candidate) -> None:
    """Note whose results a model's folder holds; raise InputError where they are another model's."""

    def note() -> None:
        path = candidate.folder / CLAIM
        found = read_json(path)
        if found is None:
            make_folder(candidate.folder)
            content = {"source": candidate.source, "weights": candidate.weights}
            write_files({path: json.dumps(content, indent=2) + "\n"})
        elif found.get("weights") != candidate.weights:
            raise InputError(
                f"{shorten(candidate.folder, 400)} holds results of another model "
                f"({shorten(found.get('source'), 200)}); give this one another name."
            )

    on_first(note)


def known_result(examples: Examples, cell: Cell, retry: bool, save_model: bool = False) -> Result | None:
    """The result of a run that is on disk, if it is not to be made again, nor its model to be saved.

    Raises:
      InputError: it is of other training examples.
    """

    def read() -> dict[str, Any] | None:
        found = read_result(cell.folder)
        if found is not None and found.data != examples.fingerprint(cell.seed, cell.examples):
            raise InputError(
                f"{shorten(cell.folder, 400)} holds a result of other training examples than the source has now; "
                "give a new folder."
            )
        if found is not None and found.status == "failed" and retry:
            found = None
            shutil.rmtree(cell.folder, ignore_errors=True)  # from its last checkpoint it would fail again
        if found is not None and found.status == "ok":
            shutil.rmtree(cell.folder / CHECKPOINTS, ignore_errors=True)  # where it was killed before doing so
            if save_model and not (cell.folder / MODEL).exists():
                found = None
        return None if found is None else found.model_dump(mode="json")

    found = on_first(read)
    return None if found is None else Result.model_validate(found)


def make_run(candidate: Candidate, cell: Cell, recorder: Recorder, save_model: bool = False) -> Result:
    """Make a run, alone of all commands, and raise Stopped if an end was asked for meanwhile."""
    with ExitStack() as held, stopping_on_signals():

        def lock() -> None:
            # Another spec may have taken the folder as long as there were no runs in it.
            with _opened(candidate.out, candidate.spec, candidate.examples.digest):
                make_folder(cell.folder)
            try:
                held.enter_context(locked(cell.folder / LOCK, blocking=False))
            except BlockingIOError as error:
                raise InputError(
                    f"Another command is making {shorten(cell.folder, 400)} at this moment; wait for it, or stop it."
                ) from error
            remove_leftovers(cell.folder)

        on_first(lock)
        result = candidate.run(cell, recorder, save_model=save_model)
        if stop_requested():
            raise Stopped
    return result
