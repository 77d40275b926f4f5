"""One interface for everything that a study measures of its candidates, and the registry of measurements.

A measurement is a Pydantic model: its fields are the settings that `evidence.NAME` takes in study.yaml, where true
stands for the defaults. Adding one is adding one file, here or in a package of its own:

    # lensjax/measure/kinds/size.py
    @MEASUREMENTS.register("size")
    class Size(Measurement):
        title, label, help = "Size", "size", "how many parameters every candidate has"
        findings = SizeFindings  # a Pydantic model with the fields that report.json gets

        def measure(self, subject):
            params = subject.model().params
            return Measured({"parameters": sum(leaf.size for leaf in jax.tree.leaves(params))})

        @classmethod
        def collect(cls, records):
            cells = {name: records.read(Cell("size", name, 0, records.seeds[0])) for name in records.models}
            return SizeFindings(sizes={name: one.summary["parameters"] for name, one in cells.items() if one})

        @classmethod
        def show(cls, findings):
            rows = [(name, [f"{size:,}"]) for name, size in findings.sizes.items()]
            return [Section("sizes", "Sizes", tables=[DataTable("Sizes of candidates", ["Parameters"], rows)])]

Studies then offer it as `evidence: {size: true}`, plan it, compute it once, go on after a kill, and report it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from pydantic import BaseModel

from lensjax.core.errors import InputError
from lensjax.core.registry import Registry
from lensjax.core.sections import Section
from lensjax.core.specs import Strict
from lensjax.curves.table import CurveTable
from lensjax.tasks.spec import TaskSpec
from lensjax.tasks.task import Example
from lensjax.train.results import Result, read_result
from lensjax.train.runs import MODEL

if TYPE_CHECKING:  # what is computed with is imported by what computes
    from lensjax.measure.rungs import FinetuneRun
    from lensjax.models.model import Batch, Model

FINETUNE = "finetune"  # the measurement that curves are made of; without it a candidate drops out

Arrays = Mapping[str, np.ndarray[Any, Any]]


class Cell(NamedTuple):
    """A piece of a study's work, independent of all others but for the fine-tuned model that it may be about.

    Attributes:
      kind: Name of the measurement.
      model: Name of the candidate.
      examples, seed: Of fine-tuning; 0 examples stand for the pretrained model.
    """

    kind: str
    model: str
    examples: int = 0
    seed: int = 0

    def __str__(self) -> str:
        label = MEASUREMENTS[self.kind].label if self.kind in MEASUREMENTS else self.kind
        which = f", {self.examples:,} examples, seed {self.seed}" if self.examples or not label else ""
        return f"{self.model}{which}{label and ', '}{label}"


@dataclass(frozen=True)
class Measured:
    """The result of a cell.

    Attributes:
      summary: Numbers and texts by name, as JSON can hold them.
      arrays: Arrays by name.
      flops: Floating-point operations that it took; 0 where they are not counted.
      error: Why it failed; "" where it did not.
    """

    summary: Mapping[str, Any] = field(default_factory=dict)
    arrays: Arrays = field(default_factory=dict)
    flops: int = 0
    error: str = ""


@dataclass(frozen=True)
class Subject:
    """The model that a cell is about, and the examples that it is measured on.

    Attributes:
      cell: The cell.
      source: Folder or hub id of the candidate.
      task: The task.
      mesh: Devices along each axis, as in "fsdp=4,tensor=2"; all devices along fsdp where None.
      examples: The first `Measurement.rows` training examples of the cell's seed, the same for every model.
      folder: Of the cell's fine-tuning run.
      fine_tune: Makes that run, or reads its result where it is on disk.
      shared: A store for anything that several cells of the candidate can use, such as compiled programs.
    """

    cell: Cell
    source: str
    task: TaskSpec
    mesh: str | None
    examples: Sequence[Example]
    folder: Path
    fine_tune: Callable[[], Result]
    shared: dict[str, Any]

    @cached_property
    def run(self) -> "FinetuneRun":
        """The fine-tuning run whose model the cell is about.

        Raises:
          InputError: it left no model.
        """
        from lensjax.measure.rungs import FinetuneRun

        result = read_result(self.folder)
        if result is None or not (self.folder / MODEL).is_dir():
            raise InputError(f"There is no fine-tuned model in {self.folder}; run the study again with --retry.")
        return FinetuneRun(self.folder, result)

    def pretrained(self) -> "Model":
        """The candidate before fine-tuning, in float32."""
        return self._load(self.source)

    def model(self) -> "Model":
        """The model that the cell is about, in float32: the fine-tuned one of a rung above 0."""
        return self._load(self.run.folder / MODEL) if self.cell.examples else self.pretrained()

    def batch(self, model: "Model") -> "Batch":
        """The examples as one batch of a model's tokens, {name: [rows, time]}."""
        from lensjax.measure.probes import probe_batch

        return probe_batch(model, self.task, list(self.examples))

    def _load(self, source: str | Path) -> "Model":
        from lensjax.models.loading import load
        from lensjax.models.sharding import make_mesh

        return load(source, dtype="float32", param_dtype="float32", mesh=make_mesh(self.mesh))


