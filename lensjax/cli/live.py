"""A running study in a terminal: a grid of candidates and rungs that fills, the current run, and the time left."""

import itertools
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any, Self

from lensjax.core import text
from lensjax.core.errors import InputError
from lensjax.train.displays import left_text, speed_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from lensjax.study.standing import Standing

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 32  # characters of the line of losses
_SIGNS = {"failed": "failed", "waiting": "·", "dropped": "–"}


class LiveStudy(AbstractContextManager["LiveStudy"]):
    """Shows a study while it runs; it also is the `Display` of its training runs.

    Args:
      console: A terminal, on standard error.
    """

    def __init__(self, console: "Console") -> None:
        from rich.live import Live

        # Other lines appear above it where they go to the same terminal.
        together = sys.stdout.isatty()
        self._live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=together)
        self._standing: Standing | None = None
        self._began = 0.0
        self._run, self._losses = "", list[float]()
        self._shown = 0.0

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def update(self, standing: "Standing") -> None:
        """Show how far the study is."""
        self._standing, self._began = standing, time.monotonic()
        self._run, self._losses = "" if standing.next is None else str(standing.next), []
        self._show()

    def begin(self, title: str, step: int, steps: int) -> None:
        """See `lensjax.train.displays.Display`."""
        self._run, self._losses = f"{title}: step {step:,} of {steps:,}, compiling", []
        self._title, self._steps = title, steps
        self._show()

    def step(self, step: int, loss: float, speed: Mapping[str, float], seconds_left: float | None) -> None:
        """See `Display`."""
        self._losses.append(loss)
        parts = [f"{self._title}: step {step:,} of {self._steps:,}", f"loss {loss:.4f}", speed_text(speed)]
        self._run = ", ".join(filter(None, [*parts, left_text(seconds_left)]))
        if time.monotonic() - self._shown > 0.25:
            self._show()

    def validation(self, step: int, loss: float) -> None:
        """See `Display`."""

    def end(self) -> None:
        """See `Display`."""
        self._run, self._losses = f"{self._title}: testing", []
        self._show()

    def _show(self) -> None:
        self._shown = time.monotonic()
        self._live.update(self.render(), refresh=True)

    def render(self) -> "RenderableType":
        """The grid, the current run, and how far the study is."""
        from rich.console import Group
        from rich.text import Text

        parts: list[Any] = []
        if self._standing is not None:
            parts = [grid(self._standing), Text(self._left(self._standing))]
        parts.append(Text(text.clean(self._run)))
        if self._losses:
            parts.append(Text(f"loss {sparkline(self._losses)}"))
        return Group(*parts)

    def _left(self, standing: "Standing") -> str:
        """Cells that are done, and time left; a cell that is being computed has used some of it."""
        left = standing.seconds_left
        used = time.monotonic() - self._began
        after = "" if left is None else f", about {text.duration(max(left - used, 1.0))} left"
        return f"{standing.done:,} of {standing.total:,} runs and measurements done{after}"


def grid(standing: "Standing") -> Any:
    """Candidates and rungs, with the losses that are known."""
    from rich.box import SIMPLE

    from lensjax.cli.console import make_table

    def cell(name: str, size: int) -> str:
        mark, loss = standing.marks[name, size], standing.losses.get((name, size))
        if mark == "done":
            return "done" if loss is None else text.number(loss)
        now = standing.next is not None and (standing.next.model, standing.next.examples) == (name, size)
        return "now" if now else _SIGNS[mark]

    rows = [(name, *(cell(name, size) for size in standing.sizes)) for name in standing.names]
    return make_table("Test losses", ("model", *map(text.count, standing.sizes)), rows, box=SIMPLE)


def sparkline(values: list[float]) -> str:
    """Numbers as bars of eight heights, the mean of several in one bar where there are many."""
    count = min(len(values), _WIDTH)
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    width = high - low or 1.0
    return "".join(_BARS[min(int((mean - low) / width * len(_BARS)), len(_BARS) - 1)] for mean in means)


def spared(
    act: Callable[[], object], share: float = 0.1, clock: Callable[[], float] = time.monotonic
) -> Callable[[], None]:
    """`act`, but only as often as it takes no more than a share of the time, and without what is wrong with input.

    What is wrong is said when the study ends, or by the next cell.
    """
    after = [0.0]

    def maybe() -> None:
        began = clock()
        if began >= after[0]:
            with suppress(InputError):
                act()
            ended = clock()
            after[0] = ended + (ended - began) * (1 / share - 1)

    return maybe
