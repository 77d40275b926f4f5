"""The best meshes of a pod, compiled: memory, time, and why the best one is."""

import gzip
import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import jax

from lensjax.core.compiled import compiled_folder
from lensjax.core.errors import InputError
from lensjax.core.files import make_folder, write_files
from lensjax.core.roofline.counters import count_program
from lensjax.core.roofline.estimate import Layout, StepBounds, step_bounds
from lensjax.core.specs import Strict
from lensjax.core.version import __version__
from lensjax.models.sharding import make_mesh
from lensjax.train.memory import NoRoom, compiled_from, program_bytes
from lensjax.train.meshes import Forecast, Outlook, Workplace, outlooks


class Placement(Strict):
    """One way to train on a pod, compiled.

    Attributes:
      mesh: Devices along each axis, as `--mesh` takes it.
      accumulation, remat: Parts of a batch, and what backward passes compute again.
      memory: Bytes of a chip that a step takes, as the compiler counts them; None where it does not say.
      bounds: Of the time of a step; None where it has no room.
      problem: Why it cannot be; "" where it can.
      forecast_memory, forecast_seconds: What was expected of it before it was compiled.
    """

    mesh: str
    accumulation: int
    remat: str
    memory: int | None = None
    bounds: StepBounds | None = None
    problem: str = ""
    forecast_memory: float | None = None
    forecast_seconds: float | None = None

    def __str__(self) -> str:
        parts = f", {self.accumulation} parts" if self.accumulation > 1 else ""
        return f"{self.mesh}, remat {self.remat}{parts}"


class Advice(Strict):
    """Meshes for a model on a pod, the fastest first.

    Attributes:
      lensjax: Version.
      topology, chips: The pod, and its number of chips.
      model_type, parameters: Of the model.
      batch_size, lengths: Examples of a step on all chips, and tokens of each.
      considered, fitting: Choices that divide everything, and meshes that are expected to fit.
      placements: Those that were compiled.
      reason: Why the first is the best.
      caution: What stands in for chips that nothing here compiles for; "" where nothing does.
    """

    lensjax: str = __version__
    topology: str
    chips: int
    model_type: str
    parameters: int
    batch_size: int
    lengths: tuple[int, ...]
    considered: int
    fitting: int
    placements: tuple[Placement, ...]
    reason: str
    caution: str = ""

    @property
    def best(self) -> Placement:
        """The fastest."""
        return self.placements[0]


def advise(work: Workplace, compiled: int = 3, progress: Callable[[int, int], None] = lambda done, of: None) -> Advice:
    """Search meshes, parts and remat for the shortest step, and compile the few that are expected to be the best.

    Args:
      work: The step, and the chips.
      compiled: Choices to compile that fit; up to three times as many are tried, and as many again where none fits.
      progress: Called with the number that is compiled, and of all.

    Raises:
      InputError: nothing divides the chips, heads and batch, or nothing fits; it says how many chips would do.
    """
    forecast = Forecast(work)
    expected = outlooks(forecast)
    found: list[Placement] = []
    tried: list[Outlook] = []
    room = work.chip.memory_gb * 1e9
    more: dict[int, float] = {}  # what a step computes with, times what is expected, of axes `tensor` that did not fit
    for one in expected:
        fits = sum(placement.problem == "" for placement in found)
        wary = len(found) >= 3 * compiled
        if fits == compiled or (wary and fits) or len(found) == 6 * compiled:
            break
        factor = max((times for axis, times in more.items() if axis <= one.choice.tensor), default=1.0)
        needed = one.held + factor * (one.memory - one.held)
        if needed > (room / 2 if wary else room):  # so many did not fit that only what is far from full is tried
            continue
        progress(fits, compiled)
        made = place(work, one)
        if made.problem:
            times = ((made.memory or 1.1 * room) - one.held) / (one.memory - one.held)
            more[one.choice.tensor] = max(times, more.get(one.choice.tensor, 1.0))
        found.append(made)
        tried.append(one)
    fitting = [one for one in found if one.bounds is not None]
    if not fitting:
        sparing = min(found, key=lambda one: one.memory or math.inf)
        taken = [one._replace(memory=made.memory) for one, made in zip(tried, found, strict=True) if made.memory]
        enough = forecast.least_chips(taken) if taken else None
        mend = "take more chips" if enough is None else f"take {enough:,} chips at least"
        raise InputError(
            f"Nothing that was compiled for {work.pod.name} fits: with {sparing}, {sparing.problem}; {mend}, shorter "
            "examples or fewer of them, or method lora."
        )
    ranked = sorted(found, key=lambda one: one.bounds.seconds if one.bounds is not None else float("inf"))
    return Advice(
        topology=work.pod.name,
        chips=len(work.devices),
        model_type=work.config.model_type,
        parameters=forecast.parameters,
        batch_size=work.training.batch_size,
        lengths=work.lengths,
        considered=sum(1 for _ in work.choices()),
        fitting=len({one.choice.mesh for one in expected}),
        placements=tuple(ranked),
        reason=_reason(ranked),
        caution=work.pod.caution,
    )


