"""The report of a study as report.json holds it; `StudyReport.model_json_schema()` is its JSON schema.

Losses are in the unit that the report names, sizes in training examples. Unknown values are null.
"""

from typing import Any, Literal

from pydantic import create_model

from lensjax.core.specs import Strict
from lensjax.core.tabular import Columns, Tabular
from lensjax.measure.measurement import MEASUREMENTS
from lensjax.models.inference import InferenceCost
from lensjax.selection.methods import METHODS
from lensjax.tasks.writing import Writing
from lensjax.train.samples import Sample

VERSION: Literal[1] = 1

State = Literal["measured", "eliminated", "failed", "refused", "waiting"]
LEARNING_RATES = "learning_rates"  # runs that only the choice of a learning rate needed, among the kinds of spending


class Decision(Strict):
    """The decision of a study.

    Attributes:
      sentence: In words; where there is no ranking yet, how far the study is.
      model: The candidate to fine-tune; None where there is no ranking yet.
      because: Sentences on why a smaller candidate than the best is chosen, where one is preferred, and on what
        fine-tuning gains.
      more: What may decide it, and its cost, in a sentence; "" where it is decided, or nothing is left to measure.
      final: Whether measuring has ended.
      close: Whether it is too close to call: the candidate is more likely not to be the best than to be it.
    """

    sentence: str
    model: str | None
    because: tuple[str, ...] = ()
    more: str = ""
    final: bool
    close: bool = False


class StudyProgress(Strict):
    """How far the study is.

    Attributes:
      done: Number of cells that ended, failed ones included.
      left: Number of cells still to be computed; None where the strategy chooses them as it goes.
      ended_by: Why measuring ended: by the spec's rule, the budget, or the last rung.
    """

    done: int
    left: int | None
    ended_by: Literal["rule", "budget", "ladder"] | None


class Score(Strict):
    """A number that a test showed, and its standard error over other draws of the test examples."""

    value: float
    error: float | None


class Tested(Strict):
    """The tests of a candidate after fine-tuning on a number of examples.

    Attributes:
      examples: Number of training examples.
      seeds: Number of runs that succeeded; scores are means over them.
      scores: Losses and task metrics by name: "nats_per_token", and the others as columns of curves.csv are named.
    """

    examples: int
    seeds: int
    scores: dict[str, Score]


class CandidateState(Strict):
    """A candidate.

    Attributes:
      name, source: As in the spec.
      family, parameters: Hugging Face model_type and number of parameters.
      state: Measured (as far as the study is), eliminated, failed, refused by a constraint before it was measured, or
        waiting for its first run.
      inference: Cost of the model once it is deployed; None in folders of earlier versions.
      losses: Test loss by number of training examples, the mean over seeds.
      tests: The losses in every unit and task metrics, the smallest number of examples first.
      notes: What limits them.
      ineligible: Why it is measured and shown, but never chosen; None where it may be chosen.
      writing: How many prompts and targets its tokenizer cannot represent; None where that is not known.
      samples: What it writes for the first test examples, after its largest rung that has some.
    """

    name: str
    source: str
    family: str | None
    parameters: int | None
    state: State
    inference: InferenceCost | None = None
    losses: dict[int, float]
    tests: tuple[Tested, ...] = ()
    notes: tuple[str, ...] = ()
    ineligible: str | None = None
    writing: Writing | None = None
    samples: tuple[Sample, ...] = ()


class LearningCurve(Strict):
    """The validation losses of a run, in nats per target token, after some of its steps.

    Attributes:
      model, examples: The candidate, and its number of training examples.
      steps, losses: As many of each.
    """

    model: str
    examples: int
    steps: tuple[int, ...]
    losses: tuple[float, ...]


class Ranked(Strict):
    """A candidate in the ranking.

    Attributes:
      rank: From 1; None for a candidate that may not be chosen. These come last.
      model, family, parameters: The candidate.
      loss_at_budget: Loss at the largest measured size.
      predicted, lower90, upper90: The method's score, with its 90 % interval where it is a predicted loss.
      metric_at_budget, metric_predicted, metric_lower90, metric_upper90: The same of the study's metric, if that ranks.
      probability_best: Probability that it has the lowest loss, or the highest metric, of all that may be chosen.
      expected_regret: Expected regret of choosing it.
      ineligible: Why it may not be chosen; None where it may.
      memory, flops_per_token: Its cost at inference, besides its parameters.
      on_front: Whether no other candidate has a lower expected loss without costing more.
      probability_within: Probability that its loss is within the preferred margin of the best, where there is one.
      loss_untuned: Loss before fine-tuning, with the same prompts.
      gain, gain_lower90, gain_upper90: What fine-tuning on the target's examples gains over that.
      probability_gain: Probability that it gains anything.
      baselines: Scores by other methods' names; lower is better.
      law: Parameters of the fitted law by their names, where the method has one.
    """

    rank: int | None
    model: str
    family: str | None
    parameters: float | None
    loss_at_budget: float | None
    predicted: float | None
    lower90: float | None
    upper90: float | None
    metric_at_budget: float | None = None
    metric_predicted: float | None = None
    metric_lower90: float | None = None
    metric_upper90: float | None = None
    probability_best: float | None
    expected_regret: float | None
    ineligible: str | None = None
    memory: float | None = None
    flops_per_token: float | None = None
    on_front: bool = False
    probability_within: float | None = None
    loss_untuned: float | None = None
    gain: float | None = None
    gain_lower90: float | None = None
    gain_upper90: float | None = None
    probability_gain: float | None = None
    baselines: dict[str, float | None]
    law: dict[str, float]


