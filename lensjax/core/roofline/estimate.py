"""How long a step takes at least: its operations, bytes and collectives at the published rates of chips and networks.

A roofline (Williams, Waterman and Patterson, CACM 2009) with one more roof for each network. Collectives are bounded by
the bytes that a chip must send and receive over the links of its group, whatever the algorithm; latencies count as 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int

from lensjax.core.devices import slices_of
from lensjax.core.errors import InputError
from lensjax.core.roofline.chips import Chip
from lensjax.core.roofline.counters import Collective, Counts
from lensjax.core.specs import Strict

PERMUTATION = "collective-permute"


@dataclass(frozen=True)
class Layout:
    """Where the chips of a mesh are, in the order of the mesh.

    Attributes:
      places: Coordinates of each in its torus; of chips behind a switch, no coordinates.
      rings: Whether each dimension of the torus closes to a ring.
      sizes: Chips along each dimension of the torus.
      island: Number of the slice or node that each chip is in.
    """

    places: Int[np.ndarray, "chips dims"]
    rings: tuple[bool, ...]
    sizes: tuple[int, ...]
    island: Int[np.ndarray, " chips"]

    @classmethod
    def of(cls, devices: Sequence[Any], chip: Chip) -> "Layout":
        """Of devices in the order of a mesh: of TPU slices, or of those that stand in for as many chips of nodes."""
        if chip.torus or slices_of(devices) > 1:
            return cls.of_torus(devices, chip)
        return cls.of_nodes(len(devices), chip)

    @classmethod
    def of_torus(cls, devices: Sequence[Any], chip: Chip) -> "Layout":
        """Of the devices of TPU slices, which say where they are."""
        places = np.array([tuple(device.coords)[: chip.torus] for device in devices])
        sizes = tuple(int(size) for size in places.max(axis=0) + 1)
        closed = [chip.wraps is not None and size % chip.wraps == 0 for size in sizes]
        if chip.torus > 2:  # cubes are joined through optical switches, and smaller slices are not
            closed = [all(closed)] * len(sizes)
        island = np.array([getattr(device, "slice_index", 0) or 0 for device in devices])
        return cls(places, tuple(closed), sizes, island)

    @classmethod
    def of_nodes(cls, chips: int, chip: Chip) -> "Layout":
        """Of numbered GPUs, a node's one after another."""
        return cls(np.zeros((chips, 0), int), (), (), np.arange(chips) // (chip.node or chips))


@dataclass(frozen=True)
class StepEstimate:
    """Bounds of the time of a step, in seconds.

    Attributes:
      compute: Of products, at the peak of the matrix units in bfloat16.
      memory: Of bytes to and from the main memory.
      core: Of instructions one after another, each bound by its products or its bytes.
      networks: Of each network ("links" between chips of a slice or node, "network" between these) and each set of mesh
        axes, as "links fsdp".
      exposed: Of collectives, as far as no products are scheduled meanwhile.
    """

    compute: float
    memory: float
    core: float = 0.0
    networks: Mapping[str, float] = field(default_factory=dict)
    exposed: float = 0.0

    @property
    def overlapped(self) -> float:
        """The step if everything ran at once: its longest bound."""
        return max(self.bounds.values())

    @property
    def serial(self) -> float:
        """The step if nothing were sent while the chips compute."""
        return max(self.core, self.compute, self.memory) + sum(self.networks.values())

    @property
    def seconds(self) -> float:
        """The step as it is scheduled: instructions one after another, and what is sent while no products run."""
        return max(self.overlapped, max(self.core, self.compute, self.memory) + self.exposed)

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds by resource: each network is shared by all axes that use it."""
        found = {"compute": self.compute, "memory": self.memory}
        for name, seconds in self.networks.items():
            resource = name.partition(" ")[0]
            found[resource] = found.get(resource, 0.0) + seconds
        return found

    @property
    def binding(self) -> str:
        """The resource that takes longest."""
        return max(self.bounds, key=lambda name: self.bounds[name])

    def utilisation(self, flops: float, chip: Chip) -> float:
        """Model FLOPs utilisation (arXiv 2204.02311): a share of the peak.

        Args:
          flops: Of the model on each chip, without those that a backward pass computes again.
          chip: Whose peak.
        """
        return flops / (self.seconds * chip.peak)


class StepBounds(Strict):
    """What is said about the time of a step; seconds are bounds from below.

    Attributes:
      compute, memory: At the peak of the matrix units, and of the main memory.
      core: Of instructions one after another, each bound by one of the two.
      networks: Of each network and the mesh axes that use it, as in "links fsdp".
      seconds, overlapped, serial, binding: See `StepEstimate`.
      tokens_per_second: Of each chip, with padding.
      utilisation: Model FLOPs utilisation, attention counted in full.
      utilisation_causal: The same without the half of attention that causality masks.
      kernels: Kernels whose work the program does not show.
    """

    compute: float
    memory: float
    core: float
    networks: dict[str, float]
    seconds: float
    overlapped: float
    serial: float
    binding: str
    tokens_per_second: float
    utilisation: float
    utilisation_causal: float
    kernels: dict[str, int]


def step_bounds(counts: Counts, chip: Chip, layout: Layout, *, flops: float, masked: float, tokens: int) -> StepBounds:
    """What is said about the time of a training step.

    Args:
      counts, chip, layout: See `estimate_step`.
      flops: Of the step's products on all chips, without what a backward pass computes again.
      masked: Those of them whose results causality masks.
      tokens: Of its batch, with padding.

    Raises:
      InputError: see `estimate_step`.
    """
    chips = len(layout.island)
    unseen = bool(counts.kernels or counts.endless)
    found = estimate_step(counts, chip, layout, flops / chips if unseen else None)
    return StepBounds(
        compute=found.compute,
        memory=found.memory,
        core=found.core,
        networks=dict(found.networks),
        seconds=found.seconds,
        overlapped=found.overlapped,
        serial=found.serial,
        binding=found.binding,
        tokens_per_second=tokens / chips / found.seconds,
        utilisation=found.utilisation(flops / chips, chip),
        utilisation_causal=found.utilisation((flops - masked) / chips, chip),
        kernels=dict(counts.kernels),
    )


def estimate_step(counts: Counts, chip: Chip, layout: Layout, flops: float | None = None) -> StepEstimate:
    """Bound the time of a step.

    Args:
      counts: What it does on each chip.
      chip: What a chip can do.
      layout: Where the chips are.
      flops: Of products on each chip, where the program does not show them all.

    Raises:
      InputError: chips of several slices are joined, and their network is not known.
    """
    networks: dict[str, float] = {}
    exposed = 0.0
    rings: dict[str, dict[bool, float]] = {}
    for one in counts.collectives:
        name = "·".join(one.axes)
        for resource, seconds in collective_seconds(one, chip, layout).items():
            key = f"{resource} {name}"
            if one.kind == PERMUTATION:  # the two directions of a ring are used at once
                sides = rings.setdefault(key, {})
                side = _direction(one)
                sides[side] = sides.get(side, 0.0) + seconds
            else:
                networks[key] = networks.get(key, 0.0) + seconds
            hidden = one.overlapped / chip.peak if one.asynchronous else 0.0
            exposed += max(0.0, seconds - hidden)
    for key, sides in rings.items():
        networks[key] = networks.get(key, 0.0) + max(sides.values())
    unseen = max(0.0, (flops or 0.0) - counts.flops) / chip.peak
    products = counts.flops + counts.repeated
    rate = chip.memory_gbps * 1e9
    core = sum(runs * max(one / chip.peak, moved / rate) for (one, moved), runs in counts.work.items())
    return StepEstimate(
        compute=products / chip.peak + unseen,
        memory=counts.memory_bytes / rate,
        core=core + unseen,
        networks=networks,
        exposed=min(exposed, sum(networks.values())),  # what is sent both ways at once is exposed at once
    )


def collective_seconds(one: Collective, chip: Chip, layout: Layout) -> dict[str, float]:
    """Seconds of a collective on each network that it uses: "links" within a slice or node, "network" between them.

    Raises:
      InputError: see `estimate_step`.
    """
    link = chip.link_gbps * 1e9
    islands = layout.island[one.groups]
    crossing = islands != islands[:, :1]
    if one.kind == PERMUTATION:
        found = {"links": one.sent * _hops(one, layout) / link}
        return found | ({"network": one.sent / _network(chip)} if crossing.any() else {})
    count = len(np.unique(islands[0]))
    each = one.members // count
    found = {}
    if each > 1:
        found["links"] = one.sent * (each - 1) / each / ((one.members - 1) / one.members) / _rate(one, link, layout)
    if count > 1:
        twice = 2 if one.kind == "all-reduce" else 1
        found["network"] = twice * one.bytes * (count - 1) / count / each / _network(chip)
    return found


def _rate(one: Collective, link: float, layout: Layout) -> float:
    """Bytes that a chip can send to its group and receive of it, each second."""
    if not layout.sizes:
        return link
    places = layout.places[one.groups[0]]
    total = 0.0
    for dim, size in enumerate(layout.sizes):
        met = len(np.unique(places[:, dim]))
        if met > 1:
            total += link * (2 if layout.rings[dim] and met == size else 1)
    return total


def _hops(one: Collective, layout: Layout) -> float:
    """Links that a permutation's messages pass, on average over the pairs."""
    if not layout.sizes:
        return 1.0
    apart = np.abs(layout.places[one.groups[:, 0]] - layout.places[one.groups[:, 1]])
    sizes = np.array(layout.sizes)
    around = np.where(layout.rings, sizes - apart, apart)
    return float(np.minimum(apart, around).sum(axis=1).mean())


def _direction(one: Collective) -> bool:
    """Whether most pairs of a permutation go to a chip of a higher number."""
    return bool(np.mean(one.groups[:, 1] > one.groups[:, 0]) > 0.5)


def _network(chip: Chip) -> float:
    if chip.network_gbps is None:
        raise InputError(
            f"The network between slices of {chip.name} is not published; write its network_gbps, with all other facts "
            "about the chip, to a YAML file, and give it with --chip."
        )
    return chip.network_gbps * 1e9