@dataclass(frozen=True)
class Records:
    """The results of a study so far, for measurements to read back.

    Attributes:
      models: Names of the candidates.
      sizes: Training examples of the rungs, 0 included.
      seeds: Of the study.
      curves: Losses of the candidates that have any; None where there are none.
      read: Gives a cell's result; None where there is none. Raises InputError where a file cannot be read.
    """

    models: Sequence[str]
    sizes: Sequence[int]
    seeds: Sequence[int]
    curves: CurveTable | None
    read: Callable[[Cell], Measured | None]


class Measurement(Strict):
    """A kind of evidence about candidates: its settings are its fields, its behaviour its methods.

    Only `title`, `label`, `help` and `measure` are needed; see the module's example.

    Attributes:
      title: Its name as a heading, such as "Kernel".
      label: Its name in a sentence, such as "kernel".
      help: The comment on it and its settings in the file that `lensjax study init` writes.
      by_default: Whether it is measured in studies whose file does not mention it.
      counts_flops: Whether its operations are counted, by `flops` and `Measured.flops`.
      findings: A Pydantic model with the fields that it adds to report.json; each needs a default.
    """

    title: ClassVar[str]
    label: ClassVar[str]
    help: ClassVar[str]
    by_default: ClassVar[bool] = False
    counts_flops: ClassVar[bool] = True
    findings: ClassVar[type[BaseModel] | None] = None

    @property
    def rows(self) -> int:
        """Number of training examples that it is measured on; 0 where it needs none."""
        return 0

    def seeds_on(self, rung: int, seeds: Sequence[int]) -> Sequence[int]:
        """The seeds of a candidate's cells on a rung; by default one cell, of the pretrained model.

        A cell of a rung above 0 is about the model that the run of that rung and seed leaves, and waits for it.

        Args:
          rung: Number of training examples; 0 stands for the pretrained model.
          seeds: Of the study.
        """
        return () if rung else seeds[:1]

    def deciding(self) -> dict[str, Any]:
        """The settings that results depend on, as JSON; by default all. Cells are computed again when they change."""
        return self.model_dump(mode="json")

    def flops(self, model: "Model", batch: "Batch | None") -> int:
        """Floating-point operations that a cell takes, for `lensjax plan`.

        Args:
          model: With shapes in place of weights.
          batch: {name: [rows, time]}; None where `rows` is 0.

        Raises:
          InputError: it cannot be computed, such as for lack of memory; says why.
        """
        return 0

    def measure(self, subject: Subject) -> Measured:
        """Measure a cell.

        Args:
          subject: The model that the cell is about, and the examples.

        Raises:
          InputError: it cannot be measured; the study goes on with other cells.
        """
        raise NotImplementedError

    @classmethod
    def collect(cls, records: Records) -> BaseModel | None:
        """The findings of a study, an instance of `findings`."""
        return None

    @classmethod
    def for_methods(cls, records: Records) -> Mapping[str, Any]:
        """A value for each candidate, by its name, for selection methods; see `lensjax.selection.evidence`."""
        return {}

    @classmethod
    def show(cls, findings: Any) -> Sequence[Section]:
        """Sections of the study's page, which shows candidates in the order of the ranking.

        Args:
          findings: Has the fields of `findings`, as `collect` returned them.
        """
        return ()


MEASUREMENTS: Registry[type[Measurement]] = Registry("measurement", "lensjax.measure.kinds", "lensjax.measurements")


def selectable() -> dict[str, type[Measurement]]:
    """The measurements that study.yaml can switch on and off: all but fine-tuning itself.

    Raises:
      InputError: one that another package registers cannot be imported.
    """
    return {name: kind for name, kind in MEASUREMENTS.items() if name != FINETUNE}
