"""A study as one self-contained HTML page: its decision and ranking, and all that was measured and spent on the way."""

from collections.abc import Sequence
from typing import Any

from lensjax.core import text
from lensjax.core.sections import DataTable, Section
from lensjax.measure.measurement import FINETUNE, MEASUREMENTS
from lensjax.report.figures.curves import add_rings
from lensjax.report.pages.html import Name, render
from lensjax.report.pages.ranking import ranking_context
from lensjax.report.pages.sections import shown_section
from lensjax.selection.methods import METHODS
from lensjax.selection.ranking import Ranking
from lensjax.study.learning import learning_section, samples_section
from lensjax.study.report import runs_and_measurements
from lensjax.study.schema import LEARNING_RATES, Consumption, Elimination, StudyReport
from lensjax.study.tested import tested_notes, tested_table
from lensjax.tasks.writing import SHARES, in_words

_ENDED = {
    "rule": "ended: the decision is clear",
    "budget": "ended: the budget is spent",
    "ladder": "ended: every size is measured",
}


def render_study(report: StudyReport, ranking: Ranking | None, command: str = "", *, live: bool = False) -> str:
    """The report as one HTML page that needs no network.

    Names, errors, and decisions may hold any text; it is escaped, see `lensjax.report.pages.html.render`.

    Args:
      report: As `lensjax.study.report.collect` makes it.
      ranking: The same ranking as in the report, with fitted curves; None where the report has none.
      command: Fine-tunes the chosen model on all the data; "" to leave it out.
      live: Whether the study is running: the page then reloads itself every half minute.
    """
    # These parts frame a ranking, and are needed without one too.
    shown: dict[str, Any] = {"compared": [], "assumptions": [], "has_curves": False, "because": ""}
    sections = [section for _, kind in MEASUREMENTS.items() for section in kind.show(report)]
    if ranking is not None:
        shown = ranking_context(ranking)
        for section in sections:
            add_rings(shown["curves"].figure, ranking, section.rings)
    chosen = report.decision.model is not None and report.decision.final
    return render(
        "study.html.j2", shown | _context(report, sections) | {"command": command if chosen else "", "live": live}
    )


def _context(report: StudyReport, sections: Sequence[Section]) -> dict[str, Any]:
    order = [row.model for row in report.ranking]
    return {
        "study": text.clean(report.study, 100),
        "task": text.clean(report.task),
        "is_ranked": bool(report.ranking),
        "chosen_name": None if report.decision.model is None else Name.of(report.decision.model),
        "decision": _lead(report),
        "more": text.clean(report.decision.more),
        "final": report.decision.final,
        "is_close": report.decision.close,
        "study_facts": _facts(report),
        "warnings": [text.clean(sentence) for sentence in report.warnings],
        "so_far": shown_section(_so_far(report)),
        "rings": [text.clean(section.ring_is) for section in sections if section.rings],
        "sections": [
            *(shown_section(section, order) for section in [*_answers(report), *_tested(report), *_learned(report)]),
            *(shown_section(section, order) for section in sections),
            *map(shown_section, _of_methods(report)),
            shown_section(_cost(report)),
        ],
        "failures": [
            (text.clean(failure.cell), text.clean(failure.error), text.clean(failure.mend))
            for failure in report.failures
        ],
        "eliminated": [(Name.of(one.model), _eliminated(one)) for one in report.eliminated],
        "journal": [(text.clean(entry.time[:16]), text.clean(entry.decision)) for entry in report.journal],
        "origin": _origin(report),
        "left_out": [(Name.of(model), text.clean(why)) for model, why in report.left_out.items()],
    }


def _eliminated(one: Elimination) -> str:
    chance = "" if one.probability_best is None else f", where its P(best) was {text.percent(one.probability_best)}"
    return f"Eliminated after {one.after:,} examples{chance}."


