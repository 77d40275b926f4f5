"""`lensjax finetune` and `lensjax curve`: from a checkpoint and a task to points of a curve."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lensjax.cli.arguments import CandidateName, Examples, Mesh, ModelSource, Settings, SpecFile, XlaPreset
from lensjax.cli.console import resumable
from lensjax.core.errors import InputError, shorten
from lensjax.core.terminal import say

if TYPE_CHECKING:
    from lensjax.cli.specs import Subject
    from lensjax.train.results import Result

TrackerName = Literal["tensorboard", "wandb"]


def finetune(
    spec: SpecFile,
    model: ModelSource = None,
    candidate: CandidateName = None,
    winner: bool = False,
    examples: Examples | None = None,
    out: Path | None = None,
    seed: int = 0,
    name: str | None = None,
    mesh: Mesh = None,
    retry: bool = False,
    track: tuple[TrackerName, ...] = (),
    over_memory: bool = False,
    xla_preset: XlaPreset = None,
    settings: Settings = (),
) -> None:
    """Fine-tune a model on some examples or all, test it, save it.

    Writes to the folder OUT, which several models and commands with the same spec may share: curves.csv with a row for
    every result, and under the model's name and the number of examples the log of training, the result and the model
    itself, which `transformers` opens. After SIGTERM, Ctrl-C or a kill, the same command resumes.

    Worked examples

    $ lensjax finetune verses.yaml --model openai-community/gpt2 --examples 3200 --out results

    $ lensjax finetune verses.yaml --model path/to/model --examples 400 --out results --mesh fsdp=4,tensor=2

    $ lensjax finetune study.yaml --winner

    Args:
        winner: Fine-tune the model that the study has chosen, with the learning rate that the study found best for it.
        examples: Number of training examples; 0 tests the model as it is. By default all that the task has beside
            those of validation and test.
        out: Folder of results; for the winner by default one beside the study's, with -winner after its name.
        seed: Seed of the choice of the examples, and of their order.
        name: Name of the model in results; by default the candidate's, or the last part of its folder's or hub's name.
        retry: Repeat the run if it failed before.
        track: Where to send measurements besides the log.
        over_memory: Train also where a batch needs more memory than the machine has.
    """
    from lensjax.cli.specs import read_subject

    if winner:
        if model is not None or candidate is not None:
            raise InputError("--winner is the study's choice; leave out --model and --candidate, or --winner.")
        subject, folder = _winner(spec, settings)
        out = Path(f"{os.path.relpath(folder)}-winner") if out is None else out
    else:
        subject = read_subject(spec, settings, model=model, candidate=candidate)
    if out is None:
        raise InputError("--out is missing; name a folder of results.")
    if examples is None:
        from lensjax.tasks.task import load_task

        examples = sum(1 for _ in load_task(subject.spec).shuffled(seed))
    options = {"name": name or subject.name, "save_models": True, "retry": retry, "trackers": track}
    _measure(subject, [examples], out, mesh, xla_preset, seeds=(seed,), over_memory=over_memory, **options)


def _winner(spec: Path, settings: Settings) -> tuple["Subject", Path]:
    """The model that a study has chosen, and the study's folder."""
    from lensjax.cli.specs import Subject, read_if_study
    from lensjax.study.winner import find_winner

    study = read_if_study(spec, settings)
    if study is None:
        raise InputError(f"{shorten(spec, 200)} is the spec of a task, which has no winner; give that of a study.")
    folder = spec if spec.is_dir() else spec.with_suffix("")
    found = find_winner(folder, None if spec.is_dir() else study)
    if found.doubt:
        say(f"Caution: the choice is not settled: {found.doubt}")
    return Subject(found.spec, found.source, found.name, found.mesh), folder


def curve(
    spec: SpecFile,
    max_examples: Examples,
    out: Path,
    model: ModelSource = None,
    candidate: CandidateName = None,
    seeds: tuple[int, ...] = (0,),
    name: str | None = None,
    mesh: Mesh = None,
    save_models: bool = False,
    retry: bool = False,
    track: tuple[TrackerName, ...] = (),
    over_memory: bool = False,
    xla_preset: XlaPreset = None,
    settings: Settings = (),
) -> None:
    """Fine-tune a model on 200, 400, 800, … examples, test each.

    The subsets are of a task's training examples; each holds the smaller ones. Results are rows of OUT/curves.csv,
    which `lensjax rank` reads once there are several models; finished runs are not repeated. After a stop or a kill,
    the same command resumes.

    Worked examples

    $ lensjax curve verses.yaml --model openai-community/gpt2 --max-examples 12800 --out results

    $ lensjax curve verses.yaml --model facebook/bart-base --max-examples 12800 --out results --seeds 0 1 2

    $ lensjax rank results/curves.csv --target 1638400

    Args:
        max_examples: Largest number of training examples; the ladder ends with the last rung up to it.
        out: Folder of results.
        seeds: Seeds, for each of which one curve is measured.
        name: Name of the model in results; by default the last part of its folder's or hub's name.
        save_models: Keep every fine-tuned model.
        retry: Repeat runs that failed before.
        track: Where to send measurements besides the log.
        over_memory: Train also where a batch needs more memory than the machine has.
    """
    from lensjax.train.prepare import FIRST_RUNG, rungs

    if max_examples < FIRST_RUNG:
        raise InputError(f"--max-examples is {max_examples}; the first rung of the ladder is {FIRST_RUNG}.")
    from lensjax.cli.specs import read_subject

    subject = read_subject(spec, settings, model=model, candidate=candidate)
    options = {"name": name or subject.name, "save_models": save_models, "retry": retry, "trackers": track}
    _measure(subject, rungs(max_examples), out, mesh, xla_preset, seeds=seeds, over_memory=over_memory, **options)


def _measure(
    subject: "Subject", sizes: Sequence[int], out: Path, mesh: str | None, preset: XlaPreset, **options: Any
) -> None:
    """Measure and print; for `options` see `lensjax.train.ladder.measure_curve`."""
    from lensjax.core.presets import use_preset
    from lensjax.core.processes import is_first, start_processes
    from lensjax.train.ladder import measure_curve
    from lensjax.train.results import notes, steps_caution
    from lensjax.train.runs import Run

    task, source = subject.spec, str(subject.source)
    mesh = mesh or subject.mesh
    use_preset(preset)
    start_processes()
    from lensjax.models.sharding import make_mesh

    done: list[Result] = []
    devices = None if mesh is None else make_mesh(mesh)
    results = measure_curve(task, source, out, sizes, mesh=devices, show=True, **options)
    with resumable():
        for result in results:
            done.append(result)
            if is_first():
                say(_sentence(result))
    if is_first():
        if done and (found := done[-1].writing) and (why := found.why_not(task.max_unwritable)):
            say(f"Caution: {done[-1].model} is never to be chosen: {why}.")
        saved = (Run.of(out / one.model, one.examples, one.seed).model for one in done if one.status == "ok")
        for folder in filter(Path.is_dir, saved):
            say(f"Wrote {folder}: the model, which transformers opens")
        say(f"Wrote {out / 'curves.csv'}")
        if caution := steps_caution(done):
            say(f"Caution: {caution}")
        for note in notes(done):
            say(f"Note: {note}")
    if any(result.status == "failed" for result in done):
        sys.exit(1)


def _sentence(result: "Result") -> str:
    from lensjax.train.results import result_sentence

    start = f"{result.model}, {result.examples:,} examples, seed {result.seed}"
    if result.status == "failed":
        return f"{start}: failed, {result.error} (--retry tries again)"
    return f"{start}: {result_sentence(result)}, {result.seconds:,.0f} s"
