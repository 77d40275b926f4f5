"""What the ways to fine-tune a model take: all of it or adapters, over which kernels, and what is computed again."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args

from rich import filesize

from lensjax.core.flops import matmul_flops
from lensjax.core.specs import Strict
from lensjax.models.lora import split_trainable
from lensjax.models.model import abstract_model
from lensjax.models.options import Remat, make_options
from lensjax.train.estimate import AbstractCandidate
from lensjax.train.memory import NoRoom, compiled, memory_of
from lensjax.train.spec import TrainingSpec
from lensjax.train.step import make_programs, state_shapes
from lensjax.train.workload import adapted

# Fields of training, the cheapest first of those that take as many operations.
WAYS: Sequence[dict[str, Any]] = [
    {"method": method, "quantise": base, "remat": remat}
    for method, bases in {"full": (None,), "lora": (None, "int8", "nf4")}.items()
    for base in bases
    for remat in get_args(Remat)
]


class Choice(Strict):
    """A way to fine-tune a candidate.

    Attributes:
      method, quantise, remat: Fields of `TrainingSpec`.
      memory: Bytes on each device at most, as `Memory.peak`; None where the compiler says that a device has fewer.
      flops: Operations of a long training step, with those that the backward pass computes again.
      fits: Whether each device has as much memory; None where that is not known.
    """

    method: str
    quantise: str | None
    remat: str
    memory: int | None
    flops: int
    fits: bool | None

    @property
    def settings(self) -> str:
        """The fields of training, as in YAML."""
        base = "" if self.quantise is None else f", quantise: {self.quantise}"
        return f"method: {self.method}{base}, remat: {self.remat}"


def choices(candidate: AbstractCandidate, room: int | None, ways: Iterable[dict[str, Any]] = WAYS) -> Iterator[Choice]:
    """What each way to fine-tune a candidate takes, as its programs are compiled for it.

    Args:
      candidate: Its other settings stay as they are.
      room: Bytes that each device has.
      ways: Fields of training that differ.
    """
    for way in ways:
        training = TrainingSpec.model_validate(candidate.spec.training.model_dump() | way)
        memory, flops = _taken(candidate, training)
        fits = memory is not None and (None if room is None else memory <= room)
        yield Choice(**way, memory=memory, flops=flops, fits=fits)


def cheapest(found: Iterable[Choice]) -> dict[str, Choice]:
    """By method, the choice of the fewest operations that is not known not to fit; none where there is none."""
    chosen: dict[str, Choice] = {}
    for one in found:
        if one.fits is not False and (one.method not in chosen or one.flops < chosen[one.method].flops):
            chosen[one.method] = one
    return chosen


def sentence(found: Sequence[Choice]) -> str:
    """Which choices are the cheapest that fit, or that none does."""
    fitting = cheapest(found)
    if not fitting:
        known = [one for one in found if one.memory is not None]
        least = min(known, key=lambda one: one.memory or 0, default=None)
        return "No choice fits" + (f"; {_named(least)} takes the least." if least else " these devices.")
    best = min(fitting.values(), key=lambda one: one.flops)
    also = [
        f"; with {'all parameters' if method == 'full' else 'adapters'}, {_named(one)}"
        for method, one in fitting.items()
        if one is not best
    ]
    return f"The cheapest that fits is {_named(best)}{''.join(also)}."


def _named(one: Choice) -> str:
    return f"{{{one.settings}}} ({filesize.decimal(one.memory or 0)})"


def _taken(candidate: AbstractCandidate, training: TrainingSpec) -> tuple[int | None, int]:
    """Memory at most, None where there is not enough, and operations of a long step."""
    mesh, like = candidate.mesh, candidate.abstract
    types = training.dtypes(mesh.devices.flat[0].platform)
    options = make_options(*types, training.remat, training.attention, mesh, training.quantise)
    model = adapted(abstract_model(like.config, options, like.folder), training)
    programs, state = make_programs(model, training, mesh), state_shapes(model, training, mesh)
    trained, frozen = split_trainable(model.params)
    step = state, frozen, candidate.placement.shapes(candidate.lengths[1]), 0.0
    flops = matmul_flops(programs.step, *step)
    evaluation = candidate.evaluation_placement.shapes(candidate.tokens.evaluation_length)
    try:
        losses = compiled(programs.losses, trained, frozen, evaluation)
        return memory_of(compiled(programs.step, *step), losses, state).peak, flops
    except NoRoom:
        return None, flops
