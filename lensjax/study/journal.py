"""The journal of a study: what was done and decided, in order, as JSON lines that are only ever added to."""

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from lensjax.core.errors import InputError, shorten
from lensjax.core.files import LOCK, locked, write_files
from lensjax.core.processes import on_first
from lensjax.core.specs import Strict
from lensjax.measure.measurement import FINETUNE, Cell

JOURNAL = "journal.jsonl"
QUARANTINE = "journal.quarantined.jsonl"  # lines that could not be read
VERSION = 1


class Entry(Strict):
    """A line of the journal: how a cell ended, or what was decided.

    Attributes:
      version: Of the journal's format.
      study: Identity of the study.
      time: When, in UTC.
      cell: The cell that ended; None for a decision.
      status, error: Whether the cell failed, and why.
      seconds: Its wall time, loading and compiling included.
      flops: Its floating-point operations, where they are counted.
      decision: A decision in a sentence; "" for a cell.
      basis: Hash of everything that the decision depends on.
      choice: The first candidate at the decision.
      probability_best: P(best) of the candidates at the decision, by name, where the method knows.
      eliminated: Candidates that are measured no further from here on.
      stop: Whether measuring ends here.
    """

    version: int = VERSION
    study: str
    time: str
    cell: Cell | None = None
    status: Literal["ok", "failed"] = "ok"
    error: str = ""
    seconds: float = 0.0
    flops: int = 0
    decision: str = ""
    basis: str = ""
    choice: str = ""
    probability_best: dict[str, float] = Field(default_factory=dict)
    eliminated: tuple[str, ...] = ()
    stop: bool = False

    @property
    def run(self) -> Cell | None:
        """The cell, if it is a fine-tuning run."""
        return self.cell if self.cell is not None and self.cell.kind == FINETUNE else None


class Journal:
    """The journal in a study's folder.

    Attributes:
      entries: Its lines so far, oldest first.
      quarantined: Number of lines that could not be read, and were moved to a file beside it.

    Args:
      folder: The study's folder.
      study: Identity of the study.

    Raises:
      InputError: it belongs to another study or a newer version, or cannot be read or written.
    """

    def __init__(self, folder: Path, study: str) -> None:
        self.path, self.study = folder / JOURNAL, study

        def read() -> list[Any]:
            with locked(folder / LOCK):
                entries, damaged = _read(self.path)
                _check(entries, study, self.path)
                if damaged:
                    self._set_aside(entries, damaged)
            return [[entry.model_dump(mode="json") for entry in entries], len(damaged)]

        entries, self.quarantined = on_first(read)
        self.entries = [Entry.model_validate(entry) for entry in entries]

    def add(self, **fields: object) -> Entry:
        """Add a line, which is on disk when this returns.

        Args:
          fields: Of `Entry`, but for study and time.

        Raises:
          InputError: it cannot be written.
        """

        def write() -> dict[str, Any]:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            entry = Entry.model_validate({"study": self.study, "time": now, **fields})
            with locked(self.path.parent / LOCK), self.path.open("ab") as file:
                file.write(entry.model_dump_json(exclude_defaults=True).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            return entry.model_dump(mode="json")

        self.entries.append(Entry.model_validate(on_first(write)))
        return self.entries[-1]

    def last(self, cell: Cell, forgiven: int = 0) -> Entry | None:
        """How a cell ended the last time it was tried; None where it was not.

        Args:
          cell: The cell.
          forgiven: Number of entries, from the first, among which failures do not count.
        """
        for number in range(len(self.entries) - 1, -1, -1):
            entry = self.entries[number]
            if entry.cell == cell:
                return None if entry.status == "failed" and number < forgiven else entry
        return None

    def _set_aside(self, entries: Sequence[Entry], damaged: Sequence[str]) -> None:
        """Move lines that cannot be read out of the journal."""
        beside = self.path.with_name(QUARANTINE)
        earlier = beside.read_text(encoding="utf-8") if beside.exists() else ""
        kept = "".join(entry.model_dump_json(exclude_defaults=True) + "\n" for entry in entries)
        write_files({beside: earlier + "".join(line + "\n" for line in damaged), self.path: kept})


def _check(entries: Sequence[Entry], study: str, path: Path) -> None:
    if any(entry.study != study for entry in entries):
        raise InputError(
            f"{shorten(path, 400)} is the journal of another study; give that study's spec, or a new folder."
        )


def _read(path: Path) -> tuple[list[Entry], list[str]]:
    """The entries of a journal, and its damaged lines."""
    try:
        lines = path.read_bytes().decode("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise InputError(f"Cannot read {shorten(path, 400)}: {error.strerror}; mend its permissions.") from error
    entries, damaged = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
            version = content.get("version", VERSION) if isinstance(content, dict) else VERSION
            if isinstance(version, int) and version > VERSION:
                raise InputError(
                    f"{shorten(path, 400)} line {number} was written by a newer version of LensJAX (journal version "
                    f"{version}, this one reads {VERSION}); update LensJAX."
                )
            entries.append(Entry.model_validate(content))
        except (ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            damaged.append(line)
    return entries, damaged
