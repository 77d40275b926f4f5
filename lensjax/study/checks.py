"""Checks before a study is run or planned: of its device, its candidates, and the results in its folder."""

import itertools
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import jax
from pydantic import ValidationError

from lensjax.core.artefacts import Damaged
from lensjax.core.errors import InputError, shorten
from lensjax.core.processes import on_first
from lensjax.models.family import family_of
from lensjax.models.hub import find_folder, read_config, read_tokenizer
from lensjax.study.bench import Bench
from lensjax.study.evidence import evidence_asked, evidence_cells
from lensjax.study.folder import read_results, runs_folder
from lensjax.study.spec import StudySpec
from lensjax.tasks.chat import ChatFormat, TemplateRefuses
from lensjax.tasks.task import Task, fingerprint, fingerprints
from lensjax.tasks.tokens import tokenise
from lensjax.tasks.writing import Writing, examine
from lensjax.train.results import Result, read_result
from lensjax.train.runs import KeptSpec, has_our_tokens, kept_spec
from lensjax.train.spec import FinetuneSpec

_CHECKED = 8  # examples that every tokenizer is tried on


def check_results(spec: StudySpec, out: Path, task: Task, *, retry: bool = False) -> None:
    """Make sure that the results in a study's folder come from its present examples and settings.

    Args:
      spec, out: The study and its folder.
      task: Its task, as the source has it now.
      retry: Remove runs with other training settings than now, if all of them failed.

    Raises:
      InputError: a result comes from other validation, test or training examples, or other training settings.
    """
    on_first(lambda: _check(spec, out, task, retry))


def _check(spec: StudySpec, out: Path, task: Task, retry: bool) -> None:
    held_out = fingerprint([*task.validation, *task.test])
    of_folder = {runs_folder(out, candidate): candidate for candidate in spec.candidates}
    kept = {folder: found for folder in of_folder if (found := _kept_spec(folder)) is not None}
    if not all(_is_of(found, held_out) for found in kept.values()) or not _same_training_examples(spec, out, task):
        raise InputError(
            f"{shorten(out, 400)} holds results of other examples than the task's source has now; give a new folder "
            "(--out), or the data that it was made with."
        )
    for folder, found in kept.items():
        if found.digest != spec.finetune_spec(of_folder[folder]).digest(held_out):
            _make_way(folder, retry, found)


def _kept_spec(folder: Path) -> KeptSpec | None:
    try:
        return kept_spec(folder)
    except Damaged:  # opening the folder sees to it
        return None


def _is_of(kept: KeptSpec, held_out: str) -> bool:
    """Whether runs were validated and tested on these examples; True where this version cannot tell."""
    if not has_our_tokens(kept):
        return True
    try:
        made = FinetuneSpec.model_validate(kept.spec)
    except ValidationError:
        return True
    return made.digest(held_out) == kept.digest


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
    """Seed, number and fingerprint of the training examples of every result."""
    for result in read_results(spec, out, {}):
        yield result.seed, result.examples, result.data
    for cell in evidence_cells(spec, out):
        try:
            asked = evidence_asked(out, cell)
        except Damaged:  # it is made again
            continue
        if asked is not None and isinstance(asked.get("examples"), int):
            yield cell.seed, asked["examples"], str(asked.get("data"))


def _make_way(folder: Path, retry: bool, kept: KeptSpec) -> None:
    """Remove runs with other training settings than now where another try is asked for; keep any that went well."""
    results = [_result(run) for run in folder.glob("*/examples-*")]
    if any(result is not None and result.examples and result.status == "ok" for result in results):
        if not has_our_tokens(kept):
            raise InputError(
                f"{shorten(folder, 400)} holds runs of another version of LensJAX, which made other tokens of the same "
                "texts; give a new folder (--out), or remove that one, and they are made again."
            )
        raise InputError(
            f"{shorten(folder, 400)} holds runs with other training settings than the study has now; give those back, "
            "or remove that folder, and they are made again."
        )
    if retry:
        shutil.rmtree(folder)


def _result(run: Path) -> Result | None:
    try:
        return read_result(run)
    except Damaged:  # it is made again
        return None


def check_device(spec: StudySpec) -> None:
    """Make sure that JAX has the device that a study asks for.

    Raises:
      InputError: it has another.
    """
    here = jax.default_backend()
    if spec.device not in ("any", here):
        extra = "tpu" if spec.device == "tpu" else "cuda"
        raise InputError(
            f"The study asks for a {spec.device.upper()} and JAX has only found a {here.upper()}; install what it "
            f"needs (pip install 'lensjax[{extra}]'), or change the field device."
        )


def check_candidates(spec: StudySpec, bench: Bench) -> dict[str, Writing]:
    """Make sure, before any weights are read, that every candidate can be fine-tuned on the task and one be chosen.

    Args:
      spec: The study.
      bench: Of the study, which reads a few examples to try tokenizers on.

    Returns:
      What each candidate's tokenizer cannot write, by the candidates' names.

    Raises:
      InputError: a candidate is missing, its family is not supported, its tokenizer does not suit the task, or none of
        them can write the targets.
    """
    found: dict[str, Writing] = {}
    rows = bench.probes(min(_CHECKED, bench.sizes[-1]), spec.seeds[0])
    for candidate in spec.candidates:
        try:
            folder = find_folder(candidate.source, what="tokenizer")
            config = read_config(folder)
            tokenizer = read_tokenizer(folder, config)
            encoder_decoder = family_of(config.model_type).encoder_decoder
            with suppress(TemplateRefuses):  # which refused_rows tells
                size = config.vocab_size
                tokenise(rows, tokenizer, spec.task, encoder_decoder=encoder_decoder, embeddings=size)
            if spec.finetune_spec(candidate).training.packing:
                from lensjax.models.model import abstract_model
                from lensjax.models.options import make_options
                from lensjax.train.workload import check_packing

                check_packing(abstract_model(config, make_options()))
            found[candidate.name] = examine(
                bench.sample, tokenizer, encoder_decoder=encoder_decoder, model=candidate.source
            )
        except InputError as error:
            raise InputError(f"The candidate {shorten(candidate.name)} cannot be used: {error}") from error
    reasons = [f"{shorten(name)}: {one.why_not(spec.task.max_unwritable)}" for name, one in found.items()]
    if all(one.why_not(spec.task.max_unwritable) for one in found.values()):
        raise InputError(
            f"No candidate could be chosen ({reasons[0]}; and so on for all {len(reasons)}); add one that writes the "
            "targets, or raise max_unwritable in the task."
        )
    return found


def refused_rows(spec: StudySpec, bench: Bench) -> dict[str, str]:
    """The candidates whose chat templates refuse a conversation of the task, each with the first one and why.

    Those that tokenizers are judged by are tried; a run that comes to another one fails.

    Args:
      spec: The study, whose candidates `check_candidates` has passed.
      bench: Of the study.

    Raises:
      InputError: no candidate is left.
    """
    found: dict[str, str] = {}
    for candidate in spec.candidates if spec.task.is_chat else ():
        folder = find_folder(candidate.source, what="tokenizer")
        config = read_config(folder)
        if family_of(config.model_type).encoder_decoder:
            continue
        chat = ChatFormat(read_tokenizer(folder, config))
        try:
            for example in bench.sample:
                chat.render(example.turns, example.where)
        except TemplateRefuses as error:
            found[candidate.name] = str(error)
    if len(found) == len(spec.candidates):
        raise InputError(f"No candidate can be fine-tuned on the task: {next(iter(found.values()))}")
    return found
