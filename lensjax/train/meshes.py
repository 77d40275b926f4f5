"""Which mesh of a pod to train a model on: what each would take at least, before anything is compiled."""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from lensjax.core.devices import slices_of
from lensjax.core.errors import InputError
from lensjax.core.flops import matmul_flops
from lensjax.core.roofline.chips import Chip
from lensjax.core.roofline.counters import Collective
from lensjax.core.roofline.estimate import Layout, collective_seconds
from lensjax.core.topologies import Topology
from lensjax.models.families.t5 import RelativeBias
from lensjax.models.lora import join, split_trainable
from lensjax.models.model import Model, abstract_model
from lensjax.models.options import AttentionImplementation, Remat, make_options
from lensjax.models.sharding import AXES, make_mesh
from lensjax.tasks.batches import Lengths
from lensjax.train.placement import BatchPlacement
from lensjax.train.spec import TrainingSpec
from lensjax.train.step import make_programs, masked_flops, program_flops, state_shapes
from lensjax.train.workload import adapted

REMATS: Sequence[Remat] = ("none", "cheap", "dots", "full")
_WIDE = 64  # chips along `tensor`, at most: a head is not split
_HALF, _WHOLE = 2, 4  # bytes of a value in bfloat16, in which layers are gathered, and in float32


class Choice(NamedTuple):
    """One way to train on a pod: axis sizes, parts of a batch, and what backward passes compute again."""

    data: int
    fsdp: int
    tensor: int
    accumulation: int
    remat: Remat

    @property
    def mesh(self) -> str:
        """As `make_mesh` takes it."""
        sizes = [(axis, getattr(self, axis)) for axis in AXES]
        return ",".join(f"{axis}={size}" for axis, size in sizes if size > 1) or "data=1"

    def __str__(self) -> str:
        parts = f", {self.accumulation} parts" if self.accumulation > 1 else ""
        return f"{self.mesh}, remat {self.remat}{parts}"


class Outlook(NamedTuple):
    """What a choice is expected to take before it is compiled: bytes of a chip, and seconds of a step at least.

    `held` are those of the bytes that parameters, gradients and moments take.
    """

    choice: Choice
    memory: float
    held: float
    seconds: float
    links: float


