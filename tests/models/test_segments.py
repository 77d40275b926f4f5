"""Layers of several kinds as runs of equal groups."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensjax.models.segments import layer_names, segments


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40))
def test_segments_are_the_layers_in_order(types: list[str]) -> None:
    covered = []
    for first, size, count in segments(types):
        assert len(covered) == first
        covered += types[first : first + size] * count
    assert covered == types
    assert sum(size for _, size, _ in segments(types)) <= len(types)


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ("aaaa", [(0, 1, 4)]),
        ("aaabaaabaaab", [(0, 4, 3)]),
        ("ccaccaccacacacac", [(0, 1, 2), (2, 3, 2), (8, 2, 4)]),  # LFM2 1.2B compiles 6 blocks of 16
        ("a" * 500 + "b", [(0, 1, 500), (500, 1, 1)]),
    ],
)
def test_as_few_blocks_are_compiled_as_can_be(types: str, expected: list[tuple[int, int, int]]) -> None:
    assert segments(types) == expected


def test_every_layer_has_its_number_in_the_checkpoint() -> None:
    types = "ccaccac"
    names = dict(layer_names(types, {"a": {"q": "layers.{layer}.q"}, "c": {"k": "layers.{layer}.k"}}))
    numbers: list[int] = []
    for (first, size, count), stack in zip(segments(types), range(9), strict=False):
        for place in range(size):
            kind = types[first + place]
            stored = names[f"layers/stacks/{stack}/blocks/blocks/{place}/{'q' if kind == 'a' else 'k'}"]
            found = stored.first + stored.step * np.arange(count)
            assert all(types[number] == kind for number in found)
            numbers += found.tolist()
    assert sorted(numbers) == list(range(len(types)))
