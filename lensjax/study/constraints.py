"""What the chosen model may cost once it is deployed, and whether a cheaper one than the best will do."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from rich import filesize

from lensjax.core import text
from lensjax.core.specs import Bytes, Count, Positive, Quantity, Strict, precision, whole
from lensjax.models.inference import InferenceCost
from lensjax.selection.cheaper import CostName, Preference, beyond
from lensjax.tasks.spec import TaskSpec


class Constraints(Strict):
    """Limits of what a model may cost at inference, and how it is used there.

    Attributes:
      parameters: Largest number of parameters, as in 1.5B.
      memory: Largest number of bytes of weights, keys and values, as in 8 GB.
      flops_per_token: Most operations of matrix products for each token of a context, as in 2e9.
      batch: Contexts that are held in memory at the same time.
      context: Tokens of a prompt and its answer together, which a model must have positions for; by default the largest
        that the task allows, or all that a model has positions for.
      dtype: Type of weights, keys and values.
      violated: Whether candidates that exceed a limit are not measured at all ("refuse"), or measured and shown, but
        never chosen ("measure").
    """

    parameters: Quantity | None = None
    memory: Bytes | None = None
    flops_per_token: Quantity | None = None
    batch: Count = 1
    context: Annotated[int, Field(ge=2, strict=True), BeforeValidator(whole)] | None = None
    dtype: Annotated[Literal["bfloat16", "float16", "float32"], BeforeValidator(precision)] = "bfloat16"
    violated: Literal["refuse", "measure"] = "refuse"

    def lengths(self, task: TaskSpec) -> tuple[int, int]:
        """Tokens of a prompt and of its answer, which share the context as the task's largest ones would."""
        prompt, answer = task.max_prompt_tokens, task.max_target_tokens
        if self.context is None:
            return prompt, answer
        part = min(max(1, round(self.context * prompt / (prompt + answer))), self.context - 1)
        return part, self.context - part

    def usage(self, context: int) -> str:
        """How a model is used at inference, in words."""
        times = f"{self.batch:,} times " if self.batch > 1 else ""
        return f"{times}a context of {context:,} tokens in {self.dtype}"

    def exceeded(self, cost: InferenceCost) -> str:
        """Which limits a model exceeds, in a sentence without its full stop; "" where it keeps all."""
        memory = f"takes {{}} of memory at inference with {self.usage(cost.context)}"
        flops = f"takes {{}} per token of a context of {cost.context:,} tokens"
        short = self.context is not None and cost.context < self.context
        found = (
            f"it has positions for {cost.context:,} tokens, and the context has {self.context:,}" if short else "",
            beyond(cost.parameters, self.parameters, "has {} parameters", text.count),
            beyond(cost.memory, self.memory, memory, _bytes, " bytes"),
            beyond(cost.flops_per_token, self.flops_per_token, flops, text.flops, " FLOP"),
        )
        return "; ".join(filter(None, found))


class Prefer(Strict):
    """A cheaper model than the best, if it is nearly as good.

    Attributes:
      smallest_within: Expected loss that may be given up, in the unit of the losses.
      by: What is to be small.
    """

    smallest_within: Positive
    by: CostName = "parameters"

    @property
    def preference(self) -> Preference:
        """The same, for rankings."""
        return Preference(self.smallest_within, self.by)


def _bytes(amount: float) -> str:
    return filesize.decimal(round(amount))
