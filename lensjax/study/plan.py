"""The cost of a study before any training: operations, memory, hours, and the savings of smaller budgets."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh
from rich import filesize

from lensjax.core import devices as device_facts
from lensjax.core import text
from lensjax.core.devices import device_memory
from lensjax.core.errors import InputError, shorten
from lensjax.core.topologies import Topology, find_topology
from lensjax.measure.measurement import FINETUNE, Cell
from lensjax.measure.probes import probe_batch
from lensjax.models.inference import InferenceCost
from lensjax.models.sharding import make_mesh
from lensjax.study.bench import Bench
from lensjax.study.checks import check_candidates, check_device
from lensjax.study.constraints import Constraints
from lensjax.study.inference import candidates_costs, check_some_left, refused, too_costly
from lensjax.study.plan_schema import Amount, Basis, BudgetPlan, CandidatePlan, Plan, Runs
from lensjax.study.spec import CandidateSpec, StudySpec
from lensjax.train.choices import choices as choices_of
from lensjax.train.estimate import UTILISATION, AbstractCandidate, Seconds
from lensjax.train.memory import NoRoom, what_helps
from lensjax.train.meshes import Workplace
from lensjax.train.pods import advise
from lensjax.train.prepare import Examples
from lensjax.train.spec import FinetuneSpec

AUTO = "auto"  # in place of a mesh: the one with the shortest step


def make_plan(
    spec: StudySpec,
    *,
    topology: str | None = None,
    mesh: str | None = None,
    chip: Path | None = None,
    timing: bool = True,
    choices: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Plan:
    """Plan a study from its candidates' configurations and tokenizers, without their weights.

    Args:
      spec: The study.
      topology: Chips to plan for, such as "v5e:16x16" or "h100:8", which need not be attached.
      chip: YAML file of facts about the topology's chips, by default those that are published.
      mesh: Devices along each axis for all candidates, as in "fsdp=4,tensor=2", or `AUTO`: of each the one with the
        shortest step on the topology; by default the spec's.
      choices: Compile every way to fine-tune each candidate too: all parameters or adapters, over which kernels, and
        what is computed again.
      timing: Time a few steps of every candidate, with made-up weights.
      progress: Called with the number of candidates that are done, and of all.

    Returns:
      FLOPs, seconds, and bytes on each device, at most, of every candidate, rung and budget.

    Raises:
      InputError: the spec's task cannot be read, the topology or mesh is unknown, or no candidate can be planned for.
    """
    if topology is None:
        check_device(spec)
    pod = None if topology is None else find_topology(topology, chip)
    devices = device_facts.usable_devices() if pod is None else pod.devices
    if chip is not None and topology is None:
        raise InputError(f"{chip} has facts about a topology's chips; name the topology, as in --topology v5e:16x16.")
    if mesh == AUTO and topology is None:
        raise InputError("mesh 'auto' is for topologies; name one as in --topology v5p:8x8x8, or give axes and sizes.")
    if mesh not in (None, AUTO):
        make_mesh(mesh, devices)
    bench = Bench(spec, Path())
    writing = check_candidates(spec, bench)
    timing, target = timing and topology is None, spec.target or bench.available
    costs = candidates_costs(spec)
    unwritable = {name: found.why_not(spec.task.max_unwritable) for name, found in writing.items()}
    check_some_left(spec, costs, unwritable)
    planner = _Planner(bench, target, devices, pod, mesh, timing, choices, costs)
    candidates = []
    for done, candidate in enumerate(spec.candidates):
        progress(done, len(spec.candidates))
        reasons = unwritable[candidate.name], too_costly(spec, costs).get(candidate.name, "")
        judged = {"writing": writing[candidate.name], "ineligible": "; ".join(filter(None, reasons))}
        candidates.append(planner.candidate(candidate).model_copy(update=judged))
    if not any(one.rungs for one in candidates):
        raise InputError(f"No candidate can be fine-tuned like this; of {candidates[0].model}: {candidates[0].problem}")
    good = [one for one in candidates if not one.problem]
    full = _sum(amount for one in good for amount in (_once(one), one.full_tuning))
    budgets = tuple(_budget(good, size, full) for size in bench.sizes[2:])
    reached = _reached(spec, budgets) if good else None
    basis: Basis | None = None
    if full.seconds is not None and good:
        attached: Basis = "rates" if devices[0].platform == "cpu" else "peak"
        basis = "timed" if timing else "programs" if pod is not None else attached
    plan = Plan(
        study=spec.name,
        task=spec.task.name,
        target=target,
        device=devices[0].device_kind if pod is None or not pod.stand_in else pod.chip.name,
        devices=len(devices),
        topology=topology,
        basis=basis,
        utilisation=UTILISATION if basis == "peak" else None,
        candidates=tuple(candidates),
        budgets=budgets,
        full_tuning=full,
        reached=reached,
        notes=tuple(_notes(spec, basis, [*filter(None, [pod and pod.caution]), *planner.notes])),
        sentence="",
    )
    return plan.model_copy(update={"sentence": _sentence(spec, plan)})


@dataclass(frozen=True)
class _Planner:
    """Plans candidates; see `make_plan`."""

    bench: Bench
    target: int
    devices: Sequence[object]
    pod: Topology | None
    mesh: str | None
    timing: bool
    choices: bool
    costs: Mapping[str, InferenceCost]
    notes: dict[str, None] = field(default_factory=dict)  # in order, each once
    counted: dict[str, str] = field(default_factory=dict)  # candidates whose evidence is planned for, by source

    @property
    def spec(self) -> StudySpec:
        return self.bench.spec

    def candidate(self, candidate: CandidateSpec) -> CandidatePlan:
        """The cost of a candidate, or why it cannot be fine-tuned."""
        cost, why = self.costs[candidate.name], refused(self.spec, self.costs).get(candidate.name)
        known = CandidatePlan(model=candidate.name, source=candidate.source, inference=cost)
        if why is not None:
            return known.model_copy(update={"parameters": cost.parameters, "problem": f"It is not measured: {why}."})
        try:
            return self._planned(candidate, known)
        except InputError as error:
            return known.model_copy(update={"problem": str(error)})

    def _planned(self, candidate: CandidateSpec, known: CandidatePlan) -> CandidatePlan:
        spec = self.spec.finetune_spec(candidate)
        examples = self.bench.examples(candidate.name)
        wanted = self.mesh or candidate.mesh
        if wanted == AUTO:
            wanted = self._best_mesh(candidate, spec, examples)
        mesh = make_mesh(wanted, self.devices)
        found = AbstractCandidate(spec, candidate.source, examples, mesh)
        if found.tokens.remark:
            self.notes[f"Of {shorten(candidate.name)}, {found.tokens.remark}."] = None
        room = device_memory(mesh) if self.pod is None else round(self.pod.chip.memory_gb * 1e9)
        memory, problem, seconds, bounds = None, "", None, None
        try:
            memory = found.memory
            if room is not None and memory.peak > room:
                problem = _too_large(f"{filesize.decimal(memory.peak)} of {filesize.decimal(room)}", spec, mesh)
        except NoRoom as error:
            problem = _too_large(str(error), spec, mesh)
        if not problem and self.pod is not None:
            chip = self.pod.chip
            seconds, bounds = found.from_programs(chip), found.bounds(found.step_shapes[1], chip)
        elif not problem:
            attached = found.from_rates if mesh.devices.flat[0].platform == "cpu" else found.from_peak
            seconds = found.timed() if self.timing else attached()
        costs = _Costs(found, seconds)
        planned = known.model_copy(
            update={
                "problem": problem,
                "family": found.abstract.family.model_type,
                "parameters": found.parameters,
                "dtype": found.dtype,
                "mesh": dict(mesh.shape),
                "lengths": (*found.lengths, found.tokens.evaluation_length),
                "memory": memory,
                "room": room,
                "each": seconds,
                "bounds": bounds,
                "choices": tuple(choices_of(found, room)) if self.choices else (),
                "evidence": self._evidence(candidate.name, 0, costs),
                "evidence_of_rung": self._evidence(candidate.name, self.bench.sizes[1], costs),
                "search": self._search(candidate, spec, examples, costs),
                "rungs": tuple(costs.runs(self.spec.seeds, size) for size in self.bench.sizes),
                "full_tuning": costs.runs(self.spec.seeds, self.target),
            }
        )
        if not problem:
            self.counted.setdefault(candidate.source, candidate.name)
        return planned.model_copy(update={"total": _up_to(planned, self.bench.sizes[-1])})

    def _best_mesh(self, candidate: CandidateSpec, spec: FinetuneSpec, examples: Examples) -> str:
        """The mesh with the shortest step; a note says why it is the best."""
        assert self.pod is not None
        alone = AbstractCandidate(
            spec.model_copy(update={"training": spec.training.model_copy(update={"packing": False})}),
            candidate.source,
            examples,
            make_mesh({}, self.devices[:1]),
        )
        work = Workplace(alone.abstract.config, self.pod, spec.training, alone.lengths[1], fixed=True)
        advice = advise(work)
        self.notes[f"Of {shorten(candidate.name)}, {advice.reason}"] = None
        return advice.best.mesh

    def _search(self, candidate: CandidateSpec, spec: FinetuneSpec, examples: Examples, costs: "_Costs") -> Runs | None:
        """The runs that only the choice of the learning rate needs; the chosen one is a rung's as well."""
        tried = len(spec.training.learning_rates) if examples.search else 0
        saved = self.spec.keep_models or self.spec.cells_at(Cell(FINETUNE, candidate.name, examples.search))
        taken = self.spec.seeds[0] == 0 or not saved  # a search for another seed's rung leaves no model
        if 0 in self.spec.seeds and examples.search in self.bench.sizes and taken:
            tried -= 1
        return costs.runs([0] * tried, examples.search) if tried > 0 else None

    def _evidence(self, name: str, size: int, costs: "_Costs") -> dict[str, Amount]:
        """Evidence on a rung by measurement, with all seeds; a note says why one cannot be computed."""
        amounts, model = {}, costs.candidate.curvature_model
        cells = [cell for cell in self.spec.cells(name, size) if cell.kind != FINETUNE]
        same = self.counted.get(self.spec.candidate(name).source)
        if size == 0 and cells and same is not None:
            self.notes[f"{name} before fine-tuning is {same}, whose evidence is measured once for both."] = None
            return {}
        for kind in dict.fromkeys(cell.kind for cell in cells):
            measurement = self.spec.measurements[kind]
            probes = [self.bench.probes(measurement.rows, cell.seed) for cell in cells if cell.kind == kind]
            try:
                batches = (probe_batch(model, self.spec.task, rows) if rows else None for rows in probes)
                flops = sum(measurement.flops(model, batch) for batch in batches)
            except InputError as error:
                self.notes[f"{measurement.title} of {name} cannot be computed: {error}"] = None
                continue
            if measurement.counts_flops:
                amounts[kind] = Amount(flops=flops, seconds=costs.at_speed_of_steps(flops))
        return amounts


