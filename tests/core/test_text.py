"""Numbers as reports print them."""

from lensjax.core import text


def test_shares_have_two_digits_or_more():
    assert [text.share(part) for part in (0.0191, 0.68, 0.996, 1.87)] == ["1.9 %", "68 %", "100 %", "187 %"]


def test_times_are_in_their_two_largest_units():
    assert [text.duration(seconds) for seconds in (0, 0.14, 20, 150, 8640)] == [
        "",
        "0.1 s",
        "20 s",
        "2 min",
        "2 h 24 min",
    ]


def test_operations_have_a_prefix():
    assert [text.flops(n) for n in (0, 7, 3.14e15, 9.96e9)] == ["", "7 FLOP", "3.14 PFLOP", "9.96 GFLOP"]
