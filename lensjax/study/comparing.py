"""Studies of the same candidates on several tasks, side by side, and the model that costs least over all of them."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from lensjax.core import text
from lensjax.core.sections import DataTable, Section
from lensjax.core.specs import Strict
from lensjax.study.schema import Ranked, StudyReport


class Overall(Strict):
    """A candidate over several studies.

    Attributes:
      model: The candidate.
      regrets: Its expected regret in each study, as a share of the best predicted loss (or metric) there; None where it
        is not ranked, or may not be chosen.
      mean: Their mean; None unless all are known.
      chosen: Number of studies that choose it.
    """

    model: str
    regrets: tuple[float | None, ...]
    mean: float | None
    chosen: int


class Comparison(Strict):
    """Several studies.

    Attributes:
      version: Of the format; readers should refuse others.
      studies: Their names.
      decisions: Their decisions, in sentences.
      choices: The candidates that they choose; None where there is no decision.
      overall: All candidates, the lowest mean regret first, those without one last.
    """

    version: Literal[1] = 1
    studies: tuple[str, ...]
    decisions: tuple[str, ...]
    choices: tuple[str | None, ...]
    overall: tuple[Overall, ...]

    @property
    def sentence(self) -> str:
        """What the studies say together."""
        first = self.overall[0] if self.overall else None
        if first is None or first.mean is None:
            return "No candidate is ranked in all of the studies, so that none can be named for all of them."
        each = len(self.studies)
        return (
            f"Over {each} studies, {first.model} is expected to cost least: {text.share(first.mean)} of the best "
            f"model’s loss on average; it is the choice of {first.chosen} of {each}."
        )


def compare(reports: Sequence[StudyReport]) -> Comparison:
    """Studies side by side; candidates are the same where their names are.

    Regrets of tasks are in units of their own, so each counts as a share of the best predicted loss of its study, or of
    the best metric where that ranks.

    Args:
      reports: Of two studies or more.
    """
    shares = [_shares(report.ranking) for report in reports]
    choices = tuple(report.decision.model for report in reports)
    overall = []
    for name in dict.fromkeys(row.model for report in reports for row in report.ranking):
        known = tuple(each.get(name) for each in shares)
        mean = None if None in known else float(np.mean([share for share in known if share is not None]))
        overall.append(Overall(model=name, regrets=known, mean=mean, chosen=choices.count(name)))
    overall.sort(key=lambda one: np.inf if one.mean is None else one.mean)
    return Comparison(
        studies=tuple(report.study for report in reports),
        decisions=tuple(report.decision.sentence for report in reports),
        choices=choices,
        overall=tuple(overall),
    )


def _shares(ranking: Sequence[Ranked]) -> dict[str, float]:
    """Expected regrets as shares of the best; without regrets, predicted losses above the lowest."""
    rows = [row for row in ranking if row.rank is not None]
    losses = [row.predicted for row in rows if row.predicted is not None and row.predicted > 0]
    metrics = [row.metric_predicted for row in rows if row.metric_predicted]
    best = max(metrics) if metrics else min(losses, default=None)
    if best is None:
        return {}
    regrets = {row.model: row.expected_regret for row in rows if row.expected_regret is not None}
    if not regrets:
        regrets = {row.model: row.predicted - best for row in rows if row.predicted is not None}
    return {name: regret / best for name, regret in regrets.items()}


def compared_sections(reports: Sequence[StudyReport], comparison: Comparison) -> list[Section]:
    """A table of all studies, and one of each."""
    notes = [
        comparison.sentence,
        "Regrets are what choosing a candidate costs above the best one on average, as a share of the best predicted "
        "loss (or metric) of the study, so that tasks can be averaged.",
    ]
    rows = [
        (one.model, [*map(_percent, one.regrets), _percent(one.mean), f"{one.chosen} of {len(reports)}"])
        for one in comparison.overall
    ]
    table = DataTable("Expected regrets", [*comparison.studies, "Mean", "Chosen by"], rows)
    return [Section("overall", "All studies", notes, tables=[table]), *map(_of_study, range(len(reports)), reports)]


def _of_study(number: int, report: StudyReport) -> Section:
    unit = report.unit or "no unit yet"
    columns = ["P(best)", "Loss, predicted", "90 % interval", "Regret"]
    rows = [
        (
            row.model,
            [
                text.percent(_known(row.probability_best)),
                text.number(_known(row.predicted)),
                text.interval(_known(row.lower90), _known(row.upper90)),
                text.regret(_known(row.expected_regret)),
            ],
        )
        for row in report.ranking
    ]
    table = DataTable(f"Ranking of {report.study}", columns, rows)
    notes = [report.decision.sentence, f"Losses and regrets at {report.target:,} examples, in {unit}."]
    return Section(f"study-{number}", report.study, notes, tables=[table] if rows else [])


def _known(value: float | None) -> float:
    return np.nan if value is None else value


def _percent(share: float | None) -> str:
    return text.DASH if share is None else text.share(share)
