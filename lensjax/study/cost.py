"""The cost of a study so far, beside that of fine-tuning every candidate on everything."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from lensjax.core.devices import CPU_WATTS, watts
from lensjax.study import schema
from lensjax.study.folder import read_searches
from lensjax.study.journal import Entry
from lensjax.study.state import StudyState
from lensjax.train.results import Result


def study_cost(state: StudyState) -> schema.Cost:
    """What was spent, by candidate and kind of work, and what was saved.

    Raises:
      InputError: a result cannot be read.
    """
    spec, spent = state.spec, tuple(_spent(state))
    seconds = {name: sum(one.seconds for one in spent if one.model == name) for name in spec.names}
    hour = spec.price_per_hour
    total = _consumption(sum(one.flops for one in spent), seconds, state.results, hour)
    runs = {name: _Runs(name, state) for name in spec.names}
    known = [name for name in spec.names if runs[name].largest]
    full, saved = None, None
    if known and set(spec.names) <= {*known, *state.failed, *state.refused}:
        flops = round(sum(runs[name].take("flops", state.target) for name in known))
        taking = {name: runs[name].take("seconds", state.target) for name in known}
        full = _consumption(flops, taking, state.results, hour)
        saved = 1 - total.flops / full.flops if full.flops else None
    ladder = {(name, size): runs[name].take("flops", size) for name in known for size in state.sizes if size}
    skipped = (
        flops
        for (name, size), flops in ladder.items()
        if name not in state.failed
        and size not in runs[name].measured
        and (state.ended_by == "rule" or name in state.eliminated)
    )
    return schema.Cost(
        spent=spent,
        total=total,
        full_tuning=full,
        full_tuning_of=tuple(known),
        share_saved=saved,
        ladder_flops=round(sum(ladder.values())),
        skipped_flops=round(sum(skipped)),
        energy=_assumption(state.results),
    )


def run_cost(state: StudyState, name: str, size: int) -> schema.Consumption | None:
    """FLOPs and seconds that a candidate's runs on a number of examples take; None where it has none yet."""
    runs = _Runs(name, state)
    if not runs.largest:
        return None
    flops, seconds = runs.take("flops", size), runs.take("seconds", size)
    return schema.Consumption(flops=round(flops), seconds=seconds, kwh=None)


class _Runs:
    """A candidate's runs with all seeds: as measured, or in proportion to its largest one."""

    def __init__(self, model: str, state: StudyState) -> None:
        self.measured: dict[int, list[Result]] = defaultdict(list)
        for result in state.results:
            if result.model == model and result.status == "ok" and result.examples:
                self.measured[result.examples].append(result)
        self.largest, self._seeds = max(self.measured, default=0), len(state.spec.seeds)

    def take(self, unit: str, size: int) -> float:
        """FLOPs or seconds that runs on so many examples take."""
        near = size if size in self.measured else self.largest
        runs = self.measured[near]
        return sum(getattr(result, unit) for result in runs) / len(runs) * self._seeds * size / near


def _spent(state: StudyState) -> Iterator[schema.Spent]:
    """The journal's cells, failed tries included, and the runs that only the choice of a learning rate needed."""
    cells: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in state.journal:
        if entry.cell is not None:
            cells[entry.cell.model, entry.cell.kind].append(entry)
    for (model, kind), entries in sorted(cells.items()):
        if model in state.spec.names:
            seconds, flops = round(sum(entry.seconds for entry in entries), 3), sum(entry.flops for entry in entries)
            count = len({entry.cell for entry in entries})
            yield schema.Spent(model=model, kind=kind, cells=count, seconds=seconds, flops=flops)
    for one in state.spec.candidates:
        if runs := read_searches(state.out, one, state.results, dict(state.faults)):
            flops = sum(run.flops for run in runs)  # whose seconds are in those of the cell that searched
            yield schema.Spent(model=one.name, kind=schema.LEARNING_RATES, cells=len(runs), seconds=0, flops=flops)


def _consumption(
    flops: int, seconds: dict[str, float], results: Sequence[Result], price_per_hour: float | None
) -> schema.Consumption:
    """FLOPs, with candidates' seconds, their price, and their energy, where the power of all devices is known."""
    power = {name: _power(name, results) for name, took in seconds.items() if took}
    joules = [seconds[name] * each for name, each in power.items() if each is not None]
    kwh = sum(joules) / 3.6e6 if len(joules) == len(power) else None
    total = sum(seconds.values())
    price = None if price_per_hour is None else price_per_hour * total / 3600
    return schema.Consumption(flops=flops, seconds=total, kwh=kwh, price=price)


def _power(model: str, results: Sequence[Result]) -> float | None:
    """Watts of the devices that a candidate, or else others, ran on; JAX may divide a host's CPU into any number."""
    own = [result for result in results if result.model == model] or results
    used = {(result.device, 1 if result.device == "cpu" else result.devices) for result in own}
    each = [(watts(device), count) for device, count in used]
    known = [power * count for power, count in each if power is not None]
    return max(known) if known and len(known) == len(each) else None


def _assumption(results: Iterable[Result]) -> str:
    """How energy is estimated, in a sentence."""
    devices = sorted({result.device for result in results})
    if not devices:
        return "Energy is estimated once a run has ended, from the power of its devices."
    unknown = [device for device in devices if watts(device) is None]
    if unknown:
        return f"Energy is not estimated: the power of {', '.join(unknown)} is not known."
    each = ", ".join(
        f"{CPU_WATTS:.0f} W, which CodeCarbon assumes for processors that it does not know"
        if device == "cpu"
        else f"{watts(device):.0f} W each of {device}"
        for device in devices
    )
    return f"Energy is wall time at the rated power of the devices ({each}), without their hosts and cooling."
