"""A study's folder: whose it is, and which command runs the study in it."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lensjax.core.errors import InputError, shorten
from lensjax.core.files import LOCK, locked, make_folder, read_json, write_files
from lensjax.core.processes import on_first
from lensjax.study.journal import Journal
from lensjax.study.spec import StudySpec

STUDY = "study.json"
_RUNNING = ".running"  # held by the command that runs the study


@contextmanager
def running(spec: StudySpec, out: Path) -> Iterator[Journal]:
    """Within it, this command alone runs the study in a folder.

    Raises:
      InputError: the folder is another study's, another command runs it, or it cannot be written.
    """
    with ExitStack() as held:

        def hold() -> None:
            open_study(spec, out)
            try:
                held.enter_context(locked(out / _RUNNING, blocking=False))
            except BlockingIOError as error:
                where = shorten(out, 400)
                raise InputError(f"Another command runs the study in {where}; wait for it, or stop it.") from error

        on_first(hold)
        yield Journal(out, spec.identity)


def open_study(spec: StudySpec, out: Path) -> None:
    """Make a study's folder, or make sure that it is this study's; its spec is kept there.

    Raises:
      InputError: it holds another study or something else, or cannot be written.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / STUDY).exists())):
        raise InputError(f"{shorten(out, 400)} is there already and holds something else; give a new folder.")
    make_folder(out)
    with locked(out / LOCK):
        found = read_json(out / STUDY)
        if found is not None and found.get("identity") != spec.identity:
            raise InputError(
                f"{shorten(out, 400)} holds the study {shorten(found.get('name'))}, and this one has another name, "
                "task or training; give a new folder, or the spec that it was made with."
            )
        content = {"identity": spec.identity, "name": spec.name, "spec": spec.model_dump(mode="json")}
        write_files({out / STUDY: json.dumps(content, indent=2, ensure_ascii=False) + "\n"})


def read_study_folder(out: Path) -> StudySpec:
    """The spec in a study's folder.

    Raises:
      InputError: there is none, or it was written by a newer version.
    """
    found = read_json(out / STUDY)
    if found is None:
        raise InputError(f"{shorten(out, 400)} holds no study; give the folder that `lensjax run` wrote.")
    try:
        return StudySpec.model_validate(found["spec"])
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{shorten(out / STUDY, 400)} cannot be read by this version of LensJAX; run the study again with its spec."
        ) from error
