"""What would decide between models that are too close to call: runs, their cost, and how probably they do."""

from dataclasses import dataclass
from typing import Any

from lensjax.core.errors import shorten
from lensjax.selection.advice import Point

DECIDED = 0.8  # P(best) of the choice from which on it is decided
PROBABLY = 0.5  # probability of that from which on a plan is worth its name


@dataclass(frozen=True)
class Plan:
    """Runs, and what they are expected to decide.

    Attributes:
      points: models and numbers of examples to fine-tune on, all before the next choice.
      cost: of them all, in the unit of the given costs.
      probability: that P(best) of the choice is at least `DECIDED` once they are measured.
      error: standard error of `probability`, which is estimated from draws.
      chance: P(best) that the choice then has on average.
    """

    points: tuple[Point, ...]
    cost: float
    probability: float
    error: float
    chance: float

    @property
    def examples(self) -> int:
        """Of all runs."""
        return sum(point.examples for point in self.points)


@dataclass(frozen=True, repr=False)
class Decisive:
    """What would decide a choice that is too close to call.

    Attributes:
      plan: the cheapest that probably does, or the likeliest to where none does; None where that is not known.
      why: why it is not known, in a sentence.
      cost: of the plan, in words; "" where they are left out.
    """

    plan: Plan | None
    why: str = ""
    cost: str = ""

    def __repr__(self) -> str:
        return f"<{self.sentence}>"

    @property
    def is_probable(self) -> bool:
        """Whether the plan probably decides it."""
        return self.plan is not None and self.plan.probability >= PROBABLY

    @property
    def sentence(self) -> str:
        """What to measure, what that costs, and how probably it decides."""
        if self.plan is None:
            return self.why
        plan, size = self.plan, self.plan.points[0].examples
        each = " each" if len(plan.points) > 1 else ""
        names = ", ".join(shorten(point.model, 100) for point in plan.points)  # all of them, to be measured
        runs = f"{names} on {size:,} examples{each}"
        price = ", ".join(filter(None, [f"{plan.examples:,} in all" if each else "", self.cost]))
        runs += f" ({price})" if price else ""
        then = (
            f"P(best) of the choice is then {DECIDED} or more with probability {plan.probability:.2f} as simulated "
            f"(about half as often in trials), and {plan.chance:.2f} on average"
        )
        if self.is_probable:
            return f"Fine-tuning {runs} may well decide it: {then}."
        return f"No further runs of one size would probably decide it. The likeliest to is fine-tuning {runs}: {then}."

    def content(self) -> dict[str, Any]:
        """For JSON."""
        plan = self.plan
        runs = None if plan is None else [{"model": one.model, "examples": one.examples} for one in plan.points]
        numbers = () if plan is None else ("examples", "cost", "probability", "error", "chance")
        return {"runs": runs, **{name: getattr(plan, name) for name in numbers}, "sentence": self.sentence}