class Spent(Strict):
    """The cost of one kind of work on a candidate.

    Attributes:
      model: The candidate.
      kind: Name of a measurement, or "learning_rates" for runs that only the choice of a learning rate needed.
      cells: Number of cells or runs.
      seconds: Wall time; that of "learning_rates" is part of that of "finetune".
      flops: Floating-point operations, where the measurement counts them.
    """

    model: str
    kind: str
    cells: int
    seconds: float
    flops: int


class Consumption(Strict):
    """An amount of computing.

    Attributes:
      flops: Floating-point operations, where they are counted.
      seconds: Wall time.
      kwh: Energy in kWh; None where a device's power is not known.
      price: Of the hours, in the money of the spec's `price_per_hour`; None without one.
    """

    flops: int
    seconds: float
    kwh: float | None
    price: float | None = None


class Cost(Strict):
    """The cost of the study, and its savings.

    Attributes:
      spent: By candidate and kind of work.
      total: The sum.
      full_tuning: Cost of fine-tuning every candidate on the target's examples, in proportion to its largest run; None
        until all have one, but for those that failed before or were refused.
      full_tuning_of: Candidates in full_tuning and ladder_flops: those with a run on some examples.
      share_saved: 1 − FLOPs spent / FLOPs of full_tuning, negative where more was spent; None where it is unknown.
      ladder_flops: FLOPs of every run of the ladder, measured or in proportion.
      skipped_flops: FLOPs of the runs that elimination and the rule for stopping saved.
      energy: How energy was estimated, in a sentence.
    """

    spent: tuple[Spent, ...]
    total: Consumption
    full_tuning: Consumption | None
    full_tuning_of: tuple[str, ...]
    share_saved: float | None
    ladder_flops: int
    skipped_flops: int
    energy: str


class Failure(Strict):
    """A cell that failed.

    Attributes:
      model, cell: The candidate, and the cell in words.
      error: Why it failed.
      mend: How to mend it.
    """

    model: str
    cell: str
    error: str
    mend: str


class Elimination(Strict):
    """A candidate that was eliminated.

    Attributes:
      model: The candidate.
      after: The largest rung that had been measured by then.
      probability_best: P(best) that was too low; None where the journal does not say.
    """

    model: str
    after: int
    probability_best: float | None = None


class PastDecision(Strict):
    """A decision in the journal, and its time in UTC."""

    time: str
    decision: str


class Origin(Strict):
    """The origin of the results: versions of packages, devices as "count × kind", seeds, and data sets on the hub."""

    lensjax: tuple[str, ...]
    jax: tuple[str, ...]
    devices: tuple[str, ...]
    seeds: tuple[int, ...]
    data: tuple[str, ...] = ()


def _findings() -> Any:
    """A model with the fields that measurements and methods add to a report."""
    models = [kind.findings for _, kind in MEASUREMENTS.items() if kind.findings is not None]
    fields: dict[str, Any] = {}
    for name, method in METHODS.items():
        if method.findings is not None:
            fields |= {name: (method.findings | None, ...), f"{name}_missing": (str, ...)}
    return create_model("Findings", __base__=(*models, Strict), **fields)


class StudyReport(Tabular, _findings()):  # type: ignore[misc]  # its fields are known at run time
    """Everything that a study has measured and decided so far, with the findings of every measurement.

    A method with findings of its own has them in the field of its name, None where it could not be fitted, and why in
    the field with `_missing` after it.

    Attributes:
      version: Of the format; readers should refuse others.
      lensjax: Version that wrote the report.
      study, task: Their names.
      unit: What losses and regrets are in, "bits per byte" or "nats per token"; None where nothing was measured.
      method: Name of the method that ranks; the spec's where there is no ranking yet.
      strategy: As in the spec.
      budget: Largest measured size; 0 where nothing was measured.
      target: Size that losses are predicted at.
      candidates: In the order of the spec.
      ranking: Best first; empty where there is none yet.
      left_out: Why candidates are not in the ranking, by name.
      warnings: Sentences to read before the ranking is trusted.
      assumptions: Of the method, in sentences.
      learning: Validation losses of runs along their steps, of the first seed.
      failures: Cells whose last try failed.
      eliminated, journal: Eliminations and decisions in their order.
    """

    version: Literal[1] = VERSION
    lensjax: str
    study: str
    task: str
    unit: str | None
    method: str
    strategy: str
    budget: int
    target: int
    decision: Decision
    progress: StudyProgress
    candidates: tuple[CandidateState, ...]
    ranking: tuple[Ranked, ...]
    left_out: dict[str, str]
    warnings: tuple[str, ...]
    assumptions: tuple[str, ...]
    cost: Cost
    learning: tuple[LearningCurve, ...] = ()
    failures: tuple[Failure, ...]
    eliminated: tuple[Elimination, ...]
    journal: tuple[PastDecision, ...]
    origin: Origin

    @property
    def headline(self) -> str:
        """The decision, in a sentence."""
        return self.decision.sentence

    def as_columns(self) -> Columns:
        """The ranking: a row for each candidate in it, best first."""
        names = ("rank", "model", "predicted", "lower90", "upper90", "probability_best", "expected_regret")
        return {name: [getattr(row, name) for row in self.ranking] for name in names}
