"""Measuring a curve: a model is fine-tuned on growing subsets of a task's examples."""

import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from lensjax.core.artefacts import Damaged, read_sealed
from lensjax.core.errors import InputError, shorten
from lensjax.core.processes import on_first
from lensjax.models.hub import find_folder
from lensjax.models.inputs import model_fingerprint
from lensjax.train.candidate import Candidate
from lensjax.train.displays import Display
from lensjax.train.prepare import Examples, read_examples
from lensjax.train.recorder import Recorder
from lensjax.train.results import Result, write_curves
from lensjax.train.runs import CLAIM, Claim, Run, check_name, known_result, model_name, open_folder, pinned
from lensjax.train.search import choose_rate, result_of_search
from lensjax.train.spec import FinetuneSpec
from lensjax.train.trackers import check_trackers


class Curve:
    """The runs of a model on subsets of a task's examples, in a folder that all models of a spec share.

    Results that are on disk are read; the model is loaded for the first run that has none.

    Args:
      spec: The task, as `lensjax.tasks.spec.read_spec(path, FinetuneSpec)` reads it.
      source: Folder or hub id of the model.
      name: The model's name in results, and its folder in `out`.
      examples: Those of the largest run.
      out: Folder of results.
      mesh: Devices; by default all, along `fsdp`.
      trackers: Where measurements go besides the log: "tensorboard", "wandb".
      show: Whether to show progress on standard error, or what shows it.
      over_memory: Train also where the machine's memory is not enough.
      samples: Number of test examples that fine-tuned models write answers to, which results keep.

    Raises:
      InputError: the name cannot be that of a folder, or `out` holds something else.
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
        show: bool | Display = False,
        over_memory: bool = False,
        samples: int = 0,
    ) -> None:
        check_name(name)
        check_trackers(trackers)
        self.spec, self.source, self.name, self.examples, self.out = spec, source, name, examples, out
        self._mesh, self._trackers, self._show = mesh, trackers, show
        self._over_memory, self._samples = over_memory, samples
        open_folder(out, spec, examples.digest)

    @property
    def folder(self) -> Path:
        """Folder of the model's runs."""
        return self.out / self.name

    @cached_property
    def candidate(self) -> Candidate:
        """The model, ready to be fine-tuned.

        Raises:
          InputError: see `Candidate`; or the folder holds results of another model.
        """
        how = self.spec, self.source, self.name, self.examples, self.out, self._mesh
        candidate = Candidate(*how, over_memory=self._over_memory, samples=self._samples)
        candidate.claim_folder()
        return candidate

    @cached_property
    def _recorder(self) -> Recorder:
        return Recorder(self.candidate.dtype, self.candidate.mesh.size, self._trackers, show=self._show)

    @cached_property
    def _is_ours(self) -> bool:
        """Whether the folder holds results of this model."""

        def check() -> bool:
            try:
                claim = read_sealed(self.folder / CLAIM, Claim, required=False)
            except Damaged:  # loading the candidate sees to it
                return False
            return claim is not None and claim.weights == model_fingerprint(find_folder(self.source))

        return on_first(check)

    def known(self, size: int, seed: int, *, save_model: bool = False, retry: bool = False) -> Result | None:
        """The result of a number of examples and a seed if it is on disk, and so is the model where that is wanted.

        Args:
          size: Number of training examples.
          seed: Of the choice and order of examples.
          save_model: Whether the model is wanted too.
          retry: Forget a run that failed.

        Raises:
          InputError: the result is of other training examples.
        """
        run = Run.of(self.folder, size, seed)
        return known_result(self.examples, run, retry, save_model) if self._is_ours else None

    def measure(self, size: int, seed: int, *, save_model: bool = False, retry: bool = False) -> Result:
        """The result of a number of examples and a seed, measured if it is not on disk."""
        result = self.known(size, seed, save_model=save_model, retry=retry)
        if result is None:
            (result,) = measure(self.candidate, [size], [seed], self._recorder, save_models=save_model, retry=retry)
        return result


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
    show: bool | Display = False,
    over_memory: bool = False,
) -> Iterator[Result]:
    """Fine-tune a model on nested subsets of a task's examples.

    Results on disk are not made again, and a run that was stopped or killed goes on from its last checkpoint. The
    results of all models in the folder go to its curves.csv.

    Args:
      spec, source, mesh, trackers, show, over_memory: See `Curve`.
      out: Folder of results, which all models of the spec share.
      sizes: Numbers of training examples, such as `rungs(12_800)`.
      seeds: Of the choice and order of examples; each gives a curve.
      name: The model's name in results; by default the last part of its folder's or hub's name.
      save_models: Keep every fine-tuned model, in a folder that `transformers` opens.
      retry: Make failed runs again.

    Yields:
      Every result, once it is on disk.

    Raises:
      InputError: an argument cannot be used, or a file cannot be written.
      Stopped: SIGTERM or SIGINT asked to stop; the same call goes on from there.
    """
    name = model_name(str(source)) if name is None else name
    if "://" in str(out):
        raise InputError(f"{shorten(out)} is not a folder; give one on a file system that all hosts see.")
    check_name(name)
    if min(sizes, default=-1) < 0 or min(seeds, default=-1) < 0:
        raise InputError("Numbers of examples and seeds are whole numbers from 0 up; give at least one of each.")
    check_trackers(trackers)
    spec = pinned(spec, Path(out))
    examples = read_examples(spec, sizes, seeds)
    how: dict[str, Any] = {"mesh": mesh, "trackers": trackers, "show": show, "over_memory": over_memory}
    curve = Curve(spec, str(source), name, examples, Path(out), **how)
    for seed, size in itertools.product(seeds, sizes):
        yield curve.measure(size, seed, save_model=save_models, retry=retry)
    on_first(lambda: str(write_curves(Path(out), spec.max_unwritable)))


def measure(
    candidate: Candidate,
    sizes: Sequence[int],
    seeds: Sequence[int],
    recorder: Recorder,
    *,
    save_models: bool = False,
    retry: bool = False,
) -> Iterator[Result]:
    """The results of a model at every size and seed; those on disk are not made again.

    Args:
      retry: Make failed runs again.

    Raises:
      Stopped: a signal asked to stop; the same call goes on from there.
      InputError: see `Candidate.train` and `choose_rate`.
    """
    for seed in seeds:
        for examples in sizes:
            taken = save_models and (examples, seed) == (candidate.examples.search, 0)
            rate = choose_rate(candidate, recorder, retry=retry, save_model=taken) if examples else 0.0
            run = candidate.planned(examples, seed, rate)
            known = known_result(candidate.examples, run, retry, save_models)
            known = known or result_of_search(candidate, run, save_models)
            yield known or candidate.make(run, recorder, save_model=save_models)
    on_first(lambda: str(write_curves(candidate.out, candidate.spec.max_unwritable)))
