"""What a study took, and what that is of fine-tuning every candidate on everything."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from lensjax.core.devices import CPU_WATTS, watts
from lensjax.measure.measurement import MEASUREMENTS
from lensjax.study import schema
from lensjax.study.folder import read_searches
from lensjax.study.spec import CandidateSpec
from lensjax.study.state import StudyState
from lensjax.train.results import Result


def study_cost(state: StudyState, out: Path) -> schema.Cost:
    """What was spent by candidate and kind of work, and what was saved.

    Raises:
      InputError: a result cannot be read.
    """
    spec, good = state.spec, [result for result in state.results if result.status == "ok"]
    spent = [*_cells(state), *(found for one in spec.candidates if (found := _searches(one, state, out)))]
    power = {name: _power(name, state.results) for name in spec.names}
    seconds = {name: sum(one.seconds for one in spent if one.model == name) for name in spec.names}
    total = schema.Consumption(
        flops=sum(one.flops for one in spent), seconds=sum(seconds.values()), kwh=_energy(seconds, power)
    )
    runs = {name: _Runs([r for r in good if r.model == name], len(spec.seeds)) for name in spec.names}
    known = [name for name in spec.names if runs[name].largest]
    full, saved = None, None
    if known and set(spec.names) <= {*known, *state.failed}:
        took = {name: runs[name].seconds(state.target) for name in known}
        full = schema.Consumption(
            flops=round(sum(runs[name].flops(state.target) for name in known)),
            seconds=sum(took.values()),
            kwh=_energy(took, power),
        )
        saved = 1 - total.flops / full.flops if full.flops else None
    ladder = {name: {size: runs[name].flops(size) for size in state.sizes if size} for name in known}
    skipped = (
        ladder[name][size]
        for name in known
        for size in ladder[name]
        if name not in state.failed
        and size not in runs[name].measured
        and (state.ended_by == "rule" or name in state.eliminated)
    )
    return schema.Cost(
        spent=tuple(spent),
        total=total,
        full_tuning=full,
        full_tuning_of=tuple(known),
        share_saved=saved,
        ladder_flops=round(sum(sum(sizes.values()) for sizes in ladder.values())),
        skipped_flops=round(sum(skipped)),
        energy=_assumption(state.results),
    )


class _Runs:
    """What runs of a candidate take with all seeds: measured, or in proportion to its largest one."""

    def __init__(self, results: Iterable[Result], seeds: int) -> None:
        self.measured: dict[int, list[Result]] = defaultdict(list)
        for result in results:
            if result.examples:
                self.measured[result.examples].append(result)
        self.largest, self._seeds = max(self.measured, default=0), seeds

    def flops(self, size: int) -> float:
        return self._take(size, "flops")

    def seconds(self, size: int) -> float:
        return self._take(size, "seconds")

    def _take(self, size: int, unit: str) -> float:
        near = size if size in self.measured else self.largest
        runs = self.measured[near]
        mean = sum(getattr(result, unit) for result in runs) / len(runs)
        return float(mean * self._seeds * size / near)


def _cells(state: StudyState) -> list[schema.Spent]:
    """What cells took by the journal, tries that failed included."""
    entries = [(entry.cell, entry) for entry in state.journal if entry.cell is not None]
    spent = []
    for name, kind in itertools.product(state.spec.names, MEASUREMENTS):
        of_kind = [(cell, entry) for cell, entry in entries if (cell.model, cell.kind) == (name, kind)]
        if of_kind:
            spent.append(
                schema.Spent(
                    model=name,
                    kind=kind,
                    cells=len({cell for cell, _ in of_kind}),
                    seconds=round(sum(entry.seconds for _, entry in of_kind), 3),
                    flops=sum(entry.flops for _, entry in of_kind),
                )
            )
    return spent


def _searches(candidate: CandidateSpec, state: StudyState, out: Path) -> schema.Spent | None:
    """The runs that a learning rate was chosen by, but for those that count as a rung's."""
    own = read_searches(out, candidate, state.results)
    if not own:
        return None
    flops = sum(result.flops for result in own)
    return schema.Spent(model=candidate.name, kind=schema.LEARNING_RATES, cells=len(own), seconds=0, flops=flops)


def _power(model: str, results: Sequence[Result]) -> float | None:
    """Watts of the devices that a candidate, or else others, ran on; of a host's CPU JAX may make any number."""
    own = [result for result in results if result.model == model] or results
    used = {(result.device, 1 if result.device == "cpu" else result.devices) for result in own}
    each = [(watts(device), count) for device, count in used]
    known = [power * count for power, count in each if power is not None]
    return max(known) if known and len(known) == len(each) else None


def _energy(seconds: dict[str, float], power: dict[str, float | None]) -> float | None:
    """kWh of candidates' seconds; None where a power is missing."""
    joules = 0.0
    for name, took in seconds.items():
        each = power[name]
        if took and each is None:
            return None
        joules += took * (each or 0.0)
    return joules / 3.6e6


def _assumption(results: Iterable[Result]) -> str:
    """How energy is estimated, in a sentence."""
    devices = sorted({result.device for result in results})
    if not devices:
        return "Energy is estimated once a run has ended, from the power of its devices."
    unknown = [device for device in devices if watts(device) is None]
    if unknown:
        return f"Energy is not estimated: the power of {', '.join(unknown)} is not known."
    each = ", ".join(
        f"{CPU_WATTS:.0f} W, which CodeCarbon takes for processors that it does not know"
        if device == "cpu"
        else f"{watts(device):.0f} W each of {device}"
        for device in devices
    )
    return f"Energy is wall time at the rated power of the devices ({each}), without their hosts and cooling."
