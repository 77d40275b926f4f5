"""Standard output and error whose reader may go away: that ends printing, and not the work."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class Enduring:
    """A text stream that swallows what can no longer be written; all else is that of the stream itself.

    Attributes:
      lost: Why output was lost; None where all was written. A reader that has gone, as `| head` does, is no loss.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._closed = False
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, act: Callable[[], Any]) -> None:
        if self._closed:
            return
        try:
            act()
        except OSError as error:
            self._closed = True
            self.lost = None if isinstance(error, BrokenPipeError) else error
            _silence(self._stream)


def _silence(stream: TextIO) -> None:
    """Send what a stream still holds, and all that comes, to nowhere; else Python tries again when it ends."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # a stream without a file
        return


@contextmanager
def enduring() -> Iterator[None]:
    """Within it, standard output and error endure; those that are closed from the start lead nowhere.

    Raises:
      OutputLost: some of standard output could not be written, as on a full disk; at the end.
    """
    before, nowhere = (sys.stdout, sys.stderr), open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # closed below
    sys.stdout, sys.stderr = (Enduring(stream or nowhere) for stream in before)
    output = sys.stdout
    try:
        yield
        output.flush()
        if isinstance(output, Enduring) and output.lost is not None:
            raise OutputLost(output.lost.strerror)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before
        nowhere.close()


class OutputLost(Exception):
    """Some of standard output could not be written; the message says why."""
