"""The cells of a study, computed in this process: fine-tuning runs, kernels, weight metrics and terms of the bound."""

import io
import itertools
import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lensjax.core.errors import InputError, one_line
from lensjax.core.files import make_folder, read_json, write_files
from lensjax.core.processes import is_first, on_first
from lensjax.core.specs import Strict
from lensjax.measure.kernel import measure_kernel
from lensjax.measure.probes import probe_batch
from lensjax.measure.rungs import FinetuneRun, RungLosses, measure_rungs, rung_arrays, rung_flops, rung_losses
from lensjax.models import load, make_mesh
from lensjax.models.hub import find_folder
from lensjax.models.model import Model
from lensjax.models.safetensors_files import weights_fingerprint
from lensjax.study.journal import Cell, CellKind
from lensjax.study.spec import CandidateSpec, StudySpec
from lensjax.tasks.task import Example, Task, fingerprint, load_task
from lensjax.train.candidate import MODEL
from lensjax.train.candidate import Cell as Run
from lensjax.train.ladder import Curve
from lensjax.train.loop import Stopped
from lensjax.train.prepare import Examples, read_examples
from lensjax.train.results import Result, read_result
from lensjax.train.runs import SEARCH

EVIDENCE = "evidence"  # folder of what is measured besides curves
_HELD = 8  # examples of a Hessian's product that are on the devices at a time


@dataclass(frozen=True)
class Outcome:
    """How a cell ended.

    Attributes:
      error: Why it failed; "" where it did not.
      seconds: Wall time, loading and compiling included.
      flops: That it took, which are not counted of weight metrics.
    """

    error: str = ""
    seconds: float = 0.0
    flops: int = 0


