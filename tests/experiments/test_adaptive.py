import csv
import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

from lensjax.curves.simulated import simulated
from lensjax.curves.table import curve_table
from lensjax.selection.advice import Point

FOLDER = Path(__file__).parents[2] / "experiments" / "adaptive"
RUNGS = [200, 400, 800, 1600]


@pytest.fixture(scope="module")
def run():
    spec = importlib.util.spec_from_file_location("adaptive_run", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def quick(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adaptive")
    run.main(out=folder, quick=True)
    return folder


def read(run, path):
    with path.open(newline="") as file:
        return [
            run.Choice(*row[:3], float(row[3]), row[4], float(row[5]))
            for row in list(csv.reader(file))[1:]
        ]  # fmt: skip


def table_of(*losses, parameters=None):
    """Curves at all rungs and at 12,800 examples."""
    models = [f"m{i}" for i in range(len(losses))]
    return curve_table(models, [*RUNGS, 12_800], losses, parameters=parameters or np.full(len(losses), 10.0))


@pytest.mark.long
def test_quick_run_writes_every_result(run, quick):
    points = read(run, quick / "points.csv")
    assert {point.strategy for point in points} == set(run.STRATEGIES)
    assert {point.models for point in points} == {"all"}
    assert all(point.regret >= 0 and 0 < point.spent < 0.25 for point in points)
    assert (quick / "adaptive.svg").read_text().startswith("<?xml")
    assert "| adaptive |" in (quick / "adaptive.md").read_text()


def test_adaptive_and_ladder_begin_and_end_alike(run, quick):
    found = run.courses(read(run, quick / "points.csv"))
    ladder, adaptive = (found["simulated", "all", name] for name in ("ladder", "adaptive"))
    for end in (0, -1):
        assert adaptive.spent[end] == pytest.approx(ladder.spent[end], rel=1e-5)
        assert adaptive.regret[end] == ladder.regret[end]
    assert len(adaptive.spent) > len(ladder.spent)


def test_nothing_is_seen_that_was_not_bought(run):
    bench = run.Bench(table_of([5, 4, 3, 2, 1], [6, 5, 4, 3, 2], parameters=[10.0, 30.0]), 12_800)
    assert bench.rungs == RUNGS
    assert (bench.spent, bench.seen.measured.any()) == (0, False)
    bench.buy([Point("m1", 400)])
    bench.buy([Point("m1", 400), Point("m0", 1600)])
    assert bench.spent == pytest.approx((30 * 400 + 10 * 1600) / (40 * 12_800))
    assert 12_800 not in bench.seen.sizes
    np.testing.assert_array_equal(np.argwhere(bench.seen.measured), [[0, 3], [1, 1]])
    assert bench.seen.loss[1, 1] == 5


def test_halving_keeps_the_better_half_and_pays_for_no_more(run):
    # m3 is best from the second rung on, m0 at first; the target is no part of it.
    table = table_of([1, 4, 3, 2, 1], [2, 5, 4, 3, 9], [3, 3, 3, 3, 9], [4, 2, 2, 1, 9])
    found = list(run.halving("sub_tuning", whole_curves=False)(table, 12_800))
    one = 1 / (4 * 12_800)
    assert [choice for _, choice in found] == ["m3", "m3", "m3"]
    assert [spent for spent, _ in found] == pytest.approx(
        [(4 * 400 + 2 * 800) * one, (4 * 800 + 2 * 1600) * one, 4 * 1600 * one]
    )
    by_ats = list(run.halving("ats", whole_curves=True)(table, 12_800))
    assert by_ats[0] == pytest.approx(((4 * 600 + 2 * 800) * one, "m3"))


def test_courses_are_steps(run):
    course = run.Course(np.array([0.1, 0.2, 0.4]), np.array([0.3, 0.01, 0.0]))
    np.testing.assert_array_equal(course.at(np.array([0.05, 0.1, 0.15, 0.2, 1.0])), [np.nan, 0.3, 0.3, 0.01, 0.0])
    assert course.small_from() == 0.2
    assert course._replace(regret=np.array([0.0, 0.0, 0.5])).small_from() == math.inf
    assert course._replace(regret=np.zeros(3)).small_from() == 0.1


def test_halves_are_drawn_without_looking(run):
    table = simulated(models=5)
    found = run.subsets(table, 3)
    assert [len(part.models) for part in found.values()] == [5, 3, 3, 3]
    assert all(set(part.models) <= set(table.models) for part in found.values())


def test_it_is_skipped_without_public_curves(run, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run.datasets, "available", tuple)
    run.main(out=tmp_path / "out")
    assert capsys.readouterr().out.startswith("Skipped: set LENSJAX_BENCHMARKS")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("folder", ["results", "results/earlier"])
def test_committed_results_belong_together(run, folder):
    points = read(run, FOLDER / folder / "points.csv")
    assert {point.task for point in points} == {"flan", "gigaword"}
    assert {point.strategy for point in points} == set(run.STRATEGIES)
    assert run.markdown(points) == (FOLDER / folder / "adaptive.md").read_text()
    assert (FOLDER / folder / "adaptive.svg").exists()
