"""From a checkpoint and a task to points of a curve: one for every number of training examples asked for."""

import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from lensjax.errors import InputError, shorten
from lensjax.files import locked, make_folder, write_files
from lensjax.models.hub import find_folder
from lensjax.models.safetensors_files import weights_fingerprint
from lensjax.train.candidate import CHECKPOINTS, MODEL, Candidate, Cell
from lensjax.train.distributed import on_first, stop_requested, stopping_on_signals
from lensjax.train.loop import Stopped
from lensjax.train.prepare import FIRST_RUNG, Examples, read_examples
from lensjax.train.prepare import FOLDER as TOKENS
from lensjax.train.recorder import LOG, Recorder
from lensjax.train.results import CURVES, LOCK, Result, read_json, read_result, write_curves, write_result
from lensjax.train.spec import FinetuneSpec
from lensjax.train.trackers import check_trackers

SPEC = "spec.json"
CLAIM = "model.json"  # whose results a model's folder holds
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
        path = out / SPEC
        found = read_json(path)
        if found is not None and not any(out.glob("*/examples-*")) and not any(out.glob(f"*/{SEARCH}")):
            found = None  # nothing came of that spec
        if found is None:
            content = {"digest": digest, "spec": spec.model_dump(mode="json")}
            write_files({path: json.dumps(content, indent=2) + "\n"})
        elif found.get("digest") != digest:
            raise InputError(
                f"{shorten(out, 400)} holds results of another spec, or of other validation and test data; give a new "
                "folder, or the spec that it was made with."
            )
        yield


def _is_foreign(folder: Path) -> bool:
    """Whether a folder holds something and no spec, besides what commands leave that were killed before writing one."""
    names = {path.name for path in folder.iterdir()} - {LOCK}
    left = {name for name in names if name.startswith(".lensjax-") and name.endswith(".part")}
    return names != left and read_json(folder / SPEC) is None


def choose_rate(candidate: Candidate, recorder: Recorder, *, retry: bool = False) -> float:
    """The learning rate of the lowest validation loss on the first rung, found once for a model and kept in its folder.

    Args:
      retry: Make runs again that failed.

    Raises:
      InputError: training fails with every one of them, or the folder cannot be read or written.
    """
    rates = candidate.spec.training.learning_rates
    if len(rates) == 1:
        return rates[0]
    path = candidate.folder / "learning_rate.json"
    cells = [_search_cell(candidate, rate) for rate in rates]
    kept = on_first(lambda: read_json(path))
    if kept is not None and kept.get("data") == candidate.fingerprint(cells[0]):
        return float(str(kept["learning_rate"]))
    results = [_known(candidate.examples, cell, retry) or _run(candidate, cell, recorder) for cell in cells]
    found = {r.learning_rate: r.validation_loss for r in results if r.status == "ok" and r.validation_loss is not None}
    if not found:
        raise InputError(
            f"{candidate.name}: training failed with every learning rate tried ({', '.join(map(str, rates))}), with "
            f"{rates[-1]} because {results[-1].error}; mend that in the spec, and use --retry."
        )
    best = min(rates, key=lambda rate: found.get(rate, math.inf))

    def keep() -> None:
        content = {
            "learning_rate": best,
            "examples": candidate.examples.search,
            "seed": 0,
            "data": candidate.fingerprint(cells[0]),
            "validation_losses": {f"{rate:g}": found.get(rate) for rate in rates},
        }
        write_files({path: json.dumps(content, indent=2) + "\n"})

    on_first(keep)
    return best


def _search_cell(candidate: Candidate, rate: float) -> Cell:
    """The run that tries a learning rate."""
    return Cell(candidate.examples.search, 0, rate, candidate.folder / SEARCH / f"{rate:g}")


def _known(examples: Examples, cell: Cell, retry: bool, save_model: bool = False) -> Result | None:
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


def _run(candidate: Candidate, cell: Cell, recorder: Recorder, save_model: bool = False) -> Result:
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

        on_first(lock)
        result = candidate.run(cell, recorder, save_model=save_model)
        if stop_requested():
            raise Stopped
    return result


def _from_search(candidate: Candidate, cell: Cell) -> Result | None:
    """The result that the search for a learning rate has found already, if it is of this run."""
    searched = _search_cell(candidate, cell.rate)
    if (searched.examples, searched.seed) != (cell.examples, cell.seed) or not cell.examples:
        return None

    def take() -> dict[str, Any] | None:
        found = read_result(searched.folder)
        if found is None:
            return None
        make_folder(cell.folder)
        log = searched.folder / LOG
        write_files({cell.folder / LOG: log.read_text(encoding="utf-8")} if log.exists() else {})
        write_result(cell.folder, found)
        write_curves(candidate.out)
        return found.model_dump(mode="json")

    found = on_first(take)
    return None if found is None else Result.model_validate(found)