class Bench:
    """Where the cells of a study are computed; what they share is made once.

    Args:
      spec: The study.
      out: Its folder.
      show: Whether to show progress of training on standard error.
      retry: Make runs again that failed.
    """

    def __init__(self, spec: StudySpec, out: Path, *, show: bool = False, retry: bool = False) -> None:
        self.spec, self.out, self._show, self._retry = spec, out, show, retry
        self._curves: dict[str, Curve] = {}
        self._examples: dict[str, Examples] = {}
        self._losses: dict[str, RungLosses] = {}  # which are compiled once for all rungs

    @cached_property
    def task(self) -> Task:
        """The task, as its source has it now."""
        return load_task(self.spec.task)

    @cached_property
    def sizes(self) -> list[int]:
        """Numbers of training examples of runs; see `StudySpec.ladder`."""
        return self.spec.ladder(self.available)

    @cached_property
    def available(self) -> int:
        """Number of examples that the task has to train on, as far as the study asks for them."""
        return on_first(lambda: self.task.available(self.spec.counted))

    def probes(self, count: int, seed: int) -> list[Example]:
        """The first training examples of a seed, the same ones for every candidate and rung."""
        return self.task.train(seed, count)

    def compute(self, cell: Cell) -> Outcome:
        """Compute a cell whose result is then on disk; one that is there already is not computed again.

        What is wrong with one candidate is told in the outcome, so that the others can go on.

        Raises:
          Stopped: the process was told to end; the same call goes on.
        """
        began, flops, error = time.perf_counter(), 0, ""
        try:
            flops, error = self._finetune(cell) if cell.kind == "finetune" else self._evidence(cell)
        except (Stopped, KeyboardInterrupt):
            raise
        except InputError as wrong:
            error = str(wrong)
        except Exception as wrong:  # whatever a checkpoint or a compiler makes libraries raise
            error = f"{type(wrong).__name__}: {one_line(wrong, 300)}"
        return Outcome(error, time.perf_counter() - began, flops)

    def curve(self, name: str) -> Curve:
        """The runs of a candidate."""
        if name not in self._curves:
            candidate = self.spec.candidate(name)
            spec = self.spec.finetune_spec(candidate)
            key = spec.model_dump_json()
            if key not in self._examples:
                self._examples[key] = read_examples(spec, self.sizes, self.spec.seeds)
            mesh = None if candidate.mesh is None else make_mesh(candidate.mesh)
            out = runs_folder(self.out, candidate)
            make_folder(out.parent)
            self._curves[name] = Curve(
                spec, candidate.source, name, self._examples[key], out, mesh=mesh, show=self._show
            )
        return self._curves[name]

    def _finetune(self, cell: Cell) -> tuple[int, str]:
        """FLOPs of a run, and why it failed."""
        save = self.spec.keep_models or on_first(lambda: is_awaited(self.spec, self.out, cell))
        result = self.curve(cell.model).measure(cell.examples, cell.seed, save_model=save, retry=self._retry)
        return result.flops, result.error

    def _evidence(self, cell: Cell) -> tuple[int, str]:
        """FLOPs of what is measured besides curves, and no error."""
        path = evidence_file(self.out, cell)
        candidate = self.spec.candidate(cell.model)
        asked = self._asked(cell, candidate)
        found = on_first(lambda: read_json(path))
        if found is None or found.get("asked") != asked:
            on_first(lambda: make_folder(path.parent))
            measure = {"ntk": self._kernel, "weights": self._weights, "hessian": self._hessian}[cell.kind]
            summary, arrays = measure(cell, candidate)
            found = {"asked": asked, **summary}
            if is_first():
                _write(path, found, arrays)
        if cell.examples and not self.spec.keep_models and is_first() and not is_awaited(self.spec, self.out, cell):
            shutil.rmtree(run_folder(self.out, candidate, cell) / MODEL, ignore_errors=True)
        flops = found.get("flops")
        return flops if isinstance(flops, int) else 0, ""

    def _asked(self, cell: Cell, candidate: CandidateSpec) -> dict[str, Any]:
        """What evidence depends on: settings, weights and examples."""
        weights = on_first(lambda: weights_fingerprint(find_folder(candidate.source)))
        if cell.kind == "weights":
            return {"model": weights}
        rows = self.probes(getattr(self.spec.evidence, cell.kind).examples, cell.seed)
        return {"model": weights, "data": fingerprint(rows), **_settings(self.spec, cell)}

    def _load(self, candidate: CandidateSpec, source: str | Path = "") -> Model:
        """The candidate, or a model that was fine-tuned from it."""
        mesh = make_mesh(candidate.mesh)
        return load(source or candidate.source, dtype="float32", param_dtype="float32", mesh=mesh)

    def _finetuned(self, cell: Cell, candidate: CandidateSpec) -> FinetuneRun:
        """The run that a cell needs the model of."""
        folder = run_folder(self.out, candidate, cell)
        result = read_result(folder)
        if result is None or not (folder / MODEL).is_dir():
            raise InputError(f"There is no fine-tuned model in {folder}; run the study again with --retry.")
        return FinetuneRun(folder, result)

    def _kernel(self, cell: Cell, candidate: CandidateSpec) -> tuple[dict[str, Any], Mapping[str, Any]]:
        settings = self.spec.evidence.ntk
        assert settings is not None
        model = self._load(candidate, self._finetuned(cell, candidate).folder / MODEL if cell.examples else "")
        batch = probe_batch(model, self.spec.task, self.probes(settings.examples, cell.seed))
        kernel = measure_kernel(model, batch, settings.functional)
        return kernel.summary(), kernel.arrays()

    def _weights(self, cell: Cell, candidate: CandidateSpec) -> tuple[dict[str, Any], Mapping[str, Any]]:
        from lensjax.models.heavy_tails import weight_metrics  # its libraries are optional

        return asdict(weight_metrics(self._load(candidate))), {}

    def _hessian(self, cell: Cell, candidate: CandidateSpec) -> tuple[dict[str, Any], Mapping[str, Any]]:
        settings = self.spec.evidence.hessian
        assert settings is not None
        run, model = self._finetuned(cell, candidate), self._load(candidate)
        batch = probe_batch(model, self.spec.task, self.probes(settings.examples, cell.seed))
        starts = range(0, settings.examples, _HELD)
        batches = [{name: rows[start : start + _HELD] for name, rows in batch.items()} for start in starts]
        how: dict[str, Any] = {
            "block": settings.block,
            "positive_steps": settings.positive_steps,
            "losses": self._losses.setdefault(candidate.name, rung_losses(model)),
        }
        (rung,) = measure_rungs(model, batches, [run], **how)
        flops = rung_flops(model, batches, **how)  # what was traced for the terms is not traced again
        total = {"examples": rung.examples, "sum_of_largest": float(rung.terms.largest.sum()), "flops": flops}
        return total, rung_arrays(rung)


def runs_folder(out: Path, candidate: CandidateSpec) -> Path:
    """Where `Curve`s of candidates lie: all that have no settings of their own share one."""
    return out / (f"runs-{candidate.name}" if candidate.training else "runs")


def run_folder(out: Path, candidate: CandidateSpec, cell: Cell) -> Path:
    """Where the fine-tuning run of a cell lies."""
    return Run.of(runs_folder(out, candidate) / candidate.name, cell.examples, cell.seed).folder


