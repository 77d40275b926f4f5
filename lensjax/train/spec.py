"""How models are fine-tuned, as users write it under `training:` in the spec of a task."""

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from lensjax.core.specs import Count, Natural, NonNegative, Pattern, Positive, Share, Strict, precision
from lensjax.tasks.spec import TaskSpec
from lensjax.tasks.tokens import TOKENS_VERSION

_RATES = {"full": (3e-5, 1e-4, 3e-4), "lora": (1e-4, 3e-4, 1e-3)}
_HOW_ONLY = (
    "checkpoint_every",
    "remat",
    "attention",
    "evaluation_batch_size",
    "packing",
)  # these do not change the result
_LATER = (  # fields that results of before do not have
    "lora_ranks",
    "lora_alphas",
    "rslora",
    "dora",
    "lora_seed",
    "quantise",
)


class TrainingSpec(Strict):
    """How a model is fine-tuned.

    Attributes:
      method: "full" trains every parameter, "lora" low-rank adapters (arXiv 2106.09685).
      lora_rank, lora_alpha, lora_targets: Rank of the adapters, their scale times the rank, and the linear maps that
        have them: by default all of q, k, v, o, up, gate and down. They are meant by these names, or by a regular
        expression that paths end with, such as "attention/(q|v)", "mlp/.*" or "encoder/.*".
      lora_ranks, lora_alphas: Ranks and alphas of some of these linear maps, by the same names or expressions.
      rslora: Scale adapters by alpha / √rank instead of alpha / rank (arXiv 2312.03732).
      dora: Train the norms of kernels' columns apart from their direction, which has the adapters (arXiv 2402.09353).
      lora_seed: Of the adapters' random start. It moves a loss as the choice of examples does: compare means over some.
      quantise: "int8" or "nf4" to hold the kernels that adapters leave frozen in 8.5 or 4.5 bits a value (QLoRA, arXiv
        2305.14314); the loss is that of the kernels so rounded.
      learning_rate: Peak of the schedule; of several, the one with the lowest validation loss on the first rung. By
        default 3e-5, 1e-4 and 3e-4 are tried, and for lora 1e-4, 3e-4 and 1e-3.
      schedule: The schedule after the warm-up: "linear" to 0, "cosine" to 0, or "constant".
      warmup: Share of the steps in which the rate rises from 0.
      batch_size: Examples per step, over all devices.
      packing: Put several examples of a step into one row, which saves padding; of causal models alone. A step has the
        same examples as without, and its loss is the same to rounding.
      accumulation: Number of parts in which a step's batch is computed, one after another; it saves memory, not time.
      epochs: Passes over the examples, at most.
      min_steps: Number of steps that small sets may take even if that is more epochs, so that they are not left half
        learned; `patience` may end training before.
      max_steps: Number of steps, at most.
      evaluate_every: Steps between validations; by default one epoch or a 32nd of min_steps, whichever is more, and
        never more than 500.
      patience: Validations without a new lowest loss before training stops.
      weight_decay: AdamW's, on everything but biases and norms (arXiv 1711.05101).
      beta1, beta2, epsilon: Adam's (arXiv 1412.6980).
      clip: Largest norm of the gradient over all parameters.
      dtype: Type of the computation; parameters that are trained are in float32, and those that adapters leave frozen
        in this type. "auto" is bfloat16 on GPUs and TPUs, float32 on CPUs.
      remat: How much the backward pass recomputes: "none", "cheap", "dots" or "full"; see `lensjax.models.Options`.
      attention: "auto" is "splash", the fused kernel of TPUs, on those, and else "xla"; "cudnn" is that of NVIDIA GPUs.
      evaluation_batch_size: Examples per batch of evaluation; by default twice those of a part of a training step.
      checkpoint_every: Steps between checkpoints; by default at validations, a minute or more apart.
    """

    method: Literal["full", "lora"] = "full"
    lora_rank: Count = 8
    lora_alpha: Positive = 16.0
    lora_targets: tuple[Pattern, ...] | None = None
    lora_ranks: dict[Pattern, Count] = Field(default_factory=dict)
    lora_alphas: dict[Pattern, Positive] = Field(default_factory=dict)
    rslora: bool = False
    dora: bool = False
    lora_seed: Natural = 0
    quantise: Literal["int8", "nf4"] | None = None
    learning_rate: tuple[Positive, ...] = ()
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Share = 0.05
    batch_size: Count = 32
    packing: bool = False
    accumulation: Count = 1
    epochs: Count = 10
    min_steps: Natural = 0
    max_steps: Count | None = None
    evaluate_every: Count | None = None
    patience: Count = 3
    weight_decay: NonNegative = 0.01
    beta1: Share = 0.9
    beta2: Share = 0.999
    epsilon: Positive = 1e-8
    clip: Positive = 1.0
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], BeforeValidator(precision)] = "auto"
    remat: Literal["none", "cheap", "dots", "full"] = "cheap"
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    evaluation_batch_size: Count | None = None
    checkpoint_every: Count | None = None

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _several(cls, value: object) -> object:
        return (value,) if isinstance(value, (int, float, str)) else value

    @field_validator("lora_targets", mode="before")
    @classmethod
    def _one_target(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without later fields that change nothing, so that digests and folders of before there were these count."""
        fields = handler(self)
        return {name: value for name, value in fields.items() if name not in _LATER or value}

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.batch_size % self.accumulation:
            raise ValueError(f"accumulation {self.accumulation} does not divide batch_size {self.batch_size}")
        if self.quantise is not None and self.method == "full":
            raise ValueError(f"quantise {self.quantise} leaves nothing for method full to train; set method: lora")
        if self.max_steps is not None and self.min_steps > self.max_steps:
            raise ValueError(f"min_steps {self.min_steps} is above max_steps {self.max_steps}")
        return self

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """The learning rates to choose from."""
        return self.learning_rate or _RATES[self.method]

    def dtypes(self, platform: str) -> tuple[str, str]:
        """The types of the computation, and of loaded parameters, on devices of a platform such as "cpu"."""
        automatic = "float32" if platform == "cpu" else "bfloat16"
        dtype = automatic if self.dtype == "auto" else self.dtype
        return dtype, "float32" if self.method == "full" else dtype


class FinetuneSpec(TaskSpec):
    """A task, and how models are fine-tuned on it."""

    training: TrainingSpec = TrainingSpec()

    def digest(self, data: str) -> str:
        """A hash of everything that a result depends on, except the model, the seed and the number of examples.

        Args:
          data: Fingerprint of the validation and test sets; it stands for the source, which may move.
        """
        content = [self.deciding(), data, TOKENS_VERSION]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def deciding(self) -> dict[str, Any]:
        """The fields that a result depends on."""
        neither = dict.fromkeys(("source", "name", "max_unwritable"), True)
        fields = self.model_dump(mode="json", exclude={**neither, "training": set(_HOW_ONLY)})
        if self.choices is None:
            del fields["choices"]  # so that results from before there were choices count
        return fields