def place(work: Workplace, expected: Outlook) -> Placement:
    """Compile a choice, or take what is kept of an earlier time."""
    choice = expected.choice
    made = Placement(
        mesh=choice.mesh,
        accumulation=choice.accumulation,
        remat=choice.remat,
        forecast_memory=expected.memory,
        forecast_seconds=expected.seconds,
    )
    mesh = make_mesh(choice.mesh, work.devices)
    try:
        memory, text = kept_program(work.lower(choice), work.devices)
    except NoRoom as error:
        problem = f"it takes {error}" if str(error) else "it does not fit"
        if work.pod.stand_in:
            problem += f" of the TPU {work.pod.stand_in.partition(':')[0]} that stands in"
        return made.model_copy(update={"memory": error.needed, "problem": problem})
    room = work.chip.memory_gb * 1e9
    if memory > room:
        return made.model_copy(
            update={"memory": memory, "problem": f"it takes {memory / 1e9:.1f} GB of {room / 1e9:g} GB"}
        )
    flops, masked = work.model_flops
    layout = Layout.of(list(mesh.devices.flat), work.chip)
    counts = count_program(text, dict(mesh.shape))
    bounds = step_bounds(counts, work.chip, layout, flops=flops, masked=masked, tokens=work.tokens)
    return made.model_copy(update={"memory": memory, "bounds": bounds})


def kept_program(lowered: jax.stages.Lowered, devices: Sequence[Any]) -> tuple[int, str]:
    """Bytes of a chip, and the optimised program, which are kept for the next time under the hash of what is compiled.

    Raises:
      NoRoom: it does not fit a chip.
    """
    flags = os.environ.get("LIBTPU_INIT_ARGS", "")
    versions = version("jaxlib"), version("libtpu")
    source = (lowered.as_text(), devices[0].device_kind, len(devices), *versions, flags)
    key = hashlib.sha256(json.dumps(source).encode()).hexdigest()[:32]
    folder = compiled_folder() / "pods"
    kept = folder / f"{key}.json.gz"
    try:
        held = json.loads(gzip.decompress(kept.read_bytes()))
        return int(held["memory"]), str(held["text"])
    except (OSError, EOFError, ValueError, KeyError):  # not kept, or damaged
        pass
    compiled = compiled_from(lowered)
    memory, text = program_bytes(compiled), compiled.as_text() or ""
    try:
        make_folder(folder)
        write_files({kept: gzip.compress(json.dumps({"memory": memory, "text": text}).encode())})
    except InputError:  # it is compiled again the next time
        pass
    return memory, text


def _reason(ranked: Sequence[Placement]) -> str:
    """Why the first of several placements is the best."""
    best, others = ranked[0], [one for one in ranked[1:] if one.bounds is not None]
    assert best.bounds is not None
    start = f"{best} takes {best.bounds.seconds:.3g} s a step at least, which {best.bounds.binding} binds"
    if not others or others[0].bounds is None:
        return f"{start}; nothing else of what was compiled fits." if len(ranked) > 1 else f"{start}."
    second = others[0].bounds
    more = second.seconds / best.bounds.seconds - 1
    parts = {"compute": second.compute - best.bounds.compute, "memory": second.memory - best.bounds.memory}
    parts["links"] = sum(second.networks.values()) - sum(best.bounds.networks.values())
    name = max(parts, key=lambda key: parts[key])
    if more < 0.005:
        return f"{start}; {others[0]} is as good."
    does = {"compute": "its products take", "memory": "its memory takes", "links": "its links take"}[name]
    why = f", as {does} {parts[name]:.2g} s more" if parts[name] > 0 else ", as it hides less"
    return f"{start}; {others[0]} takes {100 * more:.0f} % longer{why}."
