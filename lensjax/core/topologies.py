"""Chips that need not be attached: slices of TPU pods, nodes of GPUs, and chips whose facts a user writes.

Programs are compiled by the TPU's compiler. It compiles for no GPU and no chip that it does not know, so that as many
TPU chips stand in for those: what a step multiplies, holds and sends is that of the stand-in's program, and rates are
those of the chip itself.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lensjax.core.devices import CHIP_GB, topology_devices
from lensjax.core.errors import InputError, shorten
from lensjax.core.roofline.chips import Chip, find_chip

_CUBES: Mapping[int, str] = {
    4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8",
    1024: "8x8x16",
}  # fmt: skip
_PLANE, _CUBE = "v5e", "v5p"  # which stand in for chips of a torus of two dimensions, and for all others


class Topology(NamedTuple):
    """Chips that a step is planned for.

    Attributes:
      name: As the user wrote it.
      chip: What each can do.
      devices: What programs are compiled for.
      stand_in: The topology of TPUs that `devices` are of, where these are not the chips themselves; "" where they are.
    """

    name: str
    chip: Chip
    devices: Sequence[Any]
    stand_in: str = ""

    @property
    def caution(self) -> str:
        """A sentence about the stand-in; "" where there is none."""
        if not self.stand_in:
            return ""
        kind = self.stand_in.partition(":")[0]
        return (
            f"Nothing here compiles for {self.chip.name}: programs are those of as many TPU {kind}, at the rates of "
            f"{self.chip.name}. Its own compiler fuses and overlaps otherwise, so take times as coarse."
        )


def find_topology(name: str, facts: Path | None = None) -> Topology:
    """Chips by the name of a topology.

    Args:
      name: Chip and shape of a TPU slice, such as "v5e:16x16", and the number of slices where there are several, as in
        "v5e:16x16:2"; or a chip behind a switch and the number of them, such as "h100:16".
      facts: YAML file of facts about the chip, by default those that are published.

    Raises:
      InputError: there is no such topology, nothing is known about the chip, or the TPU's compiler is not installed.
    """
    found = re.fullmatch(r"(\w+):([1-9]\d*(?:x[1-9]\d*){0,2})(?::([1-9]\d{0,2}))?", name)
    if found is None:
        raise InputError(
            f"'{shorten(name)}' is no topology; write chip and shape of a TPU slice as in v5e:16x16, for two such "
            "slices v5e:16x16:2, or GPUs and their number as in h100:16."
        )
    chip, sides = find_chip(found[1], facts), found[2].split("x")
    if found[1] in CHIP_GB:
        if len(sides) == 1:
            raise InputError(f"'{shorten(name)}' has no shape; write it as in {found[1]}:{_sides_of(chip)}.")
        return Topology(name, chip, topology_devices(name))
    if chip.torus:
        if len(sides) != chip.torus:
            raise InputError(
                f"'{shorten(name)}' has not the {chip.torus} dimensions of the torus of {chip.name}; write its shape "
                f"as in {chip.name}:{_sides_of(chip)}."
            )
        stand_in = f"{_PLANE if chip.torus == 2 else _CUBE}{name[len(found[1]) :]}"
        return Topology(name, chip, topology_devices(stand_in), stand_in)
    if len(sides) > 1 or found[3] is not None:
        mend = f"; write torus: {len(sides)} to {facts.name} where they are in one" if facts is not None else ""
        raise InputError(
            f"'{shorten(name)}' has a shape, and {chip.name} chips are behind switches; write their number as in "
            f"{chip.name}:16{mend}."
        )
    number, node = int(sides[0]), chip.node or int(sides[0])
    if number not in _CUBES or (number > node and number % node):
        numbers = [str(one) for one in _CUBES if one <= node or one % node == 0]
        raise InputError(
            f"'{shorten(name)}' is a number of chips that nothing stands in for; give one of {', '.join(numbers)}."
        )
    stand_in = f"{_CUBE}:{_CUBES[number]}"
    return Topology(name, chip, topology_devices(stand_in), stand_in)


def _sides_of(chip: Chip) -> str:
    """A shape that slices of a chip's torus have."""
    return "x".join(["4"] * (chip.torus or 2))
