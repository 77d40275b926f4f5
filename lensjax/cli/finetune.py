"""`lensjax finetune` and `lensjax curve`: from a checkpoint and a task to points of a curve."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lensjax.cli.data import SpecFile
from lensjax.core.errors import InputError

if TYPE_CHECKING:
    from lensjax.train.results import Result

TrackerName = Literal["tensorboard", "wandb"]


def finetune(
    spec: SpecFile,
    model: str,
    examples: int,
    out: Path,
    seed: int = 0,
    name: str | None = None,
    mesh: str | None = None,
    retry: bool = False,
    track: tuple[TrackerName, ...] = (),
) -> None:
    """Fine-tune a model on some of a task's examples, test it, and save it.

    Writes to the folder OUT, which several models and commands with the same spec may share: curves.csv with a row for
    every result, and under the model's name and the number of examples the log of training, the result and the model
    itself, which `transformers` opens. Stopped by SIGTERM or Ctrl-C, or killed, the same command goes on.

    Worked examples

    $ lensjax finetune verses.yaml --model openai-community/gpt2 --examples 3200 --out results

    $ lensjax finetune verses.yaml --model path/to/model --examples 400 --out results --mesh fsdp=4,tensor=2

    Args:
        spec: YAML file that says what the task is, and under `training` how models are fine-tuned.
        model: Folder of a model, its name on the Hugging Face hub, or pocket:NAME, which is part of LensJAX.
        examples: Number of training examples; 0 tests the model as it is.
        out: Folder of results.
        seed: Of which examples these are, and of their order.
        name: What results call the model; by default the last part of its folder's or hub's name.
        mesh: Devices along each axis (data, fsdp, tensor); all of them along fsdp by default.
        retry: Make the run again if it failed before.
        track: Where to send measurements besides the log.
    """
    _measure(spec, model, [examples], out, (seed,), name, mesh, True, retry, track)


def curve(
    spec: SpecFile,
    model: str,
    max_examples: int,
    out: Path,
    seeds: tuple[int, ...] = (0,),
    name: str | None = None,
    mesh: str | None = None,
    save_models: bool = False,
    retry: bool = False,
    track: tuple[TrackerName, ...] = (),
) -> None:
    """Fine-tune a model on 0, 200, 400, 800 and so on of a task's examples, and test it on each.

    Each subset holds the smaller ones. Results are rows of OUT/curves.csv, which `lensjax rank` reads once there are
    several models; those that are there already are not made again. Stopped or killed, the same command goes on.

    Worked examples

    $ lensjax curve verses.yaml --model openai-community/gpt2 --max-examples 12800 --out results

    $ lensjax curve verses.yaml --model google-t5/t5-small --max-examples 12800 --out results --seeds 0 1 2

    $ lensjax rank results/curves.csv --target 1638400

    Args:
        spec: YAML file that says what the task is, and under `training` how models are fine-tuned.
        model: Folder of a model, its name on the Hugging Face hub, or pocket:NAME, which is part of LensJAX.
        max_examples: Largest number of training examples; the ladder ends with the last rung that does not pass it.
        out: Folder of results.
        seeds: One curve is measured for each.
        name: What results call the model; by default the last part of its folder's or hub's name.
        mesh: Devices along each axis (data, fsdp, tensor); all of them along fsdp by default.
        save_models: Keep every fine-tuned model.
        retry: Make runs again that failed before.
        track: Where to send measurements besides the log.
    """
    from lensjax.train.ladder import rungs
    from lensjax.train.prepare import FIRST_RUNG

    if max_examples < FIRST_RUNG:
        raise InputError(f"--max-examples is {max_examples}; the first rung of the ladder is {FIRST_RUNG}.")
    _measure(spec, model, rungs(max_examples), out, seeds, name, mesh, save_models, retry, track)


def _measure(
    spec: Path,
    model: str,
    sizes: Sequence[int],
    out: Path,
    seeds: Sequence[int],
    name: str | None,
    mesh: str | None,
    save_models: bool,
    retry: bool,
    track: tuple[TrackerName, ...],
) -> None:
    from lensjax.core.processes import is_first, start_processes
    from lensjax.tasks.spec import read_spec
    from lensjax.train.ladder import measure_curve
    from lensjax.train.results import steps_caution
    from lensjax.train.spec import FinetuneSpec

    task = read_spec(spec, FinetuneSpec)
    start_processes()
    from lensjax.models import make_mesh

    done: list[Result] = []
    devices = None if mesh is None else make_mesh(mesh)
    results = measure_curve(
        task,
        model,
        out,
        sizes,
        seeds=seeds,
        name=name,
        mesh=devices,
        save_models=save_models,
        retry=retry,
        trackers=track,
        show=True,
    )
    with going_on_later():
        for result in results:
            done.append(result)
            if is_first():
                print(_sentence(result), flush=True)
    if is_first():
        print(f"Wrote {out / 'curves.csv'}")
        if caution := steps_caution(done):
            print(f"Caution: {caution}")
    if any(result.status == "failed" for result in done):
        sys.exit(1)


@contextmanager
def going_on_later() -> Iterator[None]:
    """Within it, an end that was asked for exits in a sentence: the same command goes on."""
    from lensjax.train.loop import Stopped

    try:
        yield
    except Stopped:
        print("lensjax: stopped; what was reached is saved, and the same command goes on from there.", file=sys.stderr)
        sys.exit(143)
    except KeyboardInterrupt:
        print("lensjax: interrupted; what was finished is kept, and the same command goes on.", file=sys.stderr)
        sys.exit(130)


def _sentence(result: "Result") -> str:
    start = f"{result.model}, {result.examples:,} examples, seed {result.seed}"
    if result.status == "failed":
        return f"{start}: failed, {result.error} (--retry tries again)"
    error = "" if result.standard_error is None else f" ± {result.standard_error:.4f}"
    return f"{start}: test loss {result.loss:.4f}{error} nats per target token, {result.seconds:,.0f} s"
