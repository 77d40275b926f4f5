"""The journal of a study: what was done and decided, in order, as JSON lines that are only ever added to.

Every line has a number, and ends with a checksum of itself. A line that does not fit its checksum, has the number of
another, is of another study, or cannot be read is set aside, and what it told of is done again or found on disk; all
other lines stay, and count in the order of their numbers.
"""

import gc
import itertools
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
from pydantic import Field, NonNegativeFloat, NonNegativeInt, ValidationError

from lensjax.core.artefacts import read_ours, sealed_line, unsealed_line
from lensjax.core.errors import InputError, shorten
from lensjax.core.files import LOCK, locked, may_write, write_files
from lensjax.core.processes import is_first, on_first
from lensjax.core.specs import Strict
from lensjax.core.text import escaped_json
from lensjax.measure.measurement import FINETUNE, Cell

JOURNAL = "journal.jsonl"
QUARANTINE = "journal.quarantined.jsonl"  # lines that were set aside
VERSION = 3  # from which on lines have numbers; checksums they have from 2 on


class Entry(Strict):
    """A line of the journal: how a cell ended, or what was decided.

    Attributes:
      version: Of the journal's format.
      study: Identity of the study.
      number: Of the line, from 1; 0 in lines of earlier versions.
      time: When, in UTC.
      cell: The cell that ended; None for a decision.
      status, error: Whether the cell failed or the process died while computing it, and why.
      seconds: Its wall time, loading and compiling included.
      flops: Its floating-point operations, where they are counted.
      digest: Hash of the file that holds its result; "" where there is none.
      decision: A decision in a sentence; "" for a cell.
      basis: Hash of everything that the decision depends on.
      choice: The first candidate at the decision.
      probability_best: P(best) of the candidates at the decision, by name, where the method knows.
      eliminated: Candidates that are measured no further from here on.
      stop: Whether measuring ends here.
    """

    version: int = 1  # of lines that do not say
    study: str
    number: NonNegativeInt = 0
    time: str
    cell: Cell | None = None
    status: Literal["ok", "failed", "died"] = "ok"
    error: str = ""
    seconds: NonNegativeFloat = Field(0.0, allow_inf_nan=False)
    flops: NonNegativeInt = 0
    digest: str = ""
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
      quarantined: Number of lines that could not be read, and were moved to a file beside it where that can be written.

    Args:
      folder: The study's folder.
      study: Identity of the study.
      reading: Only read it where it cannot be written; odd lines then stay where they are.

    Raises:
      InputError: it belongs to another study or a newer version, or cannot be read or written.
    """

    def __init__(self, folder: Path, study: str, *, reading: bool = False) -> None:
        self.path, self.study = folder / JOURNAL, study
        parsed: list[Entry] = []

        def read() -> list[Any]:
            writing = not reading or may_write(folder)
            with locked(folder / LOCK) if writing else nullcontext(), without_collector():
                found = _read(self.path, study)
                lines, odd = [line for line, _ in found.good], found.odd
                parsed.extend(entry for _, entry in found.good)
                # What is added must not go where a link leads.
                if writing and (odd or not found.in_order or self.path.is_symlink()):
                    self._set_aside(lines, odd)
            told = [entry.model_dump_json() for entry in parsed] if jax.process_count() > 1 else []
            return [told, len(odd)]

        lines, self.quarantined = on_first(read)
        self.entries = parsed if is_first() else [_entry(line.encode()) for line in lines]
        self._places: dict[Cell, list[int]] = defaultdict(list)  # of each cell's entries, oldest first
        for number, entry in enumerate(self.entries):
            if entry.cell is not None:
                self._places[entry.cell].append(number)

    def add(self, **fields: object) -> Entry:
        """Add a line, which is on disk when this returns.

        Args:
          fields: Of `Entry`, but for study, number and time.

        Raises:
          InputError: it cannot be written.
        """

        def write() -> dict[str, Any]:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            number = 1 + (self.entries[-1].number if self.entries else 0)
            told = {"version": VERSION, "study": self.study, "number": number, "time": now}
            entry = Entry.model_validate({**told, **fields})
            with locked(self.path.parent / LOCK), self.path.open("ab") as file:
                file.write(_line(entry) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            return entry.model_dump(mode="json")

        entry = Entry.model_validate(on_first(write))
        self.entries.append(entry)
        if entry.cell is not None:
            self._places[entry.cell].append(len(self.entries) - 1)
        return entry

    def last(self, cell: Cell, forgiven: int = 0) -> Entry | None:
        """How a cell ended the last time it was tried; None where it was not, or its process died.

        Args:
          cell: The cell.
          forgiven: Number of entries, from the first, among which failures do not count.
        """
        number = next(reversed(self._places.get(cell, ())), None)
        if number is None:
            return None
        entry = self.entries[number]
        return None if entry.status == "died" or (entry.status == "failed" and number < forgiven) else entry

    @property
    def cells(self) -> list[Cell]:
        """The cells that it tells of."""
        return list(self._places)

    def deaths(self, cell: Cell) -> int:
        """How often in a row the process died while computing a cell, up to now."""
        count = 0
        for number in reversed(self._places.get(cell, ())):
            if self.entries[number].status != "died":
                break
            count += 1
        return count

    def _set_aside(self, lines: Sequence[bytes], odd: Sequence[bytes]) -> None:
        """Move odd lines out of the journal, which the others are then all of."""
        contents: dict[Path, str | bytes] = {self.path: b"".join(line + b"\n" for line in lines)}
        if odd:
            beside = self.path.with_name(QUARANTINE)
            contents[beside] = (read_ours(beside) or b"") + b"".join(line + b"\n" for line in odd)
        write_files(contents, follow=False)


def journal_studies(folder: Path) -> set[str]:
    """Identities of the studies that whole lines of a folder's journal are of.

    Raises:
      InputError: it cannot be read.
    """
    found = (unsealed_line(line) for line in (read_ours(folder / JOURNAL) or b"").splitlines())
    return {json.loads(line).get("study", "") for line in found if line is not None}


@contextmanager
def without_collector() -> Iterator[None]:
    """Within it, the garbage collector does not look at the many objects that are made, none of which is garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _line(entry: Entry) -> bytes:
    return sealed_line(escaped_json(entry.model_dump_json(exclude_defaults=True)))