class Curve:
    """The runs of a model on subsets of a task's examples, in a folder that models measured with one spec share.

    Runs that are on disk are read; the model is loaded for the first one that is not.

    Args:
      spec: The task, as `lensjax.data.spec.read_spec(path, FinetuneSpec)` reads it.
      source: Folder or hub id of the model.
      name: What results call the model, and its folder in `out`.
      examples: Those of the largest run.
      out: Folder of results.
      mesh: Devices; all there are, along `fsdp`, where not given.
      trackers: Where measurements go besides the log: "tensorboard", "wandb".
      show: Whether to show progress on standard error.

    Raises:
      InputError: the name is no folder's, or `out` holds something else.
    """

    def __init__(
        self,
        spec: FinetuneSpec,
        source: str,
        name: str,
        examples: Examples,
        out: Path,
        *,
        mesh: Mesh | None = None,
        trackers: Sequence[str] = (),
        show: bool = False,
    ) -> None:
        check_name(name)
        check_trackers(trackers)
        self.spec, self.source, self.name, self.examples, self.out = spec, source, name, examples, out
        self._mesh, self._trackers, self._show = mesh, trackers, show
        open_folder(out, spec, examples.digest)

    @property
    def folder(self) -> Path:
        """Where the model's runs lie."""
        return self.out / self.name

    @cached_property
    def candidate(self) -> Candidate:
        """The model, ready to be fine-tuned.

        Raises:
          InputError: see `Candidate`; or the folder holds results of another model.
        """
        candidate = Candidate(self.spec, self.source, self.name, self.examples, self.out, self._mesh)
        _claim(candidate)
        return candidate

    @cached_property
    def _recorder(self) -> Recorder:
        return Recorder(self.candidate.dtype, self.candidate.mesh.size, self._trackers, show=self._show)

    @cached_property
    def _is_ours(self) -> bool:
        """Whether the folder holds results of this model."""

        def check() -> bool:
            claim = read_json(self.folder / CLAIM)
            return claim is not None and claim.get("weights") == weights_fingerprint(find_folder(self.source))

        return on_first(check)

    def known(self, size: int, seed: int, *, save_model: bool = False, retry: bool = False) -> Result | None:
        """The result of so many examples and a seed where it is on disk, and with it the model if that is asked for.

        Args:
          retry: Forget a run that failed.

        Raises:
          InputError: it is of other training examples.
        """
        return _known(self.examples, Cell.of(self.folder, size, seed), retry, save_model) if self._is_ours else None

    def measure(self, size: int, seed: int, *, save_model: bool = False, retry: bool = False) -> Result:
        """The result of so many examples and a seed; see `measure_curve`."""
        found = self.known(size, seed, save_model=save_model, retry=retry)
        if found is None:
            (found,) = measure(self.candidate, [size], [seed], self._recorder, save_models=save_model, retry=retry)
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
      spec, source, mesh, trackers, show: See `Curve`.
      out: Folder of results, which models measured with the same spec share.
      sizes: Numbers of training examples, such as `rungs(12_800)`.
      seeds: Of the choice and order of examples; one curve for each.
      name: What results call the model; the last part of its folder's or hub's name where not given.
      save_models: Keep every fine-tuned model, in a folder that `transformers` opens.
      retry: Make runs again that failed.

    Raises:
      InputError: something given cannot be used, or a file cannot be written.
      Stopped: the process was told to end by SIGTERM or SIGINT; the same call goes on.
    """
    name = model_name(str(source)) if name is None else name
    if "://" in str(out):
        raise InputError(f"{shorten(out)} is no folder; results need a file system, which all hosts see.")
    check_name(name)
    if min(sizes, default=-1) < 0 or min(seeds, default=-1) < 0:
        raise InputError("Numbers of examples and seeds are whole numbers from 0 up, and at least one of each.")
    check_trackers(trackers)
    examples = read_examples(spec, sizes, seeds)
    curve = Curve(spec, str(source), name, examples, Path(out), mesh=mesh, trackers=trackers, show=show)
    for seed, size in itertools.product(seeds, sizes):
        yield curve.measure(size, seed, save_model=save_models, retry=retry)
    on_first(lambda: str(write_curves(Path(out))))


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
            rate = choose_rate(candidate, recorder, retry=retry) if examples else 0.0
            cell = candidate.cell(examples, seed, rate)
            found = _known(candidate.examples, cell, retry, save_models)
            if found is None and not save_models:
                found = _from_search(candidate, cell)
            yield found or _run(candidate, cell, recorder, save_models)
    on_first(lambda: str(write_curves(candidate.out)))


def check_name(name: str) -> None:
    """Raise InputError where a name cannot be that of a folder of a model's results."""
    if not re.fullmatch(r"[\w+-][\w.+ -]*", name) or name in (TOKENS, CURVES, SPEC):
        raise InputError(f"'{shorten(name)}' cannot name a folder of results; give another name.")


def _claim(candidate: Candidate) -> None:
    """Note whose results a model's folder holds; raise InputError where they are another model's."""

    def claim() -> None:
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

    on_first(claim)


def model_name(source: str) -> str:
    """The last part of a folder's or hub's name, or of that of a bundled model."""
    path = Path(os.path.expanduser(source))
    return path.resolve().name if path.exists() else re.split("[/:]", source.rstrip("/"))[-1]
