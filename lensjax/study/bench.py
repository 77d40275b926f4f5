"""Computing a study's cells in this process."""

import shutil
import time
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lensjax.core.artefacts import Damaged
from lensjax.core.errors import InputError, one_line, shorten
from lensjax.core.files import is_disk_full, make_folder
from lensjax.core.processes import is_first, on_first, peer_lost
from lensjax.measure.measurement import FINETUNE, Cell, Measured, Subject
from lensjax.models.hub import find_folder
from lensjax.models.inputs import model_fingerprint
from lensjax.study.evidence import evidence_file, read_evidence, write_evidence
from lensjax.study.folder import is_awaited, run_folder, runs_folder, settings_of
from lensjax.study.spec import StudySpec
from lensjax.tasks.task import Example, Task, fingerprint, load_task
from lensjax.tasks.writing import sample
from lensjax.train.displays import Display
from lensjax.train.prepare import Examples, read_examples
from lensjax.train.results import Result
from lensjax.train.runs import MODEL

if TYPE_CHECKING:  # what trains is imported by what computes a cell
    from lensjax.train.ladder import Curve


@dataclass(frozen=True)
class Outcome:
    """How a cell ended.

    Attributes:
      error: Why it failed; "" where it did not.
      seconds: Wall time, loading and compiling included.
      flops: Floating-point operations that it took; 0 where they are not counted.
    """

    error: str = ""
    seconds: float = 0.0
    flops: int = 0


