import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensjax.core.errors import InputError, listing, shorten


def test_input_error_is_a_value_error():
    assert issubclass(InputError, ValueError)


@settings(deadline=None)
@given(st.text(), st.integers(1, 80))
def test_shortened_text_is_one_printable_line(text, limit):
    short = shorten(text, limit)
    assert short.isprintable()
    assert len(short) == min(len(text), limit)


@pytest.mark.parametrize(
    ("value", "short"),
    [
        ("gpt2", "gpt2"),
        ("x" * 60, "x" * 60),
        ("x" * 61, "x" * 59 + "…"),
        ("a\nb\tc\x1b[31m", "a�b�c�[31m"),
        (3.5, "3.5"),
        ("", ""),
    ],
    ids=repr,
)
def test_shorten(value, short):
    assert shorten(value) == short


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], ""),
        (["a"], "a"),
        (("a", "b"), "a, b"),
        (["a", "b", "c", "d", "e"], "a, b, c, d, e"),
        (["a", "b", "c", "d", "e", "f", "g"], "a, b, c, d, e and 2 more"),
        (["x\ny"], "x�y"),
    ],
    ids=repr,
)
def test_listing(names, text):
    assert listing(names) == text


def test_listing_shows_up_to_the_limit():
    assert listing(["a", "b", "c"], limit=1) == "a and 2 more"
