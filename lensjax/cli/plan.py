"""`lensjax plan`: what a study will cost, before any training."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lensjax.cli.arguments import Settings, StudyFile, XlaPreset
from lensjax.cli.console import make_console, make_table, progress_bar
from lensjax.cli.outputs import output_writer
from lensjax.cli.specs import read_studies
from lensjax.core.text import escaped_json, json_text

if TYPE_CHECKING:
    from rich.table import Table

    from lensjax.study.plan_schema import Amount, CandidatePlan, Plan, Runs

SHOWN = 60  # rows of the table of rungs


def plan(
    spec: StudyFile,
    topology: str | None = None,
    mesh: str | None = None,
    chip: Path | None = None,
    timing: bool = True,
    choices: bool = False,
    json: Path | None = None,
    xla_preset: XlaPreset = None,
    settings: Settings = (),
) -> None:
    """Say what a study will cost, before any training.

    Prints what the candidates' tokenizers cannot write, and for every candidate and rung the steps, tokens, FLOPs of
    fine-tuning with validation and test, memory on each device as the compiler counts it, and time, from a few steps
    that are timed here; FLOPs of kernels and of the bound's terms; and what smaller budgets would save. Reads only
    configuration and tokenizer of the models.

    Worked examples

    $ lensjax plan study.yaml

    $ lensjax plan study.yaml --topology v5e:16x16 --mesh fsdp=64,tensor=4

    $ lensjax plan study.yaml --topology v5p:8x8x8 --mesh auto

    $ lensjax plan study.yaml --topology h100:8 --mesh auto

    $ lensjax plan study.yaml --no-timing --json plan.json

    $ lensjax plan study.yaml --no-timing --choices

    Args:
        topology: Chips to plan for, which need not be attached: v5e:16x16, v5e:16x16:2 for two such slices, or h100:16
            for two nodes of eight GPUs, for which TPU chips stand in. This needs libtpu; times are those that the
            compiled programs take at least, at the published rates of chips and links.
        mesh: Devices along each axis (data, fsdp, tensor) for all candidates; by default what the study says. With
            'auto', that of each candidate with the shortest step on the topology, for which the best few are compiled.
        chip: YAML file of facts about the topology's chips, in place of those that are published: name, tera (dense
            TFLOP/s in bfloat16), memory_gb, memory_gbps, link_gbps (GB/s of a link in one direction), torus (its
            dimensions), wraps (what sizes are multiples of that close to a ring), network_gbps (between slices or
            nodes), node (chips behind a switch).
        choices: Say what each way to fine-tune the candidates takes too, and which is the cheapest that fits: all
            parameters or adapters, over kernels in int8 or NF4 or neither, with each remat. This compiles 16 programs
            for each candidate.
        timing: Time a few steps of every candidate, with made-up weights.
        json: Write the whole plan to this file, of several tasks by their names.
    """
    write = output_writer(json, reads=[spec, *([chip] if chip else [])])
    from lensjax.core.presets import use_preset
    from lensjax.core.processes import start_processes

    studies = read_studies(spec, settings)
    use_preset(xla_preset)
    start_processes()
    from lensjax.study.plan import make_plan

    plans = {}
    for name, study in studies.items():
        with progress_bar(f"Planning {name}".rstrip()) as progress:
            plans[name] = make_plan(
                study, topology=topology, mesh=mesh, chip=chip, timing=timing, choices=choices, progress=progress
            )
    write(lambda: json_of(plans))
    for planned in plans.values():
        print_plan(planned)


def json_of(plans: "Mapping[str, Plan]") -> str:
    """Plans as JSON: that of the only task as it is, those of several by the tasks' names."""
    if set(plans) == {""}:
        return escaped_json(plans[""].model_dump_json(indent=2)) + "\n"
    return json_text({name: plan.model_dump(mode="json") for name, plan in plans.items()})


def print_plan(plan: "Plan") -> None:
    """Print a plan: tables that fit 80 columns, problems of candidates, notes, and a conclusion.

    Args:
      plan: As `lensjax.study.plan.make_plan` returns it.
    """
    from rich.markup import escape

    from lensjax.tasks.writing import SHARES, in_words
    from lensjax.train.choices import sentence

    console = make_console(80)
    console.print(_candidates(plan))
    for one in plan.candidates:
        if one.problem:
            console.print(f"[bold]{escape(one.model)}:[/bold] {escape(one.problem)}", soft_wrap=True)
    found = {one.model: one.writing for one in plan.candidates if one.writing is not None}
    if not all(one.is_whole for one in found.values()):
        rows = [(model, *one.shares) for model, one in found.items()]
        console.print(
            _table("What tokenizers cannot write", ("model", *(name.replace(" ", "\n") for name in SHARES)), rows)
        )
    if found:
        console.print(in_words(list(found.values())))
    for one in plan.candidates:
        if one.ineligible and not one.problem:
            said = f"[bold]{escape(one.model)}[/bold] will be measured, but never chosen: {escape(one.ineligible)}."
            console.print(said, soft_wrap=True)
    for one in plan.candidates:
        if one.choices:
            console.print(_choices(one))
            console.print(escape(f"{one.model}: {sentence(one.choices)}"), soft_wrap=True)
    if any(one.bounds is not None for one in plan.candidates):
        console.print(_bounds(plan))
    console.print(_inference(plan))
    if sum(len(one.rungs) for one in plan.candidates) <= SHOWN:
        console.print(_rungs(plan))
    else:
        console.print(f"Every rung of {len(plan.candidates)} candidates is in what --json writes.", soft_wrap=True)
    console.print(_budgets(plan))
    for text in (*plan.notes, plan.sentence):
        console.print(escape(text), soft_wrap=True)


