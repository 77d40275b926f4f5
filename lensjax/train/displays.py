"""What users see of a run while it is trained: a line that moves in a terminal, or lines elsewhere."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from lensjax.core.terminal import say

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


class Display(Protocol):
    """Shows the runs of a process, one after another."""

    def begin(self, title: str, step: int, steps: int) -> None:
        """A run begins, or goes on from a step."""

    def step(self, step: int, loss: float, speed: Mapping[str, float], seconds_left: float) -> None:
        """A step was made.

        Args:
          step: Its number.
          loss: Of its batch, in nats per target token.
          speed: Tokens per second and shares of the devices' peak by name, as in the log; {} where not known yet.
          seconds_left: Until all steps are made, at the speed so far.
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

    def step(self, step: int, loss: float, speed: Mapping[str, float], seconds_left: float) -> None:
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

    def step(self, step: int, loss: float, speed: Mapping[str, float], seconds_left: float) -> None:
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0],
                completed=step,
                loss=f"loss {loss:.4f}",
                speed=speed_text(speed),
                left=f"{clock(seconds_left)} left",
            )

    def validation(self, step: int, loss: float) -> None:
        pass

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def default_display() -> Display:
    """A line that moves, where standard error is a terminal, and lines elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    return Line(console) if console.is_terminal else Lines()


def speed_text(speed: Mapping[str, float]) -> str:
    """Tokens per second, and how much of the devices' peak that is."""
    if not speed:
        return ""
    return f"{speed['tokens_per_second']:,.0f} tokens/s, {speed['model_flops_utilisation']:.0%} of peak"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, as in 0:02:30."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
