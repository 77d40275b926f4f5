"""The cost of a study, as `lensjax plan --json` writes it; `Plan.model_json_schema()` is its JSON schema."""

from typing import Literal

from pydantic import Field

from lensjax.core.roofline.estimate import StepBounds
from lensjax.core.specs import Strict
from lensjax.core.version import __version__
from lensjax.models.inference import InferenceCost
from lensjax.tasks.writing import Writing
from lensjax.train.choices import Choice
from lensjax.train.estimate import Seconds
from lensjax.train.memory import Memory

Basis = Literal["timed", "rates", "peak", "programs"]


class Amount(Strict):
    """Floating-point operations of matrix products, and wall seconds; None where they cannot be told."""

    flops: int = 0
    seconds: float | None = None


class Runs(Amount):
    """Runs of fine-tuning, at most: early stopping makes them shorter.

    Attributes:
      examples: Training examples of each.
      runs: How many there are, of different seeds or learning rates.
      steps, tokens: That they train for, all together.
    """

    examples: int
    runs: int
    steps: int
    tokens: int


class CandidatePlan(Strict):
    """The cost of a candidate.

    Attributes:
      model, source: Its name and where it lies.
      problem: Why it cannot be fine-tuned like this, and what would help; "" where nothing is known to be wrong.
      writing: How many prompts and targets its tokenizer cannot represent.
      ineligible: Why it will be measured, but never chosen; "" where it may be chosen.
      family, parameters, dtype, mesh: Its Hugging Face model_type, size, type computed in, and devices on each axis.
      inference: What the model costs once it is deployed, as the study's `constraints` say.
      lengths: Of the short and long shape of training batches, and of batches of evaluation.
      memory, room: Bytes that it takes of each device, and that each device has.
      each: How long its programs take.
      choices: What other ways to fine-tune it take, where that was asked for.
      bounds: What a long step takes at least on a topology, and which resource that is due to.
      evidence: Measurements of the pretrained model by their names, where they are counted.
      evidence_of_rung: Those of the fine-tuned models of each rung above 0, with all seeds.
      search: Runs that only find the learning rate.
      rungs: Runs of the ladder, with all seeds.
      total: All of these.
      full_tuning: Runs on the target number of examples, with all seeds.
    """

    model: str
    source: str
    problem: str = ""
    writing: Writing | None = None
    ineligible: str = ""
    family: str = ""
    parameters: int | None = None
    dtype: str = ""
    mesh: dict[str, int] = Field(default_factory=dict)
    inference: InferenceCost | None = None
    lengths: tuple[tuple[int, ...], ...] = ()
    memory: Memory | None = None
    room: int | None = None
    each: Seconds | None = None
    bounds: StepBounds | None = None
    choices: tuple[Choice, ...] = ()
    evidence: dict[str, Amount] = Field(default_factory=dict)
    evidence_of_rung: dict[str, Amount] = Field(default_factory=dict)
    search: Runs | None = None
    rungs: tuple[Runs, ...] = ()
    total: Amount | None = None
    full_tuning: Runs | None = None


class BudgetPlan(Amount):
    """The cost of a study up to a rung.

    Attributes:
      examples: The largest rung.
      share: Of the operations of FullTuning.
    """

    examples: int
    share: float


class Plan(Strict):
    """The cost of a study, at most. Candidates with a problem count for nothing.

    Attributes:
      lensjax: Version.
      study, task: Their names.
      target: Number of examples that FullTuning fine-tunes every candidate on.
      device, devices, topology: Kind and number of devices, and the TPU topology that they are of, where not attached.
      basis: Origin of seconds: steps timed on the devices, or the compiled programs and the measured rates of a
        processor, or a share of the devices' published peak, or the compiled programs and the published rates of a
        topology's chips and links; None where there are none.
      utilisation: That share.
      candidates: Cost of each.
      budgets: Costs of studies up to each rung; the last is this one.
      full_tuning: All candidates on the target, with all seeds and one learning rate.
      reached: Largest rung that the budget in FLOPs and hours is enough for, at most; None where it has neither, and 0
        where it is not enough for two rungs.
      notes: Sentences about what the numbers leave out.
      sentence: All of it in a sentence.
    """

    lensjax: str = __version__
    study: str
    task: str
    target: int
    device: str
    devices: int
    topology: str | None = None
    basis: Basis | None
    utilisation: float | None = None
    candidates: tuple[CandidatePlan, ...]
    budgets: tuple[BudgetPlan, ...]
    full_tuning: Amount
    reached: int | None = None
    notes: tuple[str, ...] = ()
    sentence: str
