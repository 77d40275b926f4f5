"""The specs that commands are given: of a task, or of a study, whose task it then is."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lensjax.core.errors import InputError, listing, meant, shorten

if TYPE_CHECKING:
    from lensjax.study.spec import StudySpec
    from lensjax.train.spec import FinetuneSpec


@dataclass(frozen=True)
class Subject:
    """What a command is about: a task with its settings of training, and a model.

    Attributes:
      spec: The task.
      source: The model's folder, its name on the hub, or pocket:NAME; None where none was given.
      name: Its name in results; None for the last part of that of its source.
      mesh: Devices along each axis, where a study gives them.
    """

    spec: "FinetuneSpec"
    source: str | None = None
    name: str | None = None
    mesh: str | None = None


def read_subject(
    path: Path,
    settings: Sequence[Sequence[str]] = (),
    *,
    model: str | None = None,
    candidate: str | None = None,
    needed: bool = True,
) -> Subject:
    """The task and the model that a command is given.

    Args:
      path: File of the spec of a task or of a study, or a study's folder.
      settings: As --set gives them.
      model: A model, as --model names it.
      candidate: A candidate of the study, as --candidate names it.
      needed: Whether there must be a model.

    Raises:
      InputError: the spec cannot be read, both or neither of model and candidate are given, there is no such candidate,
        or the spec is of a task and has none.
    """
    if model is not None and candidate is not None:
        raise InputError("--model and --candidate are both given; give one of them.")
    study = read_if_study(path, settings)
    names = [] if study is None else study.names
    if needed and model is None and candidate is None:
        raise InputError(f"--model is missing; name a model{', or a candidate by --candidate' if names else ''}.")
    if study is None:
        from lensjax.tasks.spec import read_spec
        from lensjax.train.spec import FinetuneSpec

        if candidate is not None:
            raise InputError(
                f"{shorten(path, 200)} is the spec of a task, which has no candidates; name a model by --model."
            )
        return Subject(read_spec(path, FinetuneSpec, flat(settings)), model)
    if candidate is None:
        return Subject(study.base_spec, model)
    if candidate not in names:
        near = meant(candidate, names)
        mend = f"did you mean {near}?" if near else f"choose from {listing(names, 20)}."
        raise InputError(f"The study {shorten(study.name)} has no candidate '{shorten(candidate)}'; {mend}")
    one = study.candidate(candidate)
    return Subject(study.finetune_spec(one), one.source, one.name, one.mesh)


def read_if_study(path: Path, settings: Sequence[Sequence[str]] = ()) -> "StudySpec | None":
    """The study in a file or a study's folder; None where it is the file of a task.

    Raises:
      InputError: it cannot be read, or settings are given with a folder.
    """
    if path.is_dir():
        if settings:
            raise InputError(f"{shorten(path, 200)} is a folder, whose study --set cannot change; give the YAML file.")
        from lensjax.study.folder import read_study_folder

        return read_study_folder(path)
    from lensjax.core.specs import read_fields

    if "candidates" not in read_fields(path, "a task or a study", "source and target"):
        return None
    from lensjax.study.spec import read_study

    return read_study(path, flat(settings))


def read_studies(path: Path, settings: Sequence[Sequence[str]] = ()) -> "dict[str, StudySpec]":
    """The studies in a file by task, the one of a file with one task by ""; see `lensjax.study.several`.

    Raises:
      InputError: see `lensjax.study.spec.read_study`.
    """
    from lensjax.core.specs import read_fields
    from lensjax.study.several import task_names
    from lensjax.study.spec import read_study

    names = task_names(read_fields(path, "a study", "candidates, task and budget"), path)
    if not names:
        return {"": read_study(path, flat(settings))}
    return {name: read_study(path, flat(settings), name) for name in names}


def flat(settings: Sequence[Sequence[str]]) -> list[str]:
    """Settings in the order in which they were given."""
    return list(itertools.chain(*settings))
