"""How runs of a study learned: validation losses along their steps, and what the models wrote in the end."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from lensjax.core import text
from lensjax.core.artefacts import read_ours
from lensjax.core.errors import InputError
from lensjax.core.sections import DataTable, Line, LinePlot, Section
from lensjax.measure.measurement import FINETUNE, Cell
from lensjax.study.folder import run_folder
from lensjax.study.schema import CandidateState, LearningCurve
from lensjax.study.spec import StudySpec
from lensjax.train.recorder import LOG
from lensjax.train.results import Result
from lensjax.train.samples import Sample

_POINTS = 60  # of a curve
_MOST_STEPS = 2**53  # from which on numbers are not whole in a page
_PLOTS, _ROWS = 6, 5
_LETTERS = 300  # of a text in a table


def learning_curves(spec: StudySpec, out: Path, results: Sequence[Result]) -> tuple[LearningCurve, ...]:
    """The validation losses of runs, as far as their logs can be read; the first seed's alone.

    Args:
      spec, out: The study and its folder.
      results: Of its runs.
    """
    curves = []
    for result in results:
        if not result.steps or result.seed != spec.seeds[0] or result.model not in spec.names:
            continue
        cell = Cell(FINETUNE, result.model, result.examples, result.seed)
        points = list(_validations(run_folder(out, spec.candidate(result.model), cell) / LOG))
        points = points[:: math.ceil(len(points) / _POINTS)] if len(points) > _POINTS else points
        if points:
            steps, losses = zip(*points, strict=True)
            curves.append(LearningCurve(model=result.model, examples=result.examples, steps=steps, losses=losses))
    return tuple(curves)


def _validations(path: Path) -> Iterator[tuple[int, float]]:
    """Steps of a log, which grow, and their validation losses; lines that are none are passed over."""
    try:
        lines = (read_ours(path) or b"").splitlines()
    except InputError:  # a report can do without
        return
    last = 0
    for line in lines:
        try:
            found = json.loads(line)
            step, loss = found.get("step"), found.get("validation_loss")
        except (ValueError, AttributeError, RecursionError):
            continue
        if type(step) is int and last < step < _MOST_STEPS and isinstance(loss, float) and 0 < loss < math.inf:
            last = step
            yield step, loss


def learning_section(curves: Sequence[LearningCurve], order: Sequence[str]) -> Section | None:
    """A plot for each of the first candidates, with a line for each rung; None where nothing is known.

    Args:
      curves: See `learning_curves`.
      order: Candidates in the order of the ranking; the others follow.
    """
    places = {name: place for place, name in enumerate(order)}
    names = sorted(dict.fromkeys(curve.model for curve in curves), key=lambda name: places.get(name, len(places)))
    if not names:
        return None
    plots = []
    for number, name in enumerate(names[:_PLOTS]):
        own = sorted((one for one in curves if one.model == name), key=lambda one: -one.examples)
        lines = [Line(f"{text.count(one.examples)} examples", one.steps, one.losses) for one in own]
        title, axes = text.clean(name, 60), ("steps", "validation loss, nats per token")
        plots.append(LinePlot(f"learning-{number}", title, *axes, lines, "Largest runs in colour."))
    of = f" of the first {_PLOTS} of {len(names)} candidates" if len(names) > _PLOTS else ""
    notes = [
        f"Validation losses{of} along the steps of each run, both on logarithmic scales. A run’s test is at its lowest "
        "point; a line that still falls where it ends was trained too short."
    ]
    return Section("learning", "How runs learned", notes, plots=plots)


def samples_section(candidates: Sequence[CandidateState], order: Sequence[str]) -> Section | None:
    """What the first two candidates of a ranking write for the same test examples; None where one's are not known.

    Args:
      candidates: Of the study.
      order: Their names in the order of the ranking.
    """
    samples = {one.name: one.samples for one in candidates if one.samples}
    first = [name for name in order if name in samples][:2]
    if not first:
        return None
    rows = []
    for number, example in enumerate(samples[first[0]][:_ROWS]):
        own = [samples[name][number] if number < len(samples[name]) else None for name in first]
        answers = [text.DASH if one is None else _shown(one.answer) for one in own]
        rows.append((f"{number + 1}", [_shown(example.prompt), _shown(example.target), *answers]))
    columns = ["Prompt", "Right answer", *first]
    right = " and ".join(f"{name} {_right(samples[name])} of {len(samples[name])}" for name in first)
    notes = [f"What the models answer to test examples after their largest run, greedily. Right: {right}."]
    table = DataTable("Sample answers", columns, rows, words=columns, heading="Example")
    return Section("samples", "What the models write", notes, tables=[table])


def _right(samples: Sequence[Sample]) -> int:
    return sum(one.answer.strip() == one.target.strip() for one in samples)


def _shown(value: str) -> str:
    return text.clean(value.strip().replace("\n", " ⏎ "), _LETTERS) or text.DASH
