"""A running study in a terminal."""

import io

import pytest
from rich.console import Console

from lensjax.cli.live import LiveStudy, grid, spared, sparkline
from lensjax.core.errors import InputError
from lensjax.measure.measurement import FINETUNE, Cell
from lensjax.study.standing import Standing

STANDING = Standing(
    names=("a", "b\x1b[31m", "c"),
    sizes=(0, 200),
    marks={(name, size): "waiting" for name in ("a", "b\x1b[31m", "c") for size in (0, 200)}
    | {("a", 0): "done", ("c", 0): "failed", ("c", 200): "dropped"},
    losses={("a", 0): 1.25},
    done=2,
    total=5,
    seconds_left=130,
    next=Cell(FINETUNE, "a", 200, 0),
)


def shown(thing):
    console = Console(file=io.StringIO(), width=100)
    console.print(thing)
    return console.file.getvalue()


def test_the_grid_has_losses_and_what_is_left():
    rows = [line.split() for line in shown(grid(STANDING)).splitlines() if line.strip()]
    assert ["a", "1.250", "now"] in rows
    assert ["c", "failed", "–"] in rows
    assert any(row[-2:] == ["·", "·"] for row in rows)
    assert "\x1b" not in shown(grid(STANDING))


def test_a_line_of_bars_has_all_values():
    assert sparkline([8.0, 1.0]) == "█▁"
    assert sparkline([3.0]) == "▁"
    long = sparkline([float(n) for n in range(1000)])
    assert (len(long), long[0], long[-1]) == (32, "▁", "█")


def test_the_current_run_is_shown_with_its_speed_and_time_left():
    terminal = io.StringIO()
    with LiveStudy(Console(file=terminal, force_terminal=True, width=120)) as live:
        live.update(STANDING)
        live.begin("a, 200 examples", 0, 70)
        assert "a, 200 examples: step 0 of 70, compiling" in shown(live.render())
        for step in (1, 2):
            live.step(step, 3.0 / step, {"tokens_per_second": 1234.5, "model_flops_utilisation": 0.25}, 61.0)
        text = shown(live.render())
        live.validation(2, 1.5)
        live.end()
    assert "step 2 of 70, loss 1.5000, 1,234 tokens/s, 25 % of peak, at most 1 min left" in text
    assert "loss █▁" in text
    assert "2 of 5 runs and measurements done, about 2 min left" in text
    assert "1.250" in terminal.getvalue()


def test_what_is_spared_takes_a_small_part_of_the_time():
    now, calls = [100.0], []

    def act():
        calls.append(now[0])
        now[0] += 2
        raise InputError("said elsewhere.")

    maybe = spared(act, clock=lambda: now[0])
    for _ in range(30):
        maybe()
        now[0] += 1
    assert calls == [100, 120]  # each of two seconds, and eighteen for what else there is
    with pytest.raises(KeyError):
        spared(lambda: {}["a"])()