def _candidates(plan: "Plan") -> "Table":
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
        for one in plan.candidates
    ]
    device = plan.topology or plan.device
    title = f"{plan.study}: candidates on {device}, {plan.devices} device{'s' * (plan.devices > 1)}"
    return _table(title, ("model", "size", "memory", "long step", "FLOPs", "time"), rows)


def _bounds(plan: "Plan") -> "Table":
    """What a long step takes at least, and why."""
    rows = [
        (
            one.model,
            *(f"{seconds:.2g}" for seconds in (bounds.compute, bounds.memory, sum(bounds.networks.values()))),
            f"{bounds.seconds:.2g}",
            bounds.binding,
            f"{bounds.tokens_per_second:,.0f}",
            f"{100 * bounds.utilisation:.0f} %",
        )
        for one in plan.candidates
        if (bounds := one.bounds) is not None
    ]
    headings = ("model", "compute", "memory", "links", "step", "bound by", "tokens/s\na chip", "MFU")
    return _table("A long step: seconds at least", headings, rows)


def _choices(one: "CandidatePlan") -> "Table":
    """What the ways to fine-tune a candidate take."""
    from rich import filesize

    from lensjax.core import text

    fits = {True: "yes", False: "no", None: ""}
    rows = [
        (
            way.method,
            way.quantise or one.dtype,
            way.remat,
            text.DASH if way.memory is None else filesize.decimal(way.memory),
            text.flops(way.flops),
            fits[way.fits],
        )
        for way in one.choices
    ]
    return _table(f"Choices for {one.model}", ("method", "kernels", "remat", "memory", "FLOPs per step", "fits"), rows)


def _inference(plan: "Plan") -> "Table":
    """What every candidate costs once it is deployed."""
    from rich import filesize

    from lensjax.core.text import count

    costs = [(one.model, one.inference) for one in plan.candidates if one.inference is not None]
    rows = [
        (model, count(cost.parameters), filesize.decimal(cost.memory), count(cost.flops_per_token))
        for model, cost in costs
    ]
    return _table("At inference", ("model", "parameters", "memory", "FLOPs per token"), rows)


def _rungs(plan: "Plan") -> "Table":
    """Cost of every run, and of measurements before and after it."""
    from lensjax.core.text import count
    from lensjax.measure.measurement import MEASUREMENTS

    def row(runs: "Runs", examples: str) -> tuple[str, ...]:
        return (examples, str(runs.runs), f"{runs.steps:,}", count(runs.tokens), *_amount(runs))

    groups: list[tuple[str, ...]] = []
    for one in plan.candidates:
        rows: list[tuple[str, ...]] = []
        for amounts, each in ((one.evidence, ""), (one.evidence_of_rung, ", each")):
            rows += [(MEASUREMENTS[kind].label + each, "", "", "", *_amount(amounts[kind])) for kind in amounts]
        if one.search is not None:
            rows.append(row(one.search, f"{one.search.examples:,}, rates"))
        rows += [row(rung, f"{rung.examples:,}") for rung in one.rungs]
        if one.full_tuning is not None:
            rows.append(row(one.full_tuning, f"all {plan.target:,}"))
        groups += [("" if i else one.model, *cells) for i, cells in enumerate(rows)]
    return _table("Runs", ("model", "examples", "runs", "steps", "tokens", "FLOPs", "time"), groups)


def _budgets(plan: "Plan") -> "Table":
    """What smaller budgets would save."""
    from lensjax.core import text

    rows = [(f"{row.examples:,}", *_amount(row), text.share(row.share)) for row in plan.budgets]
    rows.append((f"FullTuning, all {plan.target:,}", *_amount(plan.full_tuning), ""))
    return _table("Budgets", ("largest rung", "FLOPs", "time", "of FullTuning"), rows)


def _amount(amount: "Amount | None") -> tuple[str, str]:
    """Operations and time."""
    from lensjax.core import text

    if amount is None:
        return text.DASH, text.DASH
    return text.flops(amount.flops), text.DASH if amount.seconds is None else text.duration(amount.seconds)


def _table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> "Table":
    from rich.box import SIMPLE

    return make_table(title, headings, rows, words=headings[:1], wrap=False, box=SIMPLE)