class _Costs(NamedTuple):
    """The cost of a candidate's runs, by the seconds that its programs take."""

    candidate: AbstractCandidate
    taken: Seconds | None

    def runs(self, seeds: Sequence[int], size: int) -> Runs:
        """One run for each of some seeds, which need not differ, on a number of examples."""
        works, taken = [self.candidate.work(seed, size) for seed in seeds], self.taken
        return Runs(
            examples=size,
            runs=len(seeds),
            steps=sum(sum(work.steps) for work in works),
            tokens=sum(work.tokens for work in works),
            flops=sum(self.candidate.flops(work) for work in works),
            seconds=None if taken is None else sum(self.candidate.seconds(work, taken) for work in works),
        )

    def at_speed_of_steps(self, flops: int) -> float | None:
        """Seconds of other work at the speed of training steps."""
        long = self.candidate.step_shapes[1]
        return None if self.taken is None else flops * self.taken.steps[1] / self.candidate.step_flops(long)


def _sum(amounts: Iterable[Amount | None]) -> Amount:
    """The sum of those that are not None; its seconds are None where those of one are not known."""
    known = [amount for amount in amounts if amount is not None]
    seconds = [amount.seconds for amount in known if amount.seconds is not None]
    total = sum(seconds) if len(seconds) == len(known) else None
    return Amount(flops=sum(amount.flops for amount in known), seconds=total)


