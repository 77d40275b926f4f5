"""A study as its user writes it: candidates, task, budget, evidence, and rules for deciding."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, create_model, field_validator, model_validator

from lensjax.core.errors import InputError, listing, shorten
from lensjax.core.specs import (
    Count,
    Natural,
    NonNegative,
    Positive,
    Probability,
    Quantity,
    Strict,
    read_fields,
    validated,
    whole,
    with_settings,
)
from lensjax.curves.metrics import METRICS
from lensjax.curves.table import MAX_EXAMPLES
from lensjax.measure.kinds.finetune import FinetunedLoss
from lensjax.measure.measurement import FINETUNE, Cell, Measurement, selectable
from lensjax.models.hub import is_local
from lensjax.selection.methods import DEFAULT_METHOD, METHODS
from lensjax.study.constraints import Constraints, Prefer
from lensjax.study.several import of_task
from lensjax.tasks.spec import TaskSpec, read_spec
from lensjax.train.prepare import FIRST_RUNG, rungs
from lensjax.train.runs import check_name, model_name
from lensjax.train.spec import FinetuneSpec, TrainingSpec

# Of a training set, in examples.
Size = Annotated[int, Field(ge=1, le=MAX_EXAMPLES, strict=True), BeforeValidator(whole)]


class Resources(Strict):
    """Resources that one cell takes of a Ray cluster.

    Attributes:
      cpus, gpus: Of each host.
      custom: Further resources of each host by Ray's names, as in {TPU: 4}.
      hosts: Number of hosts that compute a cell together, as one `jax.distributed` job.
      retries: How often a cell is begun again after its worker or host died.
    """

    cpus: NonNegative = 1
    gpus: NonNegative = 0
    custom: dict[str, NonNegative] = Field(default_factory=dict)
    hosts: Count = 1
    retries: Natural = 2


class CandidateSpec(Strict):
    """A candidate.

    Attributes:
      source: Folder of a model, relative to that of the spec, or its name on the Hugging Face hub. Candidates may have
        the same one, and differ in how they are trained.
      name: Its name in results; by default the last part of its folder's or hub's name, with "+lora8" or "+full" where
        its own training has another method, or another rank of adapters, than the study's.
      training: Fields of `training` that differ for this candidate. Where its method is another and it gives no
        learning rates, that method's default ones are tried, as the study's suit the study's method.
      mesh: Devices along each axis for this candidate, as in "fsdp=4,tensor=2".
      resources: Resources of its cells on a Ray cluster.
    """

    source: str
    name: str = ""
    training: dict[str, Any] = Field(default_factory=dict)
    mesh: str | None = None
    resources: Resources | None = None


class _Any(Strict):
    """A model of which one field must be given."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        *names, last = type(self).model_fields
        if all(getattr(self, name) is None for name in (*names, last)):
            raise ValueError(f"give {', '.join(names)} or {last}")
        return self


class Budget(_Any):
    """The end of measuring: whichever of these comes first.

    Attributes:
      examples: Largest number of training examples of a run.
      flops: Floating-point operations of everything whose operations are counted.
      hours: Computing time of the whole study.
    """

    examples: Size | None = None
    flops: Quantity | None = None
    hours: Positive | None = None

    @field_validator("examples")
    @classmethod
    def _two_rungs(cls, value: int | None) -> int | None:
        if value is not None and value < 2 * FIRST_RUNG:
            raise ValueError(f"a curve needs two rungs, so give at least {2 * FIRST_RUNG}")
        return value


class _Switches(Strict):
    """Settings of measurements by name: true stands for the defaults; false and null leave a measurement out."""

    @model_validator(mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: {True: {}, False: None}[one] if isinstance(one, bool) else one for name, one in value.items()}


def _switches() -> Any:
    """A model with a field for every measurement but fine-tuning, which no study is without."""
    kinds = selectable().items()
    fields: dict[str, Any] = {name: (kind | None, kind() if kind.by_default else None) for name, kind in kinds}
    return create_model("EvidenceSettings", __base__=_Switches, **fields)


EvidenceSettings = _switches()


class StopRule(_Any):
    """When the decision counts as clear: either condition is enough.

    Attributes:
      probability_best: Of the first choice, at least.
      expected_regret: Of the first choice, at most, in bits per byte (nats per token where those alone are known).
    """

    probability_best: Probability | None = None
    expected_regret: Positive | None = None


