"""`lensjax plan`: what a study will cost, before any training."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lensjax.cli.study import StudyFile
from lensjax.core.files import check_writable

if TYPE_CHECKING:
    from rich.table import Table

    from lensjax.study.plan_schema import Amount, Plan, Runs

SHOWN = 60  # rows of the table of rungs


def plan(
    spec: StudyFile,
    topology: str | None = None,
    mesh: str | None = None,
    timing: bool = True,
    json: Path | None = None,
) -> None:
    """Say what a study will cost, before any training.

    Of every candidate and rung: steps, tokens, FLOPs of fine-tuning with validation and test, memory on each device as
    the compiler counts it, and time, from a few steps that are timed here; FLOPs of kernels and of the bound's terms;
    and what smaller budgets would save. Of models only configuration and tokenizer are read.

    Worked examples

    $ lensjax plan study.yaml

    $ lensjax plan study.yaml --topology v5e:16x16 --mesh fsdp=64,tensor=4

    $ lensjax plan study.yaml --no-timing --json plan.json

    Args:
        spec: YAML file of the study; `lensjax study init` writes one.
        topology: TPU devices to plan for, such as v5e:16x16, which need not be attached; this needs libtpu, and times
            are those of 40 % of the published peak.
        mesh: Devices along each axis (data, fsdp, tensor) for all candidates; by default what the study says.
        timing: Time a few steps of every candidate, with made-up weights.
        json: Write everything that is known to this file.
    """
    outputs = [] if json is None else [json]
    check_writable(outputs, [spec])
    from lensjax.core.files import write_files
    from lensjax.core.processes import start_processes
    from lensjax.study.spec import read_study

    study = read_study(spec)
    start_processes()
    from lensjax.cli.main import progress_bar
    from lensjax.study.plan import make_plan

    with progress_bar("Planning") as progress:
        found = make_plan(study, topology=topology, mesh=mesh, timing=timing, progress=progress)
    print_plan(found)
    write_files({path: found.model_dump_json(indent=2) + "\n" for path in outputs})
    for path in outputs:
        print(f"Wrote {path}")


def print_plan(found: "Plan") -> None:
    """Tables that fit 80 columns, what is wrong with candidates, and a sentence."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=80)
    console.print(_candidates(found))
    for one in found.candidates:
        if one.problem:
            console.print(f"[bold]{escape(one.model)}:[/bold] {escape(one.problem)}", soft_wrap=True)
    if sum(len(one.rungs) for one in found.candidates) <= SHOWN:
        console.print(_rungs(found))
    else:
        console.print(f"Every rung of {len(found.candidates)} candidates is in what --json writes.", soft_wrap=True)
    console.print(_budgets(found))
    for text in (*found.notes, found.sentence):
        console.print(escape(text), soft_wrap=True)


def _candidates(found: "Plan") -> "Table":
    """What every candidate takes."""
    from rich import filesize

    from lensjax.core.text import DASH, count

    rows = [
        (
            one.model,
            DASH if one.parameters is None else count(one.parameters),
            DASH if one.memory is None else filesize.decimal(one.memory.peak),
            DASH if one.each is None else f"{one.each.steps[1]:.2g} s",
            *_amount(one.total),
        )
        for one in found.candidates
    ]
    device = found.topology or found.device
    title = f"{found.study}: candidates on {device}, {found.devices} device{'s' * (found.devices > 1)}"
    return _table(title, ("model", "size", "memory", "long step", "FLOPs", "time"), rows)


def _rungs(found: "Plan") -> "Table":
    """What every run takes, and what is measured before and after it."""
    from lensjax.core.text import count
    from lensjax.measure.measurement import MEASUREMENTS

    def row(runs: "Runs", examples: str) -> tuple[str, ...]:
        return (examples, str(runs.runs), f"{runs.steps:,}", count(runs.tokens), *_amount(runs))

    groups: list[tuple[str, ...]] = []
    for one in found.candidates:
        rows: list[tuple[str, ...]] = []
        for amounts, each in ((one.evidence, ""), (one.evidence_of_rung, ", each")):
            rows += [(MEASUREMENTS[kind].label + each, "", "", "", *_amount(amounts[kind])) for kind in amounts]
        if one.search is not None:
            rows.append(row(one.search, f"{one.search.examples:,}, rates"))
        rows += [row(rung, f"{rung.examples:,}") for rung in one.rungs]
        if one.full_tuning is not None:
            rows.append(row(one.full_tuning, f"all {found.target:,}"))
        groups += [("" if i else one.model, *cells) for i, cells in enumerate(rows)]
    return _table("Runs", ("model", "examples", "runs", "steps", "tokens", "FLOPs", "time"), groups)


def _budgets(found: "Plan") -> "Table":
    """What smaller budgets would save."""
    from lensjax.core import text

    rows = [(f"{row.examples:,}", *_amount(row), text.share(row.share)) for row in found.budgets]
    rows.append((f"FullTuning, all {found.target:,}", *_amount(found.full_tuning), ""))
    return _table("Budgets", ("largest rung", "FLOPs", "time", "of FullTuning"), rows)


def _amount(amount: "Amount | None") -> tuple[str, str]:
    """Operations and time."""
    from lensjax.core import text

    if amount is None:
        return text.DASH, text.DASH
    return text.flops(amount.flops), text.DASH if amount.seconds is None else text.duration(amount.seconds)


def _table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> "Table":
    from rich.box import SIMPLE
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", title_style="bold", box=SIMPLE)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", overflow="fold", no_wrap=number > 0)
    for row in rows:
        table.add_row(*map(escape, row))
    return table