class _Found(NamedTuple):
    """The lines of a journal.

    Attributes:
      good: Lines in the order of their numbers, each with what it says.
      odd: The others.
      in_order: Whether the good ones stood in that order.
    """

    good: list[tuple[bytes, Entry]]
    odd: list[bytes]
    in_order: bool


def _read(path: Path, study: str) -> _Found:
    good, odd, others, numbers = list[tuple[bytes, Entry]](), list[bytes](), 0, set[int]()
    for place, line in enumerate((read_ours(path) or b"").splitlines(), start=1):
        if not line.strip():
            continue
        plain = unsealed_line(line)
        try:
            entry = Entry.model_validate_json(line if plain is None else plain)
        except (ValidationError, RecursionError) as error:
            if plain is not None and (version := _newer(plain)):
                raise InputError(
                    f"{shorten(path, 400)} line {place} was written by a newer version of LensJAX (journal version "
                    f"{version}, this one reads {VERSION}); update LensJAX."
                ) from error
            odd.append(line)
            continue
        if (plain is None and entry.version != 1) or (entry.number and entry.number in numbers):
            odd.append(line)
        elif entry.study != study:
            others += 1
            odd.append(line)
        else:
            good.append((line, entry))
            numbers.add(entry.number)
    if others and not good:
        raise InputError(
            f"{shorten(path, 400)} is the journal of another study; give that study's spec, or a new folder."
        )
    told = [entry.number for _, entry in good]
    in_order = all(one <= other for one, other in itertools.pairwise(told))
    return _Found(good if in_order else sorted(good, key=lambda one: one[1].number), odd, in_order)


def _entry(line: bytes) -> Entry:
    """What a good line says."""
    return Entry.model_validate_json(unsealed_line(line) or line)


def _newer(line: bytes) -> int:
    """The version of a line that a newer version wrote; 0 for other lines."""
    content = json.loads(line)
    version = content.get("version") if isinstance(content, dict) else None
    return version if isinstance(version, int) and version > VERSION else 0