@dataclass(frozen=True)
class Workplace:
    """A training step to be placed on the chips of a pod.

    Attributes:
      config: Hugging Face configuration of the model.
      pod: The chips.
      training: How it is trained; its batch size is that of all chips together. Its remat and accumulation are those of
        all choices where `fixed`.
      lengths: Tokens of an example: of a decoder's rows, or of inputs and targets.
      fixed: Whether only the mesh is to be chosen.
    """

    config: Any
    pod: Topology
    training: TrainingSpec
    lengths: Lengths
    fixed: bool = False

    @property
    def devices(self) -> Sequence[Any]:
        """What programs are compiled for."""
        return self.pod.devices

    @property
    def chip(self) -> Chip:
        """What each chip can do."""
        return self.pod.chip

    def model(self, mesh: Mesh, remat: Remat, attention: AttentionImplementation | None = None) -> Model:
        """The model without weights, on a mesh."""
        dtype, param_dtype = self.training.dtypes("tpu")
        options = make_options(dtype, param_dtype, remat, attention or self.training.attention, mesh)
        return adapted(abstract_model(self.config, options), self.training)

    def spec(self, choice: Choice) -> TrainingSpec:
        """How the model is trained by a choice."""
        return self.training.model_copy(update={"accumulation": choice.accumulation, "remat": choice.remat})

    def choices(self) -> Iterator[Choice]:
        """All that divide the chips, the heads, and the batch."""
        chips, heads = len(self.devices), self.config.num_attention_heads
        batch, slices = self.training.batch_size, slices_of(self.devices)
        parts = [self.training.accumulation] if self.fixed else [n for n in divisors(batch) if n <= 64]
        remats = [self.training.remat] if self.fixed else REMATS
        for tensor in divisors(math.gcd(chips, heads)):
            for data in divisors(chips // tensor):
                split = chips // tensor
                for accumulation in parts:
                    divided = data % slices == 0 and batch % (split * accumulation) == 0
                    if tensor <= _WIDE and divided:
                        for remat in remats:
                            yield Choice(data, split // data, tensor, accumulation, remat)

    @cached_property
    def model_flops(self) -> tuple[int, int]:
        """Operations of a step on all chips without those computed again, and those of them that causality masks."""
        mesh = make_mesh({}, self.devices[:1])
        spec = self.training.model_copy(update={"accumulation": 1, "remat": "none"})
        model = self.model(mesh, "none")
        of_step, _ = program_flops(model, spec, mesh, make_programs(model, spec, mesh))
        batch = self.batch(mesh, 1)
        return of_step(batch), masked_flops(model, batch)

    def batch(self, mesh: Mesh, accumulation: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a batch on a mesh."""
        return BatchPlacement(mesh, self.training.batch_size, accumulation).shapes(self.lengths)

    @property
    def tokens(self) -> int:
        """Tokens of a step, with padding."""
        return self.training.batch_size * sum(self.lengths)

    def lower(self, choice: Choice) -> jax.stages.Lowered:
        """The step of a choice, ready to be compiled for the pod."""
        mesh, spec = make_mesh(choice.mesh, self.devices), self.spec(choice)
        model = self.model(mesh, choice.remat)
        _, frozen = split_trainable(model.params)
        state = state_shapes(model, spec, mesh)
        step: Any = make_programs(model, spec, mesh).step
        lowered: jax.stages.Lowered = step.lower(state, frozen, self.batch(mesh, choice.accumulation), 0.0)
        return lowered


class Forecast:
    """Expects memory and time of choices, from the shapes of the model and what its backward pass keeps.

    Memory is that of parameters, gradients and moments, of what a backward pass keeps, and of one layer's scores of
    attention; time is the longest of the chip's products at its peak, and of the collectives on its links.
    """

    def __init__(self, work: Workplace) -> None:
        self.work = work
        self._places: dict[str, Layout] = {}
        self._rates: dict[tuple[str, str, str], float] = {}
        remats = [work.training.remat] if work.fixed else REMATS
        one = make_mesh({}, work.devices[:1])
        self._kept = {remat: self._kept_bytes(remat) for remat in remats}
        self._flops: dict[Remat, int] = {}
        for remat in remats:
            model = work.model(one, remat, "xla")  # whose products are seen
            spec = work.training.model_copy(update={"accumulation": 1, "remat": remat})
            trained, frozen = split_trainable(model.params)
            arguments = state_shapes(model, spec, one), frozen, work.batch(one, 1), 0.0
            self._flops[remat] = matmul_flops(make_programs(model, spec, one).step, *arguments)
        self._unfused = _holds_scores(work.model(one, remats[0]))
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(model.params))
        self.trained = sum(leaf.size for leaf in jax.tree.leaves(trained))

    def on(self, pod: Topology, batch_size: int) -> "Forecast":
        """The same step on other chips, and with another number of examples, without tracing it again."""
        training = self.work.training.model_copy(update={"batch_size": batch_size})
        other, before = copy.copy(self), self.work.training.batch_size
        other.work = replace(self.work, pod=pod, training=training)
        other._flops = {remat: flops * batch_size // before for remat, flops in self._flops.items()}
        other._places, other._rates = {}, {}
        return other

    def _kept_bytes(self, remat: Remat) -> float:
        """Bytes that a backward pass keeps of each example."""
        work = self.work
        one = make_mesh({}, work.devices[:1])
        model = work.model(one, remat)
        trained, frozen = split_trainable(model.params)

        def residuals(rows: int) -> int:
            names = {name: shape.shape[-1] for name, shape in work.batch(one, 1).items()}
            batch = {name: jax.ShapeDtypeStruct((rows, length), np.int32) for name, length in names.items()}
            pull = jax.eval_shape(
                lambda t, f, b: jax.vjp(lambda t: model.loss(join(t, f), b), t)[1], trained, frozen, batch
            )
            return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull))

        return float(residuals(2) - residuals(1))

    def __call__(self, choice: Choice) -> Outlook:
        """What a choice is expected to take."""
        work, chips = self.work, len(self.work.devices)
        shards = choice.fsdp * choice.tensor
        held = self._state / shards
        examples = work.training.batch_size / choice.accumulation / (chips // choice.tensor)
        heads = work.config.num_attention_heads
        scores = self._unfused * examples * heads / choice.tensor * max(work.lengths) ** 2 * _WHOLE
        memory = held + examples * self._kept[choice.remat] / choice.tensor + scores
        links = self._links(choice)
        compute = self._flops[choice.remat] / chips / work.chip.peak
        return Outlook(choice, memory, held, max(compute, links), links)

    @property
    def _state(self) -> float:
        """Bytes of parameters, and of gradients and two moments of those that are trained, on all chips together."""
        return float((self.parameters - self.trained) * _HALF + self.trained * 4 * _WHOLE)

    def least_chips(self, every: Iterable[Outlook]) -> int | None:
        """Chips that hold the state besides what the most sparing of some choices takes; None where none can."""
        room = self.work.chip.memory_gb * 1e9 - min(one.memory - one.held for one in every)
        return math.ceil(self._state / room) if room > 0 else None

    def _links(self, choice: Choice) -> float:
        """Seconds of a step's collectives, if each axis had the links for itself."""
        work = self.work
        examples = work.training.batch_size / choice.accumulation / (choice.data * choice.fsdp)
        held = self.parameters / choice.tensor
        again = 3 if choice.remat == "full" else 2  # forwards and backwards, and for what is computed again
        gathered = again * held * _HALF * choice.accumulation
        scattered = self.trained / choice.tensor * _HALF * choice.accumulation
        layers = getattr(work.config, "num_hidden_layers", None) or 1
        activations = examples * sum(work.lengths) * work.config.hidden_size * _HALF
        moved = [
            ("fsdp", "all-gather", gathered),
            ("fsdp", "reduce-scatter", scattered),
            ("data", "all-reduce", self.trained / choice.tensor / choice.fsdp * _WHOLE),
            ("tensor", "all-reduce", (again + 2) * layers * activations * choice.accumulation),
        ]
        return sum(self._seconds(choice, axis, kind, size) for axis, kind, size in moved)

    def _seconds(self, choice: Choice, axis: str, kind: str, size: float) -> float:
        members, mesh = getattr(choice, axis), choice.mesh
        if members == 1:
            return 0.0
        if (mesh, axis, kind) not in self._rates:
            self._rates[mesh, axis, kind] = self._seconds_of_a_byte(choice, axis, kind)
        return size * self._rates[mesh, axis, kind]

    def _seconds_of_a_byte(self, choice: Choice, axis: str, kind: str) -> float:
        members, mesh = getattr(choice, axis), choice.mesh
        if mesh not in self._places:
            devices = list(make_mesh(mesh, self.work.devices).devices.flat)
            self._places[mesh] = Layout.of(devices, self.work.chip)
        grid = np.arange(len(self.work.devices)).reshape(choice.data, choice.fsdp, choice.tensor)
        groups = np.moveaxis(grid, AXES.index(axis), -1).reshape(-1, members)
        sent = (members - 1) / members * (2 if kind == "all-reduce" else 1)
        one = Collective(kind, (axis,), members, 1.0, sent, True, 0.0, 1, groups)
        return sum(collective_seconds(one, self.work.chip, self._places[mesh]).values())


def outlooks(forecast: Forecast) -> list[Outlook]:
    """Choices that are expected to fit, the fastest first: of each mesh the best one, and then others of each.

    Raises:
      InputError: there are none; it says how many chips would be needed.
    """
    work = forecast.work
    every = [forecast(choice) for choice in work.choices()]
    chips, heads = len(work.devices), work.config.num_attention_heads
    if not every:
        least = chips // math.gcd(chips, heads)
        raise InputError(
            f"No mesh of {chips} chips divides a batch of {work.training.batch_size} examples and {heads} attention "
            f"heads; choose a batch that is a multiple of {least}."
        )
    room = work.chip.memory_gb * 1e9
    fitting = [one for one in every if one.memory <= room]
    if not fitting:
        one = min(every, key=lambda one: one.memory)
        enough = forecast.least_chips(every)
        needed = "What a chip computes at a time has no room on any number of them"
        if enough is not None:
            needed = f"Parameters, gradients and moments need {enough:,} chips at least"
        raise InputError(
            f"No mesh of these {chips} chips has room: {one.choice} takes about {one.memory / 1e9:,.0f} GB of the "
            f"{work.chip.memory_gb:g} GB of a {work.chip.name}. {needed}; take more chips, shorter examples or fewer "
            "of them, or method lora."
        )
    fitting.sort(key=lambda one: (one.seconds, one.links, one.choice.accumulation, one.memory))
    best = list({one.choice.mesh: one for one in reversed(fitting)}.values())[::-1]
    return [*sorted(best, key=fitting.index), *(one for one in fitting if one not in best)]


def _holds_scores(model: Model) -> bool:
    """Whether the scores of attention are in memory: unless a kernel makes them, which takes no biases."""
    module = nnx.merge(model.graphdef, model.without_params().params)
    return model.options.attention != "splash" or any(
        isinstance(node, RelativeBias) for _, node in nnx.iter_graph(module)
    )


def divisors(number: int) -> list[int]:
    """The divisors of a number, from 1 up."""
    return [one for one in range(1, number + 1) if number % one == 0]