def _once(one: CandidatePlan) -> Amount:
    """The work that is done once for all runs of a candidate."""
    return Amount(seconds=None if one.each is None else one.each.preparing + one.each.compiling)


def _up_to(one: CandidatePlan, largest: int) -> Amount:
    """The cost of a candidate up to a rung."""
    rungs = [runs for runs in one.rungs if runs.examples <= largest]
    each = [amount for runs in rungs if runs.examples for amount in one.evidence_of_rung.values()]
    return _sum([_once(one), *one.evidence.values(), one.search, *rungs, *each])


def _budget(candidates: Sequence[CandidatePlan], largest: int, full: Amount) -> BudgetPlan:
    """The cost of the study up to a rung."""
    total = _sum(_up_to(one, largest) for one in candidates)
    return BudgetPlan(examples=largest, share=total.flops / full.flops if full.flops else 0.0, **dict(total))


def _reached(spec: StudySpec, budgets: Sequence[BudgetPlan]) -> int | None:
    """The largest rung within a budget of FLOPs or hours; None where there is neither, or seconds are not known."""
    flops, hours = spec.budget.flops, spec.budget.hours
    if (flops is None and hours is None) or (hours is not None and budgets[-1].seconds is None):
        return None
    most, longest = flops or math.inf, 3600 * (hours or math.inf)
    within = (row.examples for row in budgets if row.flops <= most and (row.seconds or 0) <= longest)
    return max(within, default=0)


