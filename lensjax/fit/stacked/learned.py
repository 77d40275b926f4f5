"""Weights and widths of a stack: what other tasks taught, changed by what a table's own back-test says.

The components say how much further each curve falls beyond its largest measured size. The back-test leaves out the
largest sizes of every model and compares what each component says of the last with what was measured there. With e_c
the log root mean square error of a component less the joint fit's, n errors in all, and p points of a typical model,

    log w_c / w_0 = a_c + f max(0, log2(5.5 / p)) [c tells no slopes apart] - η n / (n + 10) e_c,
    τ = max(1, 8 / p)^γ.

So where a curve has few points, a common slope counts more, and intervals are wider. Models fall by the weighted mean;
but where they are many, the joint fit has learned from them how much slopes differ, and the others say less of that
than of how far models fall altogether. So with r the median over models of the weighted mean of falls over the joint
fit's, from 1/2 to 2, and κ = min(1, 20 / M), falls are κ times the weighted mean plus (1 - κ) r times the joint fit's.

The numbers a, f, η and ζ (see `StackedPosterior`) and the 20 were set by hand on public curves and those of our zoo; γ
and the growth λ of falls are about what medians and intervals on all of these tasks teach
(`experiments/decisions/intervals.py`). How wide intervals should be is not told by how far the joint fit errs in the
back-test: on some tasks it errs more there than at the target, on others less.

    python experiments/decisions/run.py --learn-all

learns them anew, under a pull to these, and judges every task with those that the other tasks teach.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

COMPONENTS = ("joint", "last_three", "ats", "common", "none")
ALIKE = np.array([False, False, True, True])  # of the components but the joint fit: those that tell no slopes apart
ENOUGH = 5.5  # points that tell slopes apart
MANY = 10  # errors that weigh as much as what other tasks taught
PLENTY = 8  # points from which on widths are as modelled
SEVERAL = 20  # models, beyond which the joint fit says more and more of how they differ
RATIOS = 0.5, 2.0  # least and largest r; .8 to 1.4 were met
LEAST_FALL = 1e-6  # of log loss, below which there is no ratio to it


@dataclass(frozen=True)
class Record:
    """What is known of a table of M models before weighing components.

    Attributes:
      points: that a typical model was measured at.
      worse: log error of each component in the back-test, less the joint fit's.
      errors: how many were made.
    """

    points: float
    worse: Float[np.ndarray, " C"]
    errors: int


@dataclass(frozen=True)
class Learned:
    """What was set on other tasks; see the formulas at the top of the module.

    Attributes:
      log_odds: a, of the components but the joint fit.
      few_points: f.
      trust: η.
      disagreement, growth: ζ and λ of `StackedPosterior`.
      sparse: γ.
    """

    log_odds: tuple[float, ...]
    few_points: float
    trust: float
    disagreement: float
    growth: float
    sparse: float

    def weights(self, record: Record) -> Float[np.ndarray, " C"]:
        """Weights of all components."""
        few = max(0.0, float(np.log2(ENOUGH / record.points)))
        log_odds = np.concatenate([[0.0], np.asarray(self.log_odds) + self.few_points * few * ALIKE])
        log_odds -= self.trust * record.errors / (record.errors + MANY) * record.worse
        odds: Float[np.ndarray, " C"] = np.exp(log_odds - log_odds.max())
        return odds / odds.sum()

    def width(self, record: Record) -> float:
        """The factor τ."""
        return float(max(1.0, PLENTY / record.points) ** self.sparse)


def shares(
    weights: Float[np.ndarray, " C"], fall: Float[np.ndarray, "C M"], several: float = SEVERAL
) -> Float[np.ndarray, " C"]:
    """What to multiply the falls of each component by for their sum to be that of the models; see the top.

    Args:
      weights: of the components.
      fall: of models by each component.
      several: models up to which these are the weights.
    """
    falling = fall[0] > LEAST_FALL
    ratio = np.median(weights @ fall[:, falling] / fall[0, falling]) if falling.any() else 1.0
    alike = 1 - min(1.0, several / fall.shape[1])
    found: Float[np.ndarray, " C"] = (1 - alike) * weights
    found[0] += alike * np.clip(ratio, *RATIOS)
    return found


LEARNED = Learned((-0.7, -1.4, -0.3, -4.0), 2.0, 1.0, 1.1, 0.02, 0.75)
