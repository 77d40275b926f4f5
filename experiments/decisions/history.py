"""Whether the same models' whole curves on earlier tasks would improve predictions; see README.md beside this file.

LENSJAX_BENCHMARKS=FOLDER python experiments/decisions/history.py [--out DIR]
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from cases import ALL_RATIOS, TARGET
from jaxtyping import Float
from report import table_lines

from lensjax.core.errors import InputError
from lensjax.core.files import make_folder, write_files
from lensjax.curves.public import available, rectified
from lensjax.selection.methods import METHODS
from lensjax.selection.metrics import evaluate
from lensjax.selection.prediction import Prediction

FOLDER = Path(__file__).parent
METHOD = "stacked"
SCORES = ("pearson", "relative_accuracy", "log_rmse")


class Outcome(NamedTuple):
    """Log losses of M models at the target: predicted from a budget, their standard deviations, and measured."""

    predicted: Float[np.ndarray, " M"]
    sd: Float[np.ndarray, " M"]
    true: Float[np.ndarray, " M"]

    @property
    def error(self) -> Float[np.ndarray, " M"]:
        """Of the prediction, less the median of all models: what tells models apart."""
        error = self.true - self.predicted
        centred: Float[np.ndarray, " M"] = error - np.median(error)
        return centred


Outcomes = Mapping[tuple[str, int], Outcome]  # by task and ratio of target to budget


def outcome(task: str, ratio: int) -> Outcome:
    """Of all 30 models of a public task."""
    table = rectified(task)
    found = METHODS[METHOD].predict(table.up_to(TARGET // ratio), TARGET)
    assert found.draws is not None
    return Outcome(np.log(found.score), np.log(found.draws).std(axis=0), np.log(table.column(TARGET)))


def corrected(outcomes: Outcomes, task: str, ratio: int, standardised: bool) -> Float[np.ndarray, " M"]:
    """Log losses of a task as predicted, plus what the errors of the same models on two others let expect.

    The slope of one task's errors on another's is learned from the two others alone, over all budgets.

    Args:
      outcomes: of three tasks at the same ratios.
      task, ratio: which prediction to correct.
      standardised: whether errors count in standard deviations of their task, and the correction in the prediction's.
    """
    others = [name for name in dict.fromkeys(name for name, _ in outcomes) if name != task]

    def error(name: str, at: int) -> Float[np.ndarray, " M"]:
        found = outcomes[name, at].error
        return found / found.std() if standardised else found

    pairs = [
        (error(one, at), error(other, at))
        for at in dict.fromkeys(at for _, at in outcomes)
        for one, other in (others, others[::-1])
    ]
    slope = sum(x @ y for x, y in pairs) / sum(x @ x for x, _ in pairs)
    # Of two errors with correlation ρ to each other and to a third, all of one size, the mean counts 2 ρ / (1 + ρ).
    weight = 2 * slope / (1 + slope)
    shift = weight * np.mean([error(name, ratio) for name in others], axis=0)
    now = outcomes[task, ratio]
    return now.predicted + shift * (now.sd if standardised else 1)


def main(out: Path = FOLDER / "results") -> None:
    """Write history.md.

    Args:
      out: Folder for it.
    """
    tasks = available()
    if len(tasks) < 3:
        raise InputError(f"Only {len(tasks)} of three public tasks are at hand; name their folder, see README.md.")
    outcomes = {(task, ratio): outcome(task, ratio) for ratio in ALL_RATIOS for task in tasks}
    kinds = {
        f"{METHOD}, as it is": lambda task, ratio: outcomes[task, ratio].predicted,
        "plus errors on other tasks": lambda task, ratio: corrected(outcomes, task, ratio, False),
        "plus standardised errors": lambda task, ratio: corrected(outcomes, task, ratio, True),
    }
    rows: list[Sequence[object]] = []
    for name, predict in kinds.items():
        scores = []
        for task in tasks:
            cells = [
                evaluate(Prediction(np.exp(predict(task, ratio))), np.exp(outcomes[task, ratio].true))
                for ratio in ALL_RATIOS
            ]
            scores.append([float(np.mean([cell[score] for cell in cells])) for score in SCORES])
        every = [*scores, np.mean(scores, axis=0)]
        rows.append([name, *(" / ".join(f"{value:.3f}" for value in one) for one in every)])
    pairs = [(one, other) for i, one in enumerate(tasks) for other in tasks[i + 1 :]]
    correlations = [
        [
            f"1/{ratio}",
            *(float(np.corrcoef(outcomes[a, ratio].error, outcomes[b, ratio].error)[0, 1]) for a, b in pairs),
        ]
        for ratio in ALL_RATIOS
    ]
    lines = [
        "# Curves of the same models on earlier tasks",
        "",
        f"All 30 public models, means of {len(ALL_RATIOS)} budgets: {', '.join(SCORES)}. Corrections of a task are "
        "learned from the two others.",
        "",
        *table_lines(["", *tasks, "mean"], rows),
        "Correlation of the errors of one task's predictions with those of another's, by budget:",
        "",
        *table_lines(["budget / target", *(" and ".join(pair) for pair in pairs)], correlations),
    ]
    make_folder(out)
    write_files({out / "history.md": "\n".join(lines)})


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except InputError as error:
        raise SystemExit(f"{error}") from error