def _too_large(needed: str, spec: FinetuneSpec, mesh: Mesh) -> str:
    """Says that a candidate does not fit the devices, and what would help."""
    helping = ["more devices along fsdp or tensor", *what_helps(spec.training, mesh)]
    needs = f"It needs {needed} of memory on each device" if needed else "It needs more memory than a device has"
    return f"{needs}; what helps: {', '.join(helping)}."


def _notes(spec: StudySpec, basis: Basis | None, others: Iterable[str]) -> Iterable[str]:
    """What the numbers of a plan leave out."""
    rules = spec.constraints or Constraints()
    usage = rules.usage(sum(rules.lengths(spec.task)))
    yield f"Costs at inference are those of {usage}: memory of weights, keys and values, FLOPs of matrix products."
    yield "FLOPs are those of matrix products, of all epochs and min_steps; early stopping makes them fewer."
    if basis == "timed":
        yield "Hours are those of steps timed here, with compiling, and without reading weights."
    elif basis == "programs":
        yield (
            "Hours are bounds from below: those of the compiled programs at the published rates of chips and links, "
            "with nothing for compiling and latencies."
        )
    elif basis == "rates":
        yield (
            "Hours are those of the compiled programs by what this machine's processor does, which was measured in a "
            "few seconds, with compiling, and without reading weights; leave out --no-timing for steps timed here."
        )
    elif basis == "peak":
        yield f"Hours assume {100 * UTILISATION:.0f} % of the devices' published peak, and nothing for compiling."
    evidence = {name: one for name, one in spec.measurements.items() if name != FINETUNE}
    if basis is not None and any(one.counts_flops for one in evidence.values()):
        yield "Seconds of evidence assume the speed of training steps."
    for name, one in evidence.items():
        if not one.counts_flops:
            yield f"{one.title} (evidence.{name}) are not counted."
    yield from others


def _sentence(spec: StudySpec, plan: Plan) -> str:
    """A plan in a sentence."""
    left_out = [shorten(one.model) for one in plan.candidates if one.problem]
    whole = plan.budgets[-1]
    row = next((row for row in plan.budgets if row.examples == plan.reached), whole)
    if len(left_out) == len(plan.candidates):
        return "No candidate fits the devices."
    start = "At most"
    if plan.reached == 0:
        start = "The budget may not be enough for two rungs; all of them are at most"
    elif row is not whole:
        start = f"Up to {row.examples:,} examples, which the budget is enough for, at most"
    where = "on this device" if plan.devices == 1 else f"on these {plan.devices} devices"
    where = where if plan.topology is None else f"on {plan.topology}"
    hours = "" if row.seconds is None else f", about {text.duration(row.seconds)} {where}"
    every = f"every candidate but {', '.join(left_out)}" if left_out else "every candidate"
    said = (
        f"{start} {text.flops(row.flops)}{hours}; {text.share(row.share)} of fine-tuning {every} on all "
        f"{plan.target:,} examples."
    )
    return said if row.share < 1 else f"{said} {_too_dear(spec, plan)}"


def _too_dear(spec: StudySpec, plan: Plan) -> str:
    """Says that a study costs more than it saves, and what makes it cheaper."""
    smaller = [row for row in plan.budgets if row.share < 1]
    cuts = [f"budget: {smaller[-1].examples} takes {text.share(smaller[-1].share)}"] if smaller else []
    if any(one.search is not None for one in plan.candidates):
        cuts.append("a single learning_rate spares the search for one")
    if spec.training.min_steps:
        cuts.append(f"training.min_steps below {spec.training.min_steps} makes small runs shorter")
    if len(spec.seeds) > 1:
        cuts.append("one seed needs fewer runs")
    how = f" To cut it: {'; '.join(cuts)}." if cuts else " With so few examples to train on, no study saves anything."
    return f"Caution: that is more than it can save.{how}"