def evidence_file(out: Path, cell: Cell) -> Path:
    """The JSON file of what was measured; arrays lie beside it, under the same name with .npz."""
    name = f"{cell.kind}-{cell.examples}-seed-{cell.seed}" if cell.examples or cell.seed else cell.kind
    return out / EVIDENCE / cell.model / f"{name}.json"


def evidence_cells(spec: StudySpec, out: Path) -> Iterator[Cell]:
    """The cells besides runs whose results are on disk, of candidates of the study."""
    kinds: tuple[CellKind, ...] = "weights", "ntk", "hessian"
    for name, kind in itertools.product(spec.names, kinds):
        for path in sorted((out / EVIDENCE / name).glob(f"{kind}*.json")):
            named = re.fullmatch(rf"{kind}(?:-(\d+)-seed-(\d+))?", path.stem)  # see `evidence_file`
            if named is not None:
                yield Cell(kind, name, int(named[1] or 0), int(named[2] or 0))


def is_current(spec: StudySpec, out: Path, cell: Cell) -> bool:
    """Whether a cell's result is on disk, of the settings that the spec has now, and so is what other cells need of it.

    Raises:
      InputError: it cannot be read.
    """
    if cell.kind == "finetune":
        folder = run_folder(out, spec.candidate(cell.model), cell)
        there = (folder / MODEL).is_dir() or not is_awaited(spec, out, cell)
        return there and read_result(folder) is not None
    found = read_json(evidence_file(out, cell))
    asked = {} if found is None else found.get("asked")
    return found is not None and isinstance(asked, dict) and _settings(spec, cell).items() <= asked.items()


def curvature_cells(spec: StudySpec, run: Cell) -> list[Cell]:
    """The cells that need the model which a run leaves."""
    hessian, ntk = spec.evidence.hessian, spec.evidence.ntk
    cells = []
    if run.examples and hessian is not None:
        cells.append(run._replace(kind="hessian"))
    if run.examples and ntk is not None and ntk.along_ladder and run.seed == spec.seeds[0]:
        cells.append(run._replace(kind="ntk"))
    return cells


def is_awaited(spec: StudySpec, out: Path, run: Cell) -> bool:
    """Whether the model of a run is needed by a cell whose result is not on disk.

    Raises:
      InputError: a result cannot be read.
    """
    return not all(is_current(spec, out, cell) for cell in curvature_cells(spec, run))


def _settings(spec: StudySpec, cell: Cell) -> dict[str, Any]:
    """What the spec says of how a cell's evidence is measured, and how the model is trained that it is measured at."""
    settings = getattr(spec.evidence, cell.kind)
    found = settings.model_dump(mode="json", exclude={"along_ladder"}) if isinstance(settings, Strict) else {}
    candidate = spec.candidate(cell.model)
    if cell.examples and candidate.training:  # what all candidates share is the same throughout a study
        found["training"] = spec.finetune_spec(candidate).deciding()["training"]
    return found


def read_results(spec: StudySpec, out: Path) -> list[Result]:
    """Every result of fine-tuning that is on disk, candidate by candidate.

    Raises:
      InputError: one cannot be read.
    """
    found = []
    for candidate in spec.candidates:
        folder = runs_folder(out, candidate) / candidate.name
        runs = (read_result(run) for run in sorted(folder.glob("examples-*")))
        found += sorted((r for r in runs if r is not None), key=lambda r: (r.seed, r.examples))
    return [result for result in found if result.seed in spec.seeds]


def read_searches(out: Path, candidate: CandidateSpec, results: Sequence[Result]) -> list[Result]:
    """The runs that a candidate's learning rate was chosen by, but for those that count as a rung's.

    Raises:
      InputError: one cannot be read.
    """
    folder = runs_folder(out, candidate) / candidate.name / SEARCH
    found = (read_result(run) for run in sorted(folder.glob("*")))
    return [result for result in found if result is not None and result not in results]


def read_evidence(out: Path, cell: Cell) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]] | None:
    """What was measured in a cell, numbers and arrays; None where it was not.

    Raises:
      InputError: a file cannot be read.
    """
    path = evidence_file(out, cell)
    summary = read_json(path)
    if summary is None:
        return None
    beside = path.with_suffix(".npz")
    if not beside.exists():
        return summary, {}
    try:
        with np.load(beside, allow_pickle=False) as arrays:
            return summary, dict(arrays)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"Cannot read {beside}; remove it and {path.name}, and they are made again.") from error


def _write(path: Path, summary: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    contents: dict[Path, str | bytes] = {}
    if arrays:
        packed = io.BytesIO()
        np.savez_compressed(packed, **arrays)
        contents[path.with_suffix(".npz")] = packed.getvalue()
    contents[path] = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    write_files(contents)