def _lead(report: StudyReport) -> str:
    """The decision, without the words of the heading above it."""
    decision = report.decision
    name = "" if decision.model is None else text.clean(decision.model, 100)
    sentence = text.clean(decision.sentence)
    for heading in (f"ine-tune {name}: ", f"call: {name} leads, ", "No decision yet: ", "No decision: "):
        if rest := sentence.partition(heading)[2]:
            return rest[:1].upper() + rest[1:]
    return sentence


def _facts(report: StudyReport) -> list[tuple[str, str]]:
    progress, cost = report.progress, report.cost
    done = f"{runs_and_measurements(progress.done)} done"
    if progress.ended_by is not None:
        done += f"; {_ENDED[progress.ended_by]}"
    elif progress.left is not None:
        done += f", {progress.left:,} left"
    states = [candidate.state for candidate in report.candidates]
    barred = sum(row.ineligible is not None for row in report.ranking)
    not_chosen = [f"{barred} not to be chosen"] if barred else []
    dropped = (f"{states.count(state)} {state}" for state in ("eliminated", "failed", "refused") if state in states)
    spent = _amount(cost.total)
    if cost.full_tuning is not None and cost.full_tuning.flops:
        spent += f", {text.share(cost.total.flops / cost.full_tuning.flops)} of fine-tuning all on everything"
    return [
        ("Measured", f"up to {text.count(report.budget)} examples" if report.budget else "nothing yet"),
        ("Target", f"{text.count(report.target)} examples"),
        ("Candidates", ", ".join([f"{len(report.ranking) - barred} ranked", *not_chosen, *dropped])),
        ("Method", text.method_title(report.method)),
        ("Progress", done),
        ("Cost", spent),
    ]


def _so_far(report: StudyReport) -> Section:
    """Losses, for the page of a study that has no ranking yet."""
    sizes = sorted({size for candidate in report.candidates for size in candidate.losses})
    rows = [
        (one.name, [one.state, *(text.number(one.losses.get(size, float("nan"))) for size in sizes)])
        for one in report.candidates
    ]
    in_unit = "" if report.unit is None else f" in {report.unit}"
    note = f"Test loss{in_unit} by number of training examples. A ranking needs two candidates with two sizes above 0."
    table = DataTable("Test losses so far", ["State", *map(text.count, sizes)], rows)
    return Section("so-far", "Measured so far", [note], tables=[table])


def _tested(report: StudyReport) -> list[Section]:
    """Losses in every unit and task metrics of the last test of each candidate."""
    table = tested_table(report.candidates)
    if table is None:
        return []
    notes = [
        "Means over seeds, ± their standard error over other draws of the test examples. Bits are per byte of the "
        "targets’ text, so that models with different tokenizers can be compared; losses per token differ with tokens.",
        "Token accuracy is the share of target tokens that are most probable after the true ones before them; exact "
        "match is that of targets that greedy decoding writes to their ends.",
    ]
    notes += tested_notes(report.candidates)
    return [Section("tested", "Test losses and metrics", notes, tables=[table])]


def _learned(report: StudyReport) -> list[Section]:
    """What models write, and how their runs learned, where that is known."""
    chosen, ranked = report.decision.model, [row.model for row in report.ranking if row.rank is not None]
    order = list(dict.fromkeys([*([chosen] if chosen else []), *ranked]))
    found = samples_section(report.candidates, order), learning_section(report.learning, order)
    return [section for section in found if section is not None]


def _answers(report: StudyReport) -> list[Section]:
    """What the candidates' tokenizers cannot write, where that is known."""
    found = {one.name: one.writing for one in report.candidates if one.writing is not None}
    if not found:
        return []
    notes = [in_words(list(found.values()))]
    notes += [f"{name}: {one.shown}." for name, one in found.items() if one.examples]
    rows = [(name, one.shares) for name, one in found.items()]
    table = DataTable("Texts that tokenizers cannot write", [name.capitalize() for name in SHARES], rows)
    whole = all(one.is_whole for one in found.values())
    return [Section("answers", "Answers that models can write", notes, tables=[] if whole else [table])]


