"""What a study found, as report.json holds it; `StudyReport.model_json_schema()` is its JSON schema.

Losses are in nats per target token, sizes in training examples. What is not known is null.
"""

from typing import Any, Literal

from pydantic import create_model

from lensjax.core.specs import Strict
from lensjax.measure.measurement import MEASUREMENTS, Interval

VERSION: Literal[1] = 1

State = Literal["measured", "eliminated", "failed", "waiting"]
LEARNING_RATES = "learning_rates"  # runs that only the choice of a learning rate needed, among the kinds of spending


class Decision(Strict):
    """What the study says to do.

    Attributes:
      sentence: In words; where there is no ranking yet, what is known and what is left.
      model: The candidate to fine-tune; None where there is no ranking yet.
      final: Whether nothing is left to measure, as far as that is known.
    """

    sentence: str
    model: str | None
    final: bool


class Progress(Strict):
    """How far the study is.

    Attributes:
      done: Cells that ended, failed ones included.
      left: Cells that are still to be computed; None where the strategy chooses them as it goes.
      ended_by: What ended measuring: the rule that the spec has for it, the budget, or the last rung.
    """

    done: int
    left: int | None
    ended_by: Literal["rule", "budget", "ladder"] | None


class CandidateState(Strict):
    """A candidate.

    Attributes:
      name, source: As in the spec.
      family, parameters: Hugging Face model_type and number of parameters.
      state: Measured (as far as the study is), eliminated, failed, or waiting for its first run.
      losses: Test loss by number of training examples, the mean over seeds.
    """

    name: str
    source: str
    family: str | None
    parameters: int | None
    state: State
    losses: dict[int, float]


class Ranked(Strict):
    """A candidate in the ranking.

    Attributes:
      rank: From 1.
      model, family, parameters: The candidate.
      loss_at_budget: At the largest size that was measured.
      predicted, lower90, upper90: The method's score, which is the predicted loss where it predicts one.
      probability_best: That it has the lowest loss at the target.
      expected_regret: Of choosing it.
      baselines: Scores under the other methods, by their names; less is better.
      law: Parameters of the fitted law, by their names, where the method has one.
    """

    rank: int
    model: str
    family: str | None
    parameters: float | None
    loss_at_budget: float | None
    predicted: float | None
    lower90: float | None
    upper90: float | None
    probability_best: float | None
    expected_regret: float | None
    baselines: dict[str, float | None]
    law: dict[str, float]


class Ablation(Strict):
    """One variant of the LensLLM law.

    Attributes:
      variant: Its name.
      meaning: What it holds, in words.
      evidence: Log marginal likelihood of the measured losses, in nats.
      held_out: Mean log predictive density of the largest rung from the smaller ones, in nats a model.
      predicted: Losses at the target by candidate.
    """

    variant: str
    meaning: str
    evidence: float
    held_out: float | None
    predicted: dict[str, float]


class LensLLM(Strict):
    """The LensLLM method and its ablation: log D_l = a + b log F(Θ, t) + ε.

    Attributes:
      a, b, time: What all candidates share, in the tied variant.
      ablation: Every variant.
      verdict: Whether the kernels helped here.
    """

    a: Interval
    b: Interval
    time: Interval | None
    ablation: tuple[Ablation, ...]
    verdict: str


class Spent(Strict):
    """What one kind of work took for a candidate.

    Attributes:
      model, kind: The candidate, and the kind of work; "learning_rates" are runs that only the choice of one needed.
      cells: How many.
      seconds: Wall time; that of "learning_rates" is in that of "finetune".
      flops: Where they are counted, which they are not of "weights".
    """

    model: str
    kind: str
    cells: int
    seconds: float
    flops: int


class Consumption(Strict):
    """An amount of computing.

    Attributes:
      flops: Floating-point operations of fine-tuning, evaluation, kernels and Hessians.
      seconds: Wall time.
      kwh: Energy in kWh; None where a device's power is not known.
    """

    flops: int
    seconds: float
    kwh: float | None


class Cost(Strict):
    """What the study took, and what it saved.

    Attributes:
      spent: By candidate and kind.
      total: Of all.
      full_tuning: What fine-tuning every candidate on the target's examples would take, in proportion to its largest
        run; None until all have one, but for those that failed before.
      full_tuning_of: Candidates that this is of, and ladder_flops: those with a run on some examples.
      share_saved: 1 − FLOPs spent / FLOPs of full_tuning, below 0 where more was spent; None where it is not known.
      ladder_flops: Of every run of the ladder.
      skipped_flops: Of those that elimination and the rule for stopping spared, in proportion likewise.
      energy: How energy was estimated.
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
      error: Why.
      mend: What to do.
    """

    model: str
    cell: str
    error: str
    mend: str


class Elimination(Strict):
    """A candidate that is measured no further, and the largest rung that had been measured when that was decided."""

    model: str
    after: int


class PastDecision(Strict):
    """A decision of the journal, and when it was taken, in UTC."""

    time: str
    decision: str


class Origin(Strict):
    """What results come from: versions of packages, devices as "count × kind", and seeds."""

    lensjax: tuple[str, ...]
    jax: tuple[str, ...]
    devices: tuple[str, ...]
    seeds: tuple[int, ...]


def _findings() -> Any:
    """A model with the fields that measurements add to a report."""
    models = [kind.findings for _, kind in MEASUREMENTS.items() if kind.findings is not None]
    return create_model("Findings", __base__=(*models, Strict))


class StudyReport(_findings()):  # type: ignore[misc]  # which fields there are is known at run time
    """Everything that a study has measured and decided so far, with the findings of every measurement.

    Attributes:
      version: Of this form; readers should refuse others.
      lensjax: Version that wrote the report.
      study, task: Their names.
      method: That ranks; the spec's where there is no ranking yet.
      strategy: As in the spec.
      budget: The largest size that was measured, 0 where none was.
      target: What losses are predicted at.
      decision: What to do.
      progress: How far the study is.
      candidates: In the order of the spec.
      ranking: Best first; empty where there is none yet.
      left_out: Why candidates are not in the ranking, by name.
      warnings: To be read before the ranking is trusted.
      assumptions: What the method assumed.
      lensllm: None where it could not be fitted.
      lensllm_missing: Why.
      cost: What was spent and saved.
      failures: Of cells, the last try of each.
      eliminated: In the order in which they were.
      journal: Decisions, in order.
      origin: Of the results.
    """

    version: Literal[1] = VERSION
    lensjax: str
    study: str
    task: str
    method: str
    strategy: str
    budget: int
    target: int
    decision: Decision
    progress: Progress
    candidates: tuple[CandidateState, ...]
    ranking: tuple[Ranked, ...]
    left_out: dict[str, str]
    warnings: tuple[str, ...]
    assumptions: tuple[str, ...]
    lensllm: LensLLM | None
    lensllm_missing: str
    cost: Cost
    failures: tuple[Failure, ...]
    eliminated: tuple[Elimination, ...]
    journal: tuple[PastDecision, ...]
    origin: Origin
