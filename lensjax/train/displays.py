"""What users see of a run while it is trained: a line that moves in a terminal, or lines elsewhere."""

import html
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from lensjax.core.terminal import say
from lensjax.core.text import clean, duration

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

_BETWEEN = 0.25  # seconds between changes of a notebook's bar


class Display(Protocol):
    """Shows the runs of a process, one after another."""

    def begin(self, title: str, step: int, steps: int) -> None:
        """A run begins, or goes on from a step."""

    def step(self, step: int, loss: float, speed: Mapping[str, float], seconds_left: float | None) -> None:
        """A step was made.

        Args:
          step: Its number.
          loss: Of its batch, in nats per target token.
          speed: Tokens per second and shares of the devices' peak by name, as in the log; {} where not known yet.
          seconds_left: Until all steps are made, at the speed so far; None where that is not known yet.
        """

    def validation(self, step: int, loss: float) -> None:
        """A validation was made, with its loss in nats per target token."""

    def end(self) -> None:
        """The run has ended."""


class Lines:
    """A line on standard error for every validation."""

    def __init__(self) -> None:
        self._title = ""

    def begin(self, title: str, step: int, steps: int) -> None:
        self._title = title

    def step(self, step: int, loss: float, speed: Mapping[str, float], seconds_left: float | None) -> None:
        pass

    def validation(self, step: int, loss: float) -> None:
        say(f"{self._title}: step {step}, validation loss {loss:.4f}", error=True)

    def end(self) -> None:
        pass


class Line:
    """A line in a terminal that moves with every step."""

    def __init__(self, console: Any) -> None:
        self._console = console
        self._bar: Bar | None = None

    def begin(self, title: str, step: int, steps: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress

        texts = [TextColumn(f"{{task.fields[{name}]}}") for name in ("loss", "speed", "left")]
        columns: list[Any] = [TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), *texts]
        self._bar = RichProgress(*columns, console=self._console, transient=True)
        self._bar.add_task(title, total=steps, completed=step, loss="", speed="compiling", left="")
        self._bar.start()

    def step(self, step: int, loss: float, speed: Mapping[str, float], seconds_left: float | None) -> None:
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0],
                completed=step,
                loss=f"loss {loss:.4f}",
                speed=speed_text(speed),
                left=left_text(seconds_left),
            )

    def validation(self, step: int, loss: float) -> None:
        pass

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class NotebookBar:
    """A bar below the cell of a notebook that moves with the steps."""

    def __init__(self) -> None:
        self._shown: Any = None
        self._title, self._steps, self._next = "", 0, 0.0

    def begin(self, title: str, step: int, steps: int) -> None:
        from IPython.display import HTML, display

        self._title, self._steps, self._next = title, steps, 0.0
        self._shown = display(HTML(self._bar(step, ["compiling"])), display_id=True)

    def step(self, step: int, loss: float, speed: Mapping[str, float], seconds_left: float | None) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _BETWEEN
            self._show(self._bar(step, [f"loss {loss:.4f}", speed_text(speed), left_text(seconds_left)]))

    def validation(self, step: int, loss: float) -> None:
        self._show(self._bar(step, [f"validation loss {loss:.4f}"]))

    def end(self) -> None:
        self._show("")

    def _show(self, content: str) -> None:
        from IPython.display import HTML

        if self._shown is not None:
            self._shown.update(HTML(content))

    def _bar(self, step: int, parts: Sequence[str]) -> str:
        said = ", ".join(filter(None, [f"{self._title}: step {step:,} of {self._steps:,}", *parts]))
        return f'<progress value="{step}" max="{self._steps}"></progress> {html.escape(clean(said, 400))}'


def default_display() -> Display:
    """A bar, in a notebook; a line that moves, where standard error is a terminal; and lines elsewhere."""
    from rich.console import Console

    if in_notebook():
        return NotebookBar()
    console = Console(stderr=True)
    return Line(console) if console.is_terminal else Lines()


def in_notebook() -> bool:
    """Whether this runs in the kernel of a notebook, which shows what is displayed as HTML."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def speed_text(speed: Mapping[str, float]) -> str:
    """Tokens per second, and how much of the devices' peak that is."""
    if not speed:
        return ""
    return f"{speed['tokens_per_second']:,.0f} tokens/s, {100 * speed['model_flops_utilisation']:.0f} % of peak"


def left_text(seconds: float | None) -> str:
    """How long a run still takes, which may end before all its steps; "" where that is not known."""
    return "" if seconds is None else f"at most {duration(max(seconds, 1.0))} left"