def _of_methods(report: StudyReport) -> list[Section]:
    """Sections of the methods that have findings of their own, or why they have none of what was measured for them."""
    return [
        method.show(getattr(report, name), getattr(report, f"{name}_missing"))
        for name, method in METHODS.items()
        if method.show is not None
        and (getattr(report, name) is not None or all(_measured(report, kind) for kind in method.needs))
    ]


def _measured(report: StudyReport, kind: str) -> bool:
    """Whether a report has findings of a measurement."""
    findings = MEASUREMENTS[kind].findings
    return findings is not None and any(getattr(report, name) for name in findings.model_fields)


def _cost(report: StudyReport) -> Section:
    titles = {FINETUNE: MEASUREMENTS[FINETUNE].title, LEARNING_RATES: "Choice of learning rates"}
    titles |= {name: kind.title for name, kind in MEASUREMENTS.items()}
    kinds = [kind for kind in titles if any(one.kind == kind for one in report.cost.spent)]
    rows = []
    for candidate in report.candidates:
        took = {one.kind: one for one in report.cost.spent if one.model == candidate.name}
        if took:
            spent = ((took[kind].seconds, took[kind].flops) if kind in took else (0, 0) for kind in kinds)
            cells = [" · ".join(filter(None, (text.duration(time), text.flops(flops)))) for time, flops in spent]
            rows.append((candidate.name, cells))
    table = DataTable("Cost of candidates", [titles[kind] for kind in kinds], rows)
    return Section("cost", "Cost", _cost_notes(report), tables=[table] if rows else [])


def _cost_notes(report: StudyReport) -> list[str]:
    """Sentences on computing that was spent and saved."""
    cost, full = report.cost, report.cost.full_tuning
    notes = [f"The study {'took' if report.progress.ended_by else 'has taken'} {_amount(cost.total)}."]
    if full is not None and full.flops and full.seconds:
        without = [text.clean(one.name, 60) for one in report.candidates if one.name not in cost.full_tuning_of]
        but = f" but {', '.join(without)}, of which every run failed," if without else ""
        notes += [
            f"FullTuning, every candidate{but} on {report.target:,} examples with every seed, would take "
            f"{_amount(full)}, in proportion to each one’s largest run.",
            f"The study took {_share(cost.total.flops / full.flops)} those FLOPs, and "
            f"{_share(cost.total.seconds / full.seconds)} that time, compiling included.",
        ]
    if cost.skipped_flops:
        notes.append(
            f"Elimination and early stopping spared {text.flops(cost.skipped_flops)} of the "
            f"{text.flops(cost.ladder_flops)} of the whole ladder, "
            f"{text.share(cost.skipped_flops / cost.ladder_flops)}."
        )
    for name, kind in MEASUREMENTS.items():
        if not kind.counts_flops and any(one.kind == name for one in cost.spent):
            notes.append(f"FLOPs of {kind.label} are not counted; their time is.")
    return [*notes, cost.energy]


def _origin(report: StudyReport) -> list[tuple[str, str]]:
    origin = report.origin
    pairs = [
        ("measured with", ", ".join([*(f"LensJAX {v}" for v in origin.lensjax), *(f"jax {v}" for v in origin.jax)])),
        ("devices", ", ".join(origin.devices)),
        ("data", ", ".join(origin.data)),
        ("seeds", ", ".join(map(str, origin.seeds))),
    ]
    return [(name, text.clean(value)) for name, value in pairs if value]


def _amount(amount: Consumption) -> str:
    parts = [text.flops(amount.flops), text.duration(amount.seconds)]
    if amount.kwh is not None:
        parts.append(f"about {amount.kwh:.2g} kWh")
    if amount.price is not None:
        parts.append(f"{amount.price:,.2f} at the given price per hour")
    return ", ".join(filter(None, parts)) or "nothing"


def _share(share: float) -> str:
    return f"{text.share(share)} of" if share < 2 else f"{share:,.3g} times"