class Bench:
    """Computes cells of a study; what they share is made once.

    Args:
      spec: The study.
      out: Its folder.
      show: Whether to show progress of training on standard error, or what shows it.
      retry: Make failed runs again.
      over_memory: Train also where the machine's memory is not enough.
    """

    def __init__(
        self,
        spec: StudySpec,
        out: Path,
        *,
        show: bool | Display = False,
        retry: bool = False,
        over_memory: bool = False,
    ) -> None:
        self.spec, self.out, self.retry, self.over_memory, self._show = spec, out, retry, over_memory, show
        self._curves: dict[str, Curve] = {}
        self._examples: dict[str, Examples] = {}
        self._shared: dict[str, dict[str, Any]] = {}

    @cached_property
    def task(self) -> Task:
        """The task, as its source has it now."""
        return load_task(self.spec.task)

    @cached_property
    def sample(self) -> list[Example]:
        """The examples by which tokenizers are judged."""
        return sample(self.task)

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
        return self.task.train(seed, count) if count else []

    def examples(self, candidate: str) -> Examples:
        """The examples of a candidate's runs."""
        spec = self.spec.finetune_spec(self.spec.candidate(candidate))
        key = spec.model_dump_json()
        if key not in self._examples:
            self._examples[key] = read_examples(spec, self.sizes, self.spec.seeds, lambda: self.task)
        return self._examples[key]

    def compute(self, cell: Cell) -> Outcome:
        """Compute a cell, whose result is then on disk; one that is there already is not computed again.

        A fault of one candidate becomes the outcome's error, so that the others can go on. A full disk is nobody's, and
        what a batch needs of memory is for the user to say.

        Raises:
          TooLarge: a batch needs more memory than the machine has.
          PeerLost: another process that computes with this one is gone.
          InputError: the disk is full.
          Stopped: the process was told to end; the same call goes on.
        """
        from lensjax.train.loop import Stopped
        from lensjax.train.memory import TooLarge

        began, measured = time.perf_counter(), Measured()
        try:
            measured = self._run(cell) if cell.kind == FINETUNE else self._evidence(cell)
        except (Stopped, KeyboardInterrupt, TooLarge):
            raise
        except InputError as error:
            if (lost := peer_lost(error)) is not None:
                raise lost from error
            if is_disk_full(error):
                raise
            measured = Measured(error=str(error))
        except Exception as error:  # whatever a checkpoint or a compiler makes libraries raise
            if (lost := peer_lost(error)) is not None:
                raise lost from error
            if is_disk_full(error):
                where = shorten(self.out, 400)
                raise InputError(f"The disk of {where} is full; make room, and run the same command again.") from error
            measured = Measured(error=f"{type(error).__name__}: {one_line(error, 300)}")
        return Outcome(measured.error, time.perf_counter() - began, measured.flops)

    def curve(self, name: str) -> "Curve":
        """The runs of a candidate."""
        from lensjax.models.sharding import make_mesh
        from lensjax.train.ladder import Curve

        if name not in self._curves:
            candidate = self.spec.candidate(name)
            mesh = None if candidate.mesh is None else make_mesh(candidate.mesh)
            out = runs_folder(self.out, candidate)
            make_folder(out.parent)
            self._curves[name] = Curve(
                self.spec.finetune_spec(candidate),
                candidate.source,
                name,
                self.examples(name),
                out,
                mesh=mesh,
                show=self._show,
                over_memory=self.over_memory,
                samples=self.spec.samples,
            )
        return self._curves[name]

    def _subject(self, cell: Cell) -> Subject:
        candidate = self.spec.candidate(cell.model)
        return Subject(
            cell=cell,
            source=candidate.source,
            task=self.spec.task,
            mesh=candidate.mesh,
            examples=self.probes(self.spec.measurements[cell.kind].rows, cell.seed),
            folder=run_folder(self.out, candidate, cell),
            fine_tune=partial(self._fine_tune, cell),
            shared=self._shared.setdefault(cell.model, {}),
        )

    def _fine_tune(self, cell: Cell) -> Result:
        save = self.spec.keep_models or on_first(lambda: is_awaited(self.spec, self.out, cell))
        return self.curve(cell.model).measure(cell.examples, cell.seed, save_model=save, retry=self.retry)

    def _run(self, cell: Cell) -> Measured:
        """Fine-tune, which writes its own files."""
        return self.spec.measurements[FINETUNE].measure(self._subject(cell))

    def _evidence(self, cell: Cell) -> Measured:
        """Measure evidence, unless it is on disk."""
        subject, path = self._subject(cell), evidence_file(self.out, cell)
        asked = self._asked(subject)
        summary = on_first(lambda: self._known(cell))
        if summary is None or summary.get("asked") != asked:
            on_first(lambda: make_folder(path.parent))
            summary = on_first(lambda: self._of_same_model(cell, asked))
        if summary is None:
            measured = self.spec.measurements[cell.kind].measure(subject)
            if measured.error:
                return measured
            summary = {"asked": asked, **measured.summary} | ({"flops": measured.flops} if measured.flops else {})
            if is_first():
                write_evidence(self.out, cell, Measured(summary, measured.arrays))
        if cell.examples and not self.spec.keep_models and is_first() and not is_awaited(self.spec, self.out, cell):
            shutil.rmtree(subject.folder / MODEL, ignore_errors=True)
        flops = summary.get("flops")
        return Measured(flops=flops if isinstance(flops, int) else 0)

    def _known(self, cell: Cell) -> dict[str, Any] | None:
        """The numbers of evidence that is on disk."""
        found = read_evidence(self.out, cell)
        return None if found is None else dict(found.summary)

    def _of_same_model(self, cell: Cell, asked: dict[str, Any]) -> dict[str, Any] | None:
        """The evidence of another candidate that is the same pretrained model, copied to this one's; None without it.

        It has no FLOPs, as they were spent once.
        """
        for name in self.spec.names if cell.examples == 0 else ():
            try:
                found = read_evidence(self.out, cell._replace(model=name))
            except Damaged:  # it is no use to this cell
                continue
            if found is not None and found.summary.get("asked") == asked:
                summary = {key: value for key, value in found.summary.items() if key != "flops"}
                write_evidence(self.out, cell, Measured(summary, found.arrays))
                return summary
        return None

    def _asked(self, subject: Subject) -> dict[str, Any]:
        """Everything that evidence depends on: weights, examples and settings."""
        asked: dict[str, Any] = {"model": on_first(lambda: model_fingerprint(find_folder(subject.source)))}
        if subject.examples:
            asked |= {"data": fingerprint(subject.examples), "examples": len(subject.examples)}
        return asked | settings_of(self.spec, subject.cell)
