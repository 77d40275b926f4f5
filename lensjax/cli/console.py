"""The terminal: consoles, tables, progress, and ends that a user asked for."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lensjax.core.terminal import say
from lensjax.core.text import clean, plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from lensjax.study.schema import StudyReport


def make_console(width: int = 140) -> "Console":
    """Standard output, of a fixed width where it is not a terminal."""
    from rich.console import Console

    class Plain(Console):
        """A console whose texts cannot steer the terminal."""

        def print(self, *objects: Any, **options: Any) -> None:
            super().print(*(plain(one) if isinstance(one, str) else one for one in objects), **options)

    console = Plain(highlight=False)
    return console if console.is_terminal else Plain(highlight=False, width=width)


def make_table(
    title: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    words: Sequence[str] = ("model",),
    wrap: bool = True,
    **style: Any,
) -> "Table":
    """A table under a bold title, its columns flush right.

    Args:
      title: Plain text, as are all cells.
      headings: One for each column.
      rows: One cell for each column.
      words: Headings of columns that are flush left.
      wrap: Whether the other columns may wrap where the terminal is narrow.
      style: For `rich.table.Table`.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(clean(title)), title_justify="left", title_style="bold", **style)
    for heading in headings:
        text = heading in words
        table.add_column(heading, justify="left" if text else "right", overflow="fold", no_wrap=not (text or wrap))
    for row in rows:
        table.add_row(*(escape(clean(cell)) for cell in row))
    return table


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, where that is a terminal; gives what to call with (done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        job = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(job, completed=done, total=total)


@contextmanager
def resumable() -> Iterator[None]:
    """Exit with a sentence when the user ends work that the same command resumes."""
    from lensjax.train.loop import Stopped

    try:
        yield
    except Stopped:
        say("lensjax: stopped; all progress is saved, and the same command resumes from there.", error=True)
        sys.exit(143)
    except KeyboardInterrupt:
        say("lensjax: interrupted; finished work is kept, and the same command resumes.", error=True)
        sys.exit(130)


def print_decision(report: "StudyReport", folder: Path) -> None:
    """Print what the last tests of a study showed, the cautions to read before it is trusted, and its decision."""
    from lensjax.study.tested import tested_notes, tested_table
    from lensjax.study.winner import winner_command

    table = tested_table(report.candidates)
    if table is not None:
        rows = [(name, *cells) for name, cells in table.rows]
        make_console().print(make_table(table.title, ("model", *table.columns), rows))
    for note in tested_notes(report.candidates):
        say(f"Note: {note}")
    for warning in report.warnings:
        say(f"Caution: {warning}")
    for candidate in report.candidates:
        if candidate.ineligible:
            how = "Not measured" if candidate.state == "refused" else "Not to be chosen"
            say(f"{how}: {candidate.name}, as {candidate.ineligible}.")
    if report.decision.model is not None and report.decision.final:
        say(f"To fine-tune {clean(report.decision.model, 100)} on all the data: {winner_command(folder)}")
    for sentence in filter(None, (*report.decision.because, report.decision.more, report.decision.sentence)):
        say(sentence)