class StudySpec(Strict):
    """A study.

    Attributes:
      name: Its name; by default that of its file, without the ending.
      candidates: Two or more models.
      task: The task, or the file of its spec.
      training: How candidates are fine-tuned; by default as the task's file says.
      budget: The end of measuring; a number alone is of examples.
      target: Number of training examples that the candidates are compared at; by default all that the task has.
      seeds: Of the choice and order of training examples; losses are averaged over them.
      evidence: Measurements besides curves, by name: true, false, or settings.
      method: Name of the selection method that ranks the candidates.
      metric: Task metric that candidates are ranked by, as predicted from the loss, in place of the loss.
      strategy: "ladder" measures all candidates on one rung before the next, "adaptive" always the run that promises
        the largest drop of regret for its cost.
      eliminate_below: Candidates whose P(best) falls below this are measured no further.
      stop_when: When measuring ends before the budget.
      constraints: Largest cost of the chosen model at inference.
      prefer: Choose a cheaper model than the best, if it is nearly as good. P(best) then is P(within the margin of the
        best) in `eliminate_below` and `stop_when`, and regret counts beyond the margin.
      samples: Number of test examples that every fine-tuned model writes an answer to, for the report.
      keep_models: Keep every fine-tuned model.
      device: To compute on; the study is refused where JAX has another.
      resources: Resources of a cell on a Ray cluster.
      price_per_hour: Price of an hour of the devices, in any money, for the report.
    """

    name: str = ""
    candidates: tuple[CandidateSpec, ...]
    task: TaskSpec
    training: TrainingSpec = TrainingSpec()
    budget: Budget
    target: Size | None = None
    seeds: tuple[Natural, ...] = (0,)
    evidence: EvidenceSettings = EvidenceSettings()  # type: ignore[valid-type]  # its fields come from the registry
    method: str = DEFAULT_METHOD
    metric: Literal["exact_match", "token_accuracy", "choice_accuracy", "choice_accuracy_per_byte"] | None = None
    strategy: Literal["ladder", "adaptive"] = "ladder"
    eliminate_below: Probability | None = None
    stop_when: StopRule | None = None
    constraints: Constraints | None = None
    prefer: Prefer | None = None
    samples: Natural = 5
    keep_models: bool = False
    device: Literal["any", "cpu", "gpu", "tpu"] = "any"
    resources: Resources = Resources()
    price_per_hour: Positive | None = None

    @field_validator("candidates", mode="before")
    @classmethod
    def _sources(cls, value: Any) -> Any:
        if isinstance(value, list):
            value = [{"source": one} if isinstance(one, str) else one for one in value]
        return value

    @field_validator("candidates")
    @classmethod
    def _several(cls, value: tuple[CandidateSpec, ...]) -> tuple[CandidateSpec, ...]:
        if len(value) < 2:
            raise ValueError("a study compares two candidates or more")
        return value

    @field_validator("budget", mode="before")
    @classmethod
    def _examples(cls, value: Any) -> Any:
        number = whole(value)
        return {"examples": number} if isinstance(number, int) and not isinstance(number, bool) else value

    @field_validator("seeds")
    @classmethod
    def _different(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("give one seed or more, each once")
        return value

    @field_validator("method")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in METHODS:
            raise ValueError(f"choose from {listing(METHODS.names, 20)}")
        return value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        for measurement, what in METHODS[self.method].needs.items():
            if measurement not in self.measurements:
                raise ValueError(f"the method {self.method} needs {what}; set evidence.{measurement} to true")
        if self.metric is not None and METRICS[self.metric].by_chance and self.task.choices is None:
            raise ValueError(f"the metric {self.metric} needs answers to choose from; give task.choices")
        largest = self.budget.examples
        if self.target is not None and largest is not None and self.target < largest:
            raise ValueError(f"the target of {self.target} examples is below the budget of {largest}")
        return self

    def finetune_spec(self, candidate: CandidateSpec) -> FinetuneSpec:
        """The task, and how a candidate is fine-tuned on it."""
        training = TrainingSpec.model_validate(_merged(self.training, candidate.training))
        return self.base_spec.model_copy(update={"training": training})

    @property
    def base_spec(self) -> FinetuneSpec:
        """The task, and how candidates without training of their own are fine-tuned on it."""
        return FinetuneSpec(**dict(self.task), training=self.training)

    @property
    def names(self) -> list[str]:
        """The candidates' names."""
        return [candidate.name for candidate in self.candidates]

    def candidate(self, name: str) -> CandidateSpec:
        """The candidate of a name."""
        return next(candidate for candidate in self.candidates if candidate.name == name)

    @property
    def measurements(self) -> dict[str, Measurement]:
        """All that is measured, by name."""
        chosen = {name: getattr(self.evidence, name) for name in EvidenceSettings.model_fields}
        return {name: one for name, one in chosen.items() if one is not None} | {FINETUNE: FinetunedLoss()}

    def cells(self, model: str, examples: int) -> list[Cell]:
        """The cells of a candidate on a rung."""
        return [
            Cell(kind, model, examples, seed)
            for kind, measurement in self.measurements.items()
            for seed in measurement.seeds_on(examples, self.seeds)
        ]

    def cells_at(self, run: Cell) -> list[Cell]:
        """The cells that need the model which a fine-tuning run leaves."""
        cells = self.cells(run.model, run.examples) if run.examples else ()
        return [cell for cell in cells if cell.kind != FINETUNE and cell.seed == run.seed]

    @property
    def counted(self) -> int | None:
        """Number of the task's examples that matter to the ladder and the target; None for all."""
        return None if self.target is None else self.budget.examples or self.target

    def ladder(self, available: int) -> list[int]:
        """Numbers of training examples of runs.

        Args:
          available: Number of examples that the task has to train on.

        Raises:
          InputError: there are too few for two rungs.
        """
        most = min(available, self.budget.examples or available, self.target or available)
        sizes = rungs(most)
        if len(sizes) < 3:
            raise InputError(
                f"The task {shorten(self.task.name)} leaves {most:,} examples to train on, and a curve needs "
                f"two rungs, {FIRST_RUNG} and {2 * FIRST_RUNG}; add rows, hold out fewer, or raise the target."
            )
        return sizes

    @property
    def identity(self) -> str:
        """A hash of everything that stays the same while budgets, candidates and evidence grow."""
        content = list(self.identifying.values())
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def identifying(self) -> dict[str, Any]:
        """The fields that stay the same while budgets, candidates and evidence grow."""
        return {
            "name": self.name,
            "task": self.task.model_dump(mode="json", exclude={"source", "max_unwritable"}),
            "training": self.training.model_dump(mode="json"),
        }


def read_study(path: str | Path, settings: Sequence[str] = (), task_name: str | None = None) -> StudySpec:
    """Read a study from a YAML file; relative paths in it are from its folder.

    Args:
      path: The file; `lensjax study init` writes one with comments.
      settings: Fields that are not as in the file; see `lensjax.core.specs.with_settings`.
      task_name: One of the tasks of a file that has several, under `tasks`; see `lensjax.study.several`.

    Raises:
      InputError: the file cannot be read or is not YAML, a field is missing, unknown or wrong, or two candidates have
        the same name; the message names the file and the field.
    """
    path = Path(path).absolute()  # workers of a cluster have folders of their own
    content = of_task(read_fields(path, "a study", "candidates, task and budget"), task_name, path)
    content.setdefault("name", path.stem)
    task = content.get("task")
    if isinstance(task, str):
        its_file = read_spec(path.parent / os.path.expanduser(task), FinetuneSpec)
        content["task"] = its_file.model_dump(exclude={"training"}, exclude_unset=True)
        content.setdefault("training", its_file.training.model_dump(exclude_unset=True))
    elif isinstance(task, dict):
        content["task"] = {"name": content["name"], **task}
    content = with_settings(content, settings)
    spec = validated(StudySpec, content, path)
    if isinstance(task, dict):
        source = spec.task.source.relative_to(path.parent)
        spec = spec.model_copy(update={"task": spec.task.model_copy(update={"source": source})})
    candidates = tuple(_placed(candidate, spec.training, path) for candidate in spec.candidates)
    for candidate in candidates:
        _check(candidate, candidates, spec, path)
    return spec.model_copy(update={"candidates": candidates})


def _merged(training: TrainingSpec, own: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `training` with those that a candidate gives instead."""
    merged = training.model_dump() | dict(own)
    if merged["method"] != training.method and "learning_rate" not in own:
        merged["learning_rate"] = ()  # rates that suit one method are too low or too high for the other
    return merged


def _placed(candidate: CandidateSpec, training: TrainingSpec, path: Path) -> CandidateSpec:
    """A candidate with a name, its folder relative to that of the spec."""
    folder = path.parent / os.path.expanduser(candidate.source)
    source = str(folder) if is_local(folder) else candidate.source
    name = candidate.name or model_name(source) + _how(training, candidate.training)
    return candidate.model_copy(update={"source": source, "name": name})


def _how(training: TrainingSpec, own: Mapping[str, Any]) -> str:
    """The ending of a default name by which two ways to train one model are told apart; it may be empty."""
    usual = {name: getattr(training, name) for name in ("method", "lora_rank", "dora", "quantise")}
    merged = usual | {name: own[name] for name in usual if name in own}
    if merged["method"] == "lora":
        base = f"-{merged['quantise']}" if merged["quantise"] else ""
        return "" if merged == usual else f"+{'dora' if merged['dora'] else 'lora'}{merged['lora_rank']}{base}"
    return "" if training.method == "full" else f"+{merged['method']}"


def _check(candidate: CandidateSpec, candidates: tuple[CandidateSpec, ...], spec: StudySpec, path: Path) -> None:
    where = shorten(path, 200)
    same = [other.source for other in candidates if other.name == candidate.name]
    if len(same) > 1:
        raise InputError(
            f"{where}: two candidates are called {shorten(candidate.name)} ({listing(same)}); give one of them another "
            "name."
        )
    try:
        check_name(candidate.name)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if candidate.training:
        try:
            validated(TrainingSpec, _merged(spec.training, candidate.training), path)
        except InputError as error:
            raise InputError(f"{str(error)[:-1]} (of the candidate {shorten(candidate.name)}).") from error
