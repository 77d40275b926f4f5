"""What lies in a study's folder must be of the data and settings that the study has now."""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lensjax.core.errors import InputError, shorten
from lensjax.core.files import read_json
from lensjax.core.processes import on_first
from lensjax.study.folder import evidence_cells, evidence_file, read_results, runs_folder
from lensjax.study.spec import StudySpec
from lensjax.tasks.task import Task, fingerprint, fingerprints
from lensjax.train.results import read_result
from lensjax.train.runs import kept_spec
from lensjax.train.spec import FinetuneSpec


def check_results(spec: StudySpec, out: Path, task: Task, *, retry: bool = False) -> None:
    """Make sure that what was measured is of the examples and settings of now.

    Args:
      spec: The study.
      out: Its folder.
      task: Its task, as the source has it now.
      retry: Forget the runs of a candidate that is trained otherwise now, if all of them failed.

    Raises:
      InputError: something is of other validation, test or training examples, or a candidate was trained otherwise.
    """
    on_first(lambda: _check(spec, out, task, retry))


def _check(spec: StudySpec, out: Path, task: Task, retry: bool) -> None:
    held_out = fingerprint([*task.validation, *task.test])
    of_folder = {runs_folder(out, candidate): candidate for candidate in spec.candidates}
    kept = {folder: found for folder in of_folder if (found := kept_spec(folder)) is not None}
    if not all(_is_of(found, held_out) for found in kept.values()) or not _same_training_examples(spec, out, task):
        raise InputError(
            f"{shorten(out, 400)} holds results of other examples than the task's source has now; give a new folder "
            "(--out), or the data that it was made with."
        )
    for folder, found in kept.items():
        if found.get("digest") != spec.finetune_spec(of_folder[folder]).digest(held_out):
            _make_way(folder, retry)


def _is_of(kept: dict[str, Any], held_out: str) -> bool:
    """Whether runs were validated and tested on those examples, as far as this version can tell."""
    try:
        made = FinetuneSpec.model_validate(kept.get("spec"))
    except ValidationError:
        return True
    return made.digest(held_out) == kept.get("digest")


def _same_training_examples(spec: StudySpec, out: Path, task: Task) -> bool:
    known = [*_known(spec, out)]
    for seed in {seed for seed, _, _ in known}:
        wanted = {(size, data) for of, size, data in known if of == seed}
        sizes = {size for size, _ in wanted}
        there = fingerprints(itertools.islice(task.shuffled(seed), max(sizes)), sizes)
        if not wanted <= set(there.items()):
            return False
    return True


def _known(spec: StudySpec, out: Path) -> Iterator[tuple[int, int, str]]:
    """Seed, number and fingerprint of the training examples of everything that was measured."""
    for result in read_results(spec, out):
        yield result.seed, result.examples, result.data
    for cell in evidence_cells(spec, out):
        asked = (read_json(evidence_file(out, cell)) or {}).get("asked")
        if isinstance(asked, dict) and isinstance(asked.get("examples"), int):
            yield cell.seed, asked["examples"], str(asked.get("data"))


def _make_way(folder: Path, retry: bool) -> None:
    """Remove runs of other training than now if it was of no use, on another try; raise InputError if it was."""
    found = (read_result(run) for run in folder.glob("*/examples-*"))
    if any(result is not None and result.examples and result.status == "ok" for result in found):
        raise InputError(
            f"{shorten(folder, 400)} holds runs with other training settings than the study has now; give those back, "
            "or remove that folder, and they are made again."
        )
    if retry:
        shutil.rmtree(folder)
