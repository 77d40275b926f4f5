"""What tests of fine-tuned candidates showed: losses in every unit and task metrics, with standard errors."""

from collections.abc import Sequence
from itertools import groupby

from lensjax.core import text
from lensjax.core.sections import DataTable
from lensjax.curves.units import NATS_PER_TOKEN
from lensjax.study.schema import CandidateState, Score, Tested
from lensjax.train.results import METRICS, Result

_SHOWN = (METRICS[0], NATS_PER_TOKEN.key, *METRICS[1:])


def tested(results: Sequence[Result]) -> tuple[Tested, ...]:
    """What the tests of a candidate showed, by number of training examples.

    Args:
      results: Of its runs; those that failed say nothing. Numbers are means over seeds, and so are their errors: tests
        of all seeds have the same examples.
    """

    def score(value: str, error: str, runs: Sequence[Result]) -> Score | None:
        values = [one for run in runs if (one := getattr(run, value)) is not None]
        errors = [one for run in runs if (one := getattr(run, error)) is not None]
        if not values:
            return None
        mean_error = sum(errors) / len(errors) if len(errors) == len(values) else None
        return Score(value=sum(values) / len(values), error=mean_error)

    found = []
    ran = sorted((run for run in results if run.status == "ok"), key=lambda run: run.examples)
    for examples, group in groupby(ran, key=lambda run: run.examples):
        runs = list(group)
        scores = {name: score(name, f"{name}_error", runs) for name in METRICS}
        scores |= {NATS_PER_TOKEN.key: score("loss", "standard_error", runs)}
        known = {name: one for name, one in scores.items() if one is not None}
        found.append(Tested(examples=examples, seeds=len(runs), scores=known))
    return tuple(found)


def tested_table(candidates: Sequence[CandidateState]) -> DataTable | None:
    """The last test of each candidate, after its largest number of examples; None where nothing is tested yet."""
    last = [(one.name, one.tests[-1]) for one in candidates if one.tests]
    names = [name for name in _SHOWN if any(name in test.scores for _, test in last)]
    rows = [(name, [f"{test.examples:,}", *(_said(test.scores.get(one)) for one in names)]) for name, test in last]
    columns = ["Examples", *(name[:1].upper() + name[1:].replace("_", " ") for name in names)]
    return DataTable("Tests after each candidate’s largest run", columns, rows) if rows else None


def tested_notes(candidates: Sequence[CandidateState]) -> list[str]:
    """What limits the tests of candidates, in sentences."""
    return [f"{one.name}: {note}." for one in candidates for note in one.notes]


def _said(score: Score | None) -> str:
    if score is None:
        return text.DASH
    return text.number(score.value) if score.error is None else f"{text.number(score.value)} ± {score.error:#.2g}"
