"""Chips that need not be attached: by name, by facts that a user writes, and what stands in for those."""

import re
from pathlib import Path
from typing import Any

import pytest

from lensjax.core import topologies
from lensjax.core.errors import InputError
from lensjax.core.roofline.chips import CHIPS
from lensjax.core.topologies import find_topology

FACTS = "name: tpu9\ntera: 5000\nmemory_gb: 300\nmemory_gbps: 12000\nlink_gbps: 200\n"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The topologies that the TPU's compiler is asked for, in place of the compiler."""
    names: list[str] = []

    def devices(name: str) -> list[Any]:
        names.append(name)
        return []

    monkeypatch.setattr(topologies, "topology_devices", devices)
    return names


@pytest.mark.parametrize(
    ("name", "stand_in"),
    [
        ("v5e:16x16", ""),
        ("v5p:4x4x4:2", ""),
        ("h100:8", "v5p:2x2x2"),
        ("b200:64", "v5p:4x4x4"),
        ("a100:4", "v5p:2x2x1"),
    ],
)
def test_a_topology_is_its_chips_and_what_is_compiled_for(name: str, stand_in: str, asked: list[str]) -> None:
    found = find_topology(name)
    assert (found.name, found.chip, found.stand_in) == (name, CHIPS[name.partition(":")[0]], stand_in)
    assert asked == [stand_in or name]
    assert bool(found.caution) == bool(stand_in)


def test_an_unknown_chip_asks_for_facts_and_takes_them(tmp_path: Path, asked: list[str]) -> None:
    with pytest.raises(InputError) as raised:
        find_topology("tpu9:8")
    wanted = re.search(r"write its (.*) to a YAML file, and give it with --chip", str(raised.value))
    assert wanted is not None
    facts = tmp_path / "chip.yaml"
    facts.write_text(FACTS)
    for line in FACTS.splitlines():
        assert line.partition(":")[0] in wanted[1]
    assert find_topology("tpu9:8", facts).stand_in == "v5p:2x2x2"
    with pytest.raises(InputError, match=r"write their number as in tpu9:16; write torus: 3 to chip\.yaml"):
        find_topology("tpu9:4x4x4", facts)
    facts.write_text(FACTS + "torus: 3\n")  # as the message says
    assert find_topology("tpu9:4x4x4", facts).stand_in == "v5p:4x4x4"
    with pytest.raises(InputError, match=r"not the 3 dimensions .* write its shape as in tpu9:4x4x4\."):
        find_topology("tpu9:64", facts)
    facts.write_text(FACTS + "torus: 2\n")
    assert find_topology("tpu9:4x4:2", facts).stand_in == "v5e:4x4:2"
    facts.write_text(FACTS + "node: 16\n")
    assert find_topology("tpu9:32", facts).chip.node == 16
    assert asked == ["v5p:2x2x2", "v5p:4x4x4", "v5e:4x4:2", "v5p:2x4x4"]
    facts.write_text(FACTS.replace("tpu9", "v5e"))
    assert find_topology("v5e:4x4", facts).chip.peak == 5e15  # the facts, and the compiler's own v5e
    assert asked[-1] == "v5e:4x4"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("v5e", "write chip and shape of a TPU slice as in v5e:16x16"),
        ("v5e:0x4", "is no topology"),
        ("v5e:16", r"has no shape; write it as in v5e:4x4\."),
        ("v5p:64", r"has no shape; write it as in v5p:4x4x4\."),
        ("h100:2x4", r"h100 chips are behind switches; write their number as in h100:16\."),
        ("h100:8:2", r"write their number as in h100:16\."),
        ("h100:12", "nothing stands in for; give one of 4, 8, 16, 32"),
    ],
)
def test_topologies_that_cannot_be(name: str, sentence: str, asked: list[str]) -> None:
    with pytest.raises(InputError, match=sentence):
        find_topology(name)
    assert not asked
