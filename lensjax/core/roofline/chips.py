"""Published facts about chips and the networks between them, and those that a user writes for others.

Sources: the pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x (Ironwood)" of Google Cloud's documentation for
peaks, memory, the links between chips (ICI; the pages give both directions of all links of a chip together) and the
data-centre network (DCN; of v5e 2 × 100 Gbit/s for a host of 8 chips); "TPU v4" (ISCA 2023, arXiv 2304.01433) for the
links of v4, whose DCN is not published. A TPU7x is two devices to JAX: its numbers here are those of half a chip.
NVIDIA's data sheets of A100 80GB SXM, H100 SXM, H200 SXM and DGX B200 for peaks, memory and NVLink, and of DGX A100,
H100, H200 and B200 for InfiniBand.
"""

from collections.abc import Mapping
from pathlib import Path

from lensjax.core.errors import InputError, shorten
from lensjax.core.specs import Count, Natural, Positive, Strict, read_fields, validated


class Chip(Strict):
    """What one device can do, at most.

    Attributes:
      name: As topologies name it.
      tera: Dense TFLOP/s of its matrix units in bfloat16.
      memory_gb, memory_gbps: Size of its main memory in GB of 10^9 bytes, and GB/s to and from it.
      link_gbps: GB/s of one link to another chip in one direction; of chips behind a switch, of all links together.
      torus: Dimensions of the torus that the links make; 0 for a switch.
      wraps: Sizes of a slice that are multiples of this close to a ring; None where none does.
      network_gbps: GB/s of its share of the network between slices or nodes, in one direction.
      node: Chips behind one switch; None for a torus.
    """

    name: str
    tera: Positive
    memory_gb: Positive
    memory_gbps: Positive
    link_gbps: Positive
    torus: Natural = 0
    wraps: Count | None = None
    network_gbps: Positive | None = None
    node: Count | None = None

    @property
    def peak(self) -> float:
        """FLOP/s."""
        return self.tera * 1e12


def _tpu(
    name: str, tera: float, memory: float, rate: float, link: float, torus: int, wraps: int, network: float | None
) -> Chip:
    return Chip(
        name=name,
        tera=tera,
        memory_gb=memory,
        memory_gbps=rate,
        link_gbps=link,
        torus=torus,
        wraps=wraps,
        network_gbps=network,
    )


def _gpu(name: str, tera: float, memory: float, rate: float, link: float, network: float) -> Chip:
    return Chip(name=name, tera=tera, memory_gb=memory, memory_gbps=rate, link_gbps=link, network_gbps=network, node=8)


CHIPS: Mapping[str, Chip] = {
    chip.name: chip
    for chip in (
        _tpu("v4", 275, 32, 1200, 50, 3, 4, None),
        _tpu("v5e", 197, 16, 819, 400 / 8, 2, 16, 200 / 8 / 8),
        _tpu("v5p", 459, 95, 2765, 1200 / 12, 3, 4, 50 / 8),
        _tpu("v6e", 918, 32, 1638, 800 / 8, 2, 16, 100 / 8),
        _tpu("tpu7x", 2307 / 2, 192 / 2, 7380 / 2, 1200 / 12 / 2, 3, 4, 100 / 8 / 2),
        _gpu("a100", 312, 80, 2039, 300, 200 / 8),
        _gpu("h100", 989, 80, 3350, 450, 400 / 8),
        _gpu("h200", 989, 141, 4800, 450, 400 / 8),
        _gpu("b200", 2250, 180, 8000, 900, 400 / 8),
    )
}


def find_chip(name: str, facts: Path | None = None) -> Chip:
    """The facts about a chip.

    Args:
      name: As in `CHIPS`.
      facts: YAML file with the fields of `Chip`, which are used instead.

    Raises:
      InputError: nothing is known about it, or the file does not describe it.
    """
    if facts is not None:
        fields = read_fields(facts, "facts about a chip", "its name, tera, memory_gb, memory_gbps and link_gbps")
        found = validated(Chip, fields, facts)
        if found.name != name:
            raise InputError(f"{facts} describes the chip '{shorten(found.name)}', not {shorten(name)}.")
        return found
    if name not in CHIPS:
        raise InputError(
            f"Nothing is known about the chip '{shorten(name)}', only about {', '.join(CHIPS)}; write its name, tera "
            "(TFLOP/s in bfloat16), memory_gb, memory_gbps and link_gbps, and its torus (dimensions) or node (chips "
            "behind a switch), to a YAML file, and give it with --chip."
        )
    return CHIPS[name]
