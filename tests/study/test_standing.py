"""How far a running study is."""

import pytest

from lensjax.measure.measurement import FINETUNE, Cell
from lensjax.study.journal import Entry
from lensjax.study.standing import Known, standing

SIZES = (0, 200, 400)


def run(model, size):
    return Cell(FINETUNE, model, size, 0)


def ended(**seconds):
    """Entries of the runs of `model_size`."""
    cells = {run(name.split("_")[0], int(name.split("_")[1])): took for name, took in seconds.items()}
    return {
        cell: Entry(time="", study="s", cell=cell, status="failed" if took < 0 else "ok", seconds=abs(took))
        for cell, took in cells.items()
    }


def known(done, pending, **more):
    return standing(Known(["a", "b"], SIZES, done, pending, left=("a", "b"), **more))


def test_marks_and_counts():
    found = known(ended(a_0=1, b_0=1, b_200=-2), [run("a", 200), run("a", 400)])
    assert [found.marks["a", size] for size in SIZES] == ["done", "waiting", "waiting"]
    assert [found.marks["b", size] for size in SIZES] == ["done", "failed", "waiting"]
    assert (found.done, found.total, found.next) == (3, 5, run("a", 200))
    dropped = standing(Known(["a", "b"], SIZES, ended(a_0=1, b_0=1), [run("a", 200)], left=("a",)))
    assert dropped.marks["b", 400] == "dropped"


def test_time_left_is_known_from_a_candidates_own_runs_and_those_of_others():
    done = ended(a_0=1, b_0=1)
    assert known(done, [run("a", 200)]).seconds_left is None
    done |= ended(a_200=10)
    assert known(done, [run("b", 200)]).seconds_left == pytest.approx(10)  # as that of the other
    more = known(done, [run("b", 200), run("b", 400)])
    assert more.seconds_left == pytest.approx(10 + 1 + 2 * 9)  # the test takes as long on every rung
    larger = known(done, [run("b", 200)], weights={"a": 2.0, "b": 6.0})
    assert larger.seconds_left == pytest.approx(30)
    own = known(done, [run("a", 400)])
    assert own.sentence == "3 of 4 done, about 19 s left"
    assert known(done, [Cell("ntk", "a", 0, 0)]).seconds_left is None
    assert known(done, []).sentence == "3 of 3 done"


def test_time_left_counts_steps_and_leaves_out_what_the_first_rung_alone_takes():
    """Runs on small sets may take as many steps as those on larger ones, and the first rung searches rates."""
    done = ended(a_0=1, b_0=1, a_200=31)
    assert known(done, [run("a", 400)], steps=lambda model, size: 500).seconds_left == pytest.approx(31)
    searched = {"a": 20.0}
    assert known(done, [run("a", 400)], searched=searched).seconds_left == pytest.approx(1 + 2 * 10)
    assert known(done, [run("b", 200)], searched=searched).seconds_left == pytest.approx(31)  # which will search too
    assert known(done, [run("b", 400)], searched=searched).seconds_left == pytest.approx(1 + 2 * 10)
