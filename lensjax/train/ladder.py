"""From a checkpoint and a task to points of a curve: one for every number of training examples asked for."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from jax.sharding import Mesh

from lensjax.errors import InputError, shorten
from lensjax.files import check_new_folder, write_files
from lensjax.train.candidate import CHECKPOINTS, Candidate, Cell
from lensjax.train.distributed import is_first, on_first, stop_requested, stopping_on_signals, wait_for_all
from lensjax.train.loop import Stopped
from lensjax.train.prepare import FIRST_RUNG, read_examples
from lensjax.train.prepare import FOLDER as TOKENS
from lensjax.train.recorder import Recorder
from lensjax.train.results import RESULT, Result, read_json, read_result, write_curves, write_result
from lensjax.train.spec import FinetuneSpec
from lensjax.train.trackers import check_trackers

SEARCH = "learning_rates"  # folder of the runs that a learning rate is chosen by


def rungs(largest: int) -> list[int]:
    """Numbers of training examples of a ladder: 0, 200, 400, 800 and so on up to the largest."""
    sizes = [0]
    while FIRST_RUNG << (len(sizes) - 1) <= largest:
        sizes.append(FIRST_RUNG << (len(sizes) - 1))
    return sizes


def open_folder(out: Path, spec: FinetuneSpec, digest: str) -> None:
    """Make the folder of a spec's results, or go on in it.

    Raises:
      InputError: it holds the results of another spec or other data, or cannot be written.
    """

    def open_it() -> None:
        path = out / "spec.json"
        found = read_json(path)
        if found is not None and not any(out.glob("*/examples-*")) and not any(out.glob(f"*/{SEARCH}")):
            found = None  # nothing came of that spec
        elif found is None and out.exists() and (not out.is_dir() or any(map(_is_foreign, out.iterdir()))):
            raise InputError(f"{shorten(out, 400)} is there already and holds something else; give a new folder.")
        if found is None:
            if not out.exists():
                check_new_folder(out)
            content = {"digest": digest, "spec": spec.model_dump(mode="json")}
            out.mkdir(parents=True, exist_ok=True)
            write_files({path: json.dumps(content, indent=2) + "\n"})
        elif found.get("digest") != digest:
            raise InputError(
                f"{shorten(out, 400)} holds results of another spec, or of other validation and test data; give a new "
                "folder, or the spec that it was made with."
            )

    on_first(open_it)


def _is_foreign(path: Path) -> bool:
    """Whether a file is none that a killed command of ours has left half-written."""
    return not (path.name.startswith(".lensjax-") and path.suffix == ".part")


def choose_rate(candidate: Candidate, seed: int, recorder: Recorder) -> float:
    """The learning rate of the lowest validation loss on the first rung, found once for a model and kept in its folder.

    Raises:
      InputError: training fails with every one of them, or the folder cannot be read or written.
    """
    rates = candidate.spec.training.learning_rates
    if len(rates) == 1:
        return rates[0]
    path = candidate.folder / "learning_rate.json"
    found = read_json(path)
    kept = None if found is None else found.get("learning_rate")
    if isinstance(kept, float):
        return kept
    examples = min(FIRST_RUNG, len(candidate.tokens.train[seed]))
    losses: dict[float, float] = {}
    for rate in rates:
        cell = Cell(examples, seed, rate, candidate.folder / SEARCH / f"{rate:g}")
        result = read_result(cell.folder) or candidate.run(cell, recorder)
        if result.validation_loss is not None and result.status == "ok":
            losses[rate] = result.validation_loss
    if not losses:
        raise InputError(
            f"{candidate.name}: training failed with every learning rate tried ({', '.join(map(str, rates))}); "
            "set training.learning_rate to lower ones."
        )
    best = min(losses, key=lambda rate: losses[rate])
    if is_first():
        content = {
            "learning_rate": best,
            "examples": examples,
            "seed": seed,
            "validation_losses": {f"{rate:g}": losses.get(rate) for rate in rates},
        }
        write_files({path: json.dumps(content, indent=2) + "\n"})
    wait_for_all("learning rate")
    return best


def _from_search(candidate: Candidate, cell: Cell, save_models: bool) -> Result | None:
    """The result that the search for a learning rate has found already, if it is of this cell."""
    searched = candidate.folder / SEARCH / f"{cell.rate:g}"
    found = None if save_models or not cell.examples else read_result(searched)
    if found is None or (found.examples, found.seed) != (cell.examples, cell.seed):
        return None
    if is_first():
        cell.folder.mkdir(parents=True, exist_ok=True)
        for path in searched.iterdir():
            if path.is_file() and path.name != RESULT:
                shutil.copyfile(path, cell.folder / path.name)
        write_result(cell.folder, found)
        write_curves(candidate.out)
    wait_for_all("result")
    return found


def measure_curve(
    spec: FinetuneSpec,
    source: str | Path,
    out: str | Path,
    sizes: Sequence[int],
    *,
    seeds: Sequence[int] = (0,),
    name: str | None = None,
    mesh: Mesh | None = None,
    save_models: bool = False,
    retry: bool = False,
    trackers: Sequence[str] = (),
    show: bool = False,
) -> Iterator[Result]:
    """Fine-tune a model on nested subsets of a task's examples; yields every result once it is on disk.

    Results that are there already are not made again, and a run that was stopped or killed goes on from its last
    checkpoint. Rows of all models go to curves.csv in `out`.

    Args:
      spec: The task, as `lensjax.data.spec.read_spec(path, FinetuneSpec)` reads it.
      source: Folder or hub id of the model.
      out: Folder of results, which models measured with the same spec share.
      sizes: Numbers of training examples, such as `rungs(12_800)`.
      seeds: Of the choice and order of examples; one curve for each.
      name: What results call the model; the last part of its folder's or hub's name where not given.
      mesh: Devices; all there are, along `fsdp`, where not given.
      save_models: Keep every fine-tuned model, in a folder that `transformers` opens.
      retry: Make runs again that failed.
      trackers: Where measurements go besides the log: "tensorboard", "wandb".
      show: Whether to show progress on standard error.

    Raises:
      InputError: something given cannot be used, or a file cannot be written.
      Stopped: the process was told to end by SIGTERM or SIGINT; the same call goes on.
    """
    name = _model_name(str(source)) if name is None else name
    if not re.fullmatch(r"[\w.+-][\w.+ -]*", name) or name in (".", "..", TOKENS):
        raise InputError(f"'{shorten(name)}' cannot name a folder of results; give another name.")
    if min(sizes, default=-1) < 0 or min(seeds, default=-1) < 0:
        raise InputError("Numbers of examples and seeds are whole numbers from 0 up, and at least one of each.")
    check_trackers(trackers)
    examples = read_examples(spec, sizes, seeds)
    open_folder(Path(out), spec, examples.digest)
    candidate = Candidate(spec, str(source), name, examples, Path(out), mesh)
    _claim(candidate)
    recorder = Recorder(candidate.dtype, candidate.mesh.size, trackers, show=show)
    with stopping_on_signals():
        yield from measure(candidate, sizes, seeds, recorder, save_models=save_models, retry=retry)


def measure(
    candidate: Candidate,
    sizes: Sequence[int],
    seeds: Sequence[int],
    recorder: Recorder,
    *,
    save_models: bool = False,
    retry: bool = False,
) -> Iterator[Result]:
    """The results of a model at every size and seed; those that are on disk are not made again.

    Args:
      retry: Make failed runs again.

    Raises:
      Stopped: the process was told to end; the same call goes on.
      InputError: see `Candidate.run` and `choose_rate`.
    """
    for seed in seeds:
        for examples in sizes:
            rate = choose_rate(candidate, seeds[0], recorder) if examples else 0.0
            cell = candidate.cell(examples, seed, rate)
            found = read_result(cell.folder) or _from_search(candidate, cell, save_models)
            missing = save_models and not (cell.folder / "model").exists()
            if found is None or (retry and found.status == "failed") or (missing and found.status == "ok"):
                if stop_requested():
                    raise Stopped
                found = candidate.run(cell, recorder, save_model=save_models)
            elif is_first() and found.status == "ok":
                shutil.rmtree(cell.folder / CHECKPOINTS, ignore_errors=True)  # where it was killed before doing so
            yield found
    if is_first():
        write_curves(candidate.out)


def _claim(candidate: Candidate) -> None:
    """Note whose results a model's folder holds; raise InputError where they are another model's."""

    def claim() -> None:
        path = candidate.folder / "model.json"
        found = read_json(path)
        if found is None:
            candidate.folder.mkdir(parents=True, exist_ok=True)
            content = {"source": candidate.source, "weights": candidate.weights}
            write_files({path: json.dumps(content, indent=2) + "\n"})
        elif found.get("weights") != candidate.weights:
            raise InputError(
                f"{shorten(candidate.folder, 400)} holds results of another model "
                f"({shorten(found.get('source'), 200)}); give this one another name."
            )

    on_first(claim)


def _model_name(source: str) -> str:
    """The last part of a folder's or hub's name."""
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() else source.rstrip("/").rsplit("/", 1)[-1]
