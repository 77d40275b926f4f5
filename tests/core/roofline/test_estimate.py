"""Bounds of a step follow from counts, and from what is published about chips."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lensjax.core.devices import CHIP_GB, peak_flops
from lensjax.core.errors import InputError
from lensjax.core.roofline.chips import CHIPS, find_chip
from lensjax.core.roofline.counters import Collective, Counts
from lensjax.core.roofline.estimate import Layout, estimate_step

V5P, V5E, H100 = CHIPS["v5p"], CHIPS["v5e"], CHIPS["h100"]


def torus(*sizes: int, slices: int = 1) -> list[SimpleNamespace]:
    """Devices of slices, in the order of their coordinates."""
    return [
        SimpleNamespace(coords=(*place, *(0,) * (3 - len(sizes))), slice_index=number)
        for number in range(slices)
        for place in np.ndindex(sizes)
    ]


def collective(kind: str, groups: np.ndarray, whole: float, **other: object) -> Collective:
    members = groups.shape[1]
    sent = whole if kind == "collective-permute" else whole * (members - 1) / members
    sent *= 2 if kind == "all-reduce" else 1
    made = Collective(kind, ("fsdp",), members, whole, sent, False, 0.0, 1, groups)
    return made._replace(**other)


def test_compute_and_memory() -> None:
    counts = Counts(flops=459e12, memory_bytes=2 * 2765e9)
    found = estimate_step(counts, V5P, Layout.of_torus(torus(4, 4, 4), V5P))
    assert (found.compute, found.memory, found.seconds, found.serial) == pytest.approx((1, 2, 2, 2))
    assert found.binding == "memory"
    assert found.utilisation(459e12, V5P) == pytest.approx(0.5)
    assert estimate_step(counts, V5P, Layout.of_torus(torus(4, 4, 4), V5P), flops=3 * 459e12).binding == "compute"


def test_instructions_run_one_after_another() -> None:
    work = {(459e12, 2765e9 / 2): 1, (0.0, 2765e9): 2}  # a second of products, and twice one of memory
    counts = Counts(459e12, memory_bytes=2.5 * 2765e9, work=work)
    found = estimate_step(counts, V5P, Layout.of_torus(torus(4, 4, 4), V5P))
    assert (found.compute, found.memory, found.core, found.seconds) == pytest.approx((1, 2.5, 3, 3))
    assert found.overlapped == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("chip", "sizes", "groups", "rate"),
    [
        (V5P, (4, 4, 4), np.arange(64)[None], 6 * 100e9),  # three rings, each in both directions
        (V5P, (4, 4, 4), np.arange(64).reshape(16, 4), 2 * 100e9),
        (V5P, (4, 4, 4), np.arange(64).reshape(32, 2), 100e9),  # half a ring is a line
        (V5P, (2, 4, 4), np.arange(32)[None], 3 * 100e9),  # less than a cube does not close
        (V5E, (16, 16), np.arange(256)[None], 4 * 50e9),
        (V5E, (8, 8), np.arange(64)[None], 2 * 50e9),
        (V5E, (8, 16), np.arange(128).reshape(8, 16), 2 * 50e9),
    ],
)
def test_links_of_a_torus(chip: object, sizes: tuple[int, ...], groups: np.ndarray, rate: float) -> None:
    counts = Counts(collectives=(collective("all-gather", groups, 1e9),))
    found = estimate_step(counts, chip, Layout.of_torus(torus(*sizes), chip))  # type: ignore[arg-type]
    members = groups.shape[1]
    assert found.networks == {"links fsdp": pytest.approx(1e9 * (members - 1) / members / rate)}
    assert found.exposed == found.serial == found.networks["links fsdp"]


def test_a_ring_of_permutations_uses_both_directions_at_once() -> None:
    up = np.stack([np.arange(4), (np.arange(4) + 1) % 4], axis=1)
    layout = Layout.of_torus(torus(4, 1), V5E)
    pair = (collective("collective-permute", up, 50e9), collective("collective-permute", up[:, ::-1], 50e9))
    found = estimate_step(Counts(collectives=pair), V5E, layout)
    assert found.networks == {"links fsdp": pytest.approx((3 * 1 + 3) / 4)}  # the way back passes three links


def test_what_is_hidden_behind_products() -> None:
    groups = np.arange(64)[None]
    each = {"asynchronous": True, "overlapped": 459e12}
    layout = Layout.of_torus(torus(4, 4, 4), V5P)
    whole = 600e9 * 64 / 63  # takes a second
    hidden = estimate_step(Counts(459e12, collectives=(collective("all-gather", groups, whole, **each),)), V5P, layout)
    shown = estimate_step(Counts(459e12, collectives=(collective("all-gather", groups, whole),)), V5P, layout)
    assert (hidden.seconds, hidden.serial, hidden.overlapped) == pytest.approx((1, 2, 1))
    assert (shown.seconds, shown.serial, shown.overlapped) == pytest.approx((2, 2, 1))


def test_slices_and_nodes_have_a_slower_network() -> None:
    layout = Layout.of_torus(torus(4, 4, 4, slices=2), V5P)
    groups = np.arange(128)[None]
    found = estimate_step(Counts(collectives=(collective("all-reduce", groups, 1e9),)), V5P, layout)
    assert found.networks["network fsdp"] == pytest.approx(2 * 1e9 / 2 / 64 / 6.25e9)
    assert found.networks["links fsdp"] == pytest.approx(2 * 1e9 * 63 / 64 / 600e9)
    nodes = Layout.of_nodes(32, H100)
    found = estimate_step(Counts(collectives=(collective("all-gather", np.arange(32)[None], 1e9),)), H100, nodes)
    assert found.networks["network fsdp"] == pytest.approx(1e9 * 3 / 4 / 8 / 50e9)
    assert found.networks["links fsdp"] == pytest.approx(1e9 * 7 / 8 / 450e9)
    v4 = CHIPS["v4"]
    with pytest.raises(InputError, match=r"network_gbps.*--chip"):
        estimate_step(
            Counts(collectives=(collective("all-gather", groups, 1.0),)),
            v4,
            Layout.of_torus(torus(4, 4, 4, slices=2), v4),
        )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("v4", "TPU v4"),
        ("v5e", "TPU v5 lite"),
        ("v5p", "TPU v5p"),
        ("v6e", "TPU v6 lite"),
        ("tpu7x", "TPU7x"),
        ("a100", "NVIDIA A100-SXM4-80GB"),
        ("h100", "NVIDIA H100 80GB HBM3"),
        ("h200", "NVIDIA H200"),
        ("b200", "NVIDIA B200"),
    ],
)
def test_facts_agree_with_those_about_attached_devices(name: str, kind: str) -> None:
    assert CHIPS[name].peak == peak_flops(SimpleNamespace(device_kind=kind), "bfloat16")  # type: ignore[arg-type]
    assert CHIPS[name].memory_gb == CHIP_GB.get(name, CHIPS[name].memory_gb)


def test_an_unknown_chip_asks_for_its_facts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'tpu9'.*tera .*, memory_gb, memory_gbps and link_gbps.*--chip"):
        find_chip("tpu9")
    facts = tmp_path / "chip.yaml"
    facts.write_text("name: tpu9\ntera: 5000\nmemory_gb: 300\nmemory_gbps: 12000\nlink_gbps: 200\n")
    assert find_chip("tpu9", facts).peak == 5e15  # with all that the message asks for
    with pytest.raises(InputError, match=r"tpu9.*not tpu8"):
        find_chip("tpu8", facts)
    facts.write_text("name: tpu9\ntera: 0\n")
    with pytest.raises(InputError, match=r"chip.yaml: "):
        find_chip("tpu9", facts)
