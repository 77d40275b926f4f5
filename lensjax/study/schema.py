"""What a study found, as report.json holds it; `StudyReport.model_json_schema()` is its JSON schema.

Losses are in nats per target token, sizes in training examples. What is not known is null.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from lensjax.study.journal import CellKind

VERSION: Literal[1] = 1

State = Literal["measured", "eliminated", "failed", "waiting"]
Spending = CellKind | Literal["learning_rates"]


class Part(BaseModel):
    """Frozen, and without fields that nobody knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(Part):
    """A number with both ends of its 90 % interval."""

    value: float
    lower: float
    upper: float


class Decision(Part):
    """What the study says to do.

    Attributes:
      sentence: In words; where there is no ranking yet, what is known and what is left.
      model: The candidate to fine-tune; None where there is no ranking yet.
      final: Whether nothing is left to measure, as far as that is known.
    """

    sentence: str
    model: str | None
    final: bool


class Progress(Part):
    """How far the study is.

    Attributes:
      done: Cells that ended, failed ones included.
      left: Cells that are still to be computed; None where the strategy chooses them as it goes.
      ended_by: What ended measuring: the rule that the spec has for it, the budget, or the last rung.
    """

    done: int
    left: int | None
    ended_by: Literal["rule", "budget", "ladder"] | None


class Candidate(Part):
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


class Ranked(Part):
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


class Kernel(Part):
    """The neural tangent kernel of a candidate before fine-tuning.

    Attributes:
      model: The candidate.
      functional: Of what the kernel is.
      size: N, its side.
      effective_rank, target_alignment: See `lensjax.curvature.dynamics`.
      eigenvalues: Of Θ / N, largest first.
      times, residuals: η t, and F(Θ, t) there.
    """

    model: str
    functional: str
    size: int
    effective_rank: float
    target_alignment: float | None
    eigenvalues: tuple[float, ...]
    times: tuple[float, ...]
    residuals: tuple[float, ...]


class KernelDrift(Part):
    """The kernels of models fine-tuned from a candidate, on the examples that its own is on.

    Attributes:
      model, seed: The ladder.
      examples: Of each rung.
      drift: 1 − cos between its kernel and the candidate's; see `lensjax.curvature.dynamics.kernel_drift`.
      growth: Its trace over that of the candidate's.
      effective_rank, target_alignment: Its own; see `lensjax.curvature.dynamics`.
    """

    model: str
    seed: int
    examples: tuple[int, ...]
    drift: tuple[float, ...]
    growth: tuple[float, ...]
    effective_rank: tuple[float, ...]
    target_alignment: tuple[float | None, ...]


class BoundTerms(Part):
    """The terms of the PAC-Bayes bound along a candidate's ladder; see `lensjax.measure.rungs`.

    Attributes:
      model, seed: The ladder.
      block: Of layers that the products are of.
      measured_on: Examples that they were measured on.
      examples: Of each rung.
      sum_of_largest: Σ H_i of each.
      phases: Of each, the Hessian's term being as in the bound; empty where nothing can be fitted.
      beta2: Of Σ H_i ≈ C₂ n^(−β₂).
      transition: Examples at which the pre-power phase ends.
      note: Why there is no fit or no transition.
    """

    model: str
    seed: int
    block: str
    measured_on: int
    examples: tuple[int, ...]
    sum_of_largest: tuple[float, ...]
    phases: tuple[str, ...]
    beta2: Interval | None
    transition: float | None
    note: str


class PowerPhase(Part):
    """Where a candidate's power phase begins.

    Attributes:
      model: The candidate.
      seen_in: The bound's terms where they were measured on three rungs, and otherwise the test losses, by AtS.
      begins: The first rung in it, where earlier ones are in the pre-power phase.
      note: What is seen where it has no beginning.
    """

    model: str
    seen_in: Literal["bound", "losses"]
    begins: int | None
    note: str


class Ablation(Part):
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


class LensLLM(Part):
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


class Spent(Part):
    """What one kind of work took for a candidate.

    Attributes:
      model, kind: The candidate, and the kind of work; "learning_rates" are runs that only the choice of one needed.
      cells: How many.
      seconds: Wall time; that of "learning_rates" is in that of "finetune".
      flops: Where they are counted, which they are not of "weights".
    """

    model: str
    kind: Spending
    cells: int
    seconds: float
    flops: int


class Amount(Part):
    """An amount of computing.

    Attributes:
      flops: Floating-point operations of fine-tuning, evaluation, kernels and Hessians.
      seconds: Wall time.
      kwh: Energy in kWh; None where a device's power is not known.
    """

    flops: int
    seconds: float
    kwh: float | None


class Cost(Part):
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
    total: Amount
    full_tuning: Amount | None
    full_tuning_of: tuple[str, ...]
    share_saved: float | None
    ladder_flops: int
    skipped_flops: int
    energy: str


class Failure(Part):
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


class Elimination(Part):
    """A candidate that is measured no further, and the largest rung that had been measured when that was decided."""

    model: str
    after: int


class Entry(Part):
    """A decision of the journal, and when it was taken, in UTC."""

    time: str
    decision: str


class Origin(Part):
    """What results come from: versions of packages, devices as "count × kind", and seeds."""

    lensjax: tuple[str, ...]
    jax: tuple[str, ...]
    devices: tuple[str, ...]
    seeds: tuple[int, ...]


class StudyReport(Part):
    """Everything that a study found so far.

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
      kernels, kernel_drifts, bound_terms, phases: Of candidates of which they were measured.
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
    candidates: tuple[Candidate, ...]
    ranking: tuple[Ranked, ...]
    left_out: dict[str, str]
    warnings: tuple[str, ...]
    assumptions: tuple[str, ...]
    kernels: tuple[Kernel, ...]
    kernel_drifts: tuple[KernelDrift, ...]
    bound_terms: tuple[BoundTerms, ...]
    phases: tuple[PowerPhase, ...]
    lensllm: LensLLM | None
    lensllm_missing: str
    cost: Cost
    failures: tuple[Failure, ...]
    eliminated: tuple[Elimination, ...]
    journal: tuple[Entry, ...]
    origin: Origin
