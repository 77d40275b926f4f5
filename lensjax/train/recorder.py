"""Observing training: a live line, a log of JSON lines, and trackers."""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import jax
import jax.numpy as jnp

from lensjax.core.artefacts import Damaged, read_ours
from lensjax.core.devices import peak_flops
from lensjax.core.errors import InputError, shorten
from lensjax.core.files import explained, write_files
from lensjax.core.processes import is_first
from lensjax.train.displays import Display, default_display
from lensjax.train.evaluate import Evaluation
from lensjax.train.loop import Progress
from lensjax.train.trackers import TRACKERS, Tracker

LOG = "log.jsonl"
_LINES = 2000  # steps of a run that are logged, at most
_RATES_OVER = 20  # steps that speeds are averaged over


class Recorder:
    """Observes runs one after another; only the first process writes and shows anything.

    Args:
      dtype: Type to compute in, on which the devices' peak depends.
      devices: Number of devices that share the work.
      trackers: Names of `TRACKERS`.
      show: Whether to show progress on standard error: a live line in a terminal, elsewhere one line per validation; or
        what shows it instead.

    Raises:
      InputError: the log cannot be written; any method may raise it.
    """

    def __init__(self, dtype: str, devices: int, trackers: Sequence[str] = (), *, show: bool | Display = False) -> None:
        self._display = (default_display() if show is True else show or None) if is_first() else None
        self.peak = devices * (peak_flops(jax.devices()[0], dtype) or measured_peak(dtype))
        self._names = tuple(trackers) if is_first() else ()
        self._trackers: list[Tracker] = []
        self._file: TextIO | None = None
        self._recent: list[tuple[Progress, Progress]] = []  # at a time: steps handed to the devices, and those done
        self._speed: dict[str, float] = {}
        self._began = 0  # the step that this attempt went on from
        self._title, self._folder = "", Path()
        self._begun = False

    @contextmanager
    def run(self, title: str, folder: Path) -> Iterator["Recorder"]:
        """A context in which a run is observed, with its log in `folder`."""
        self._title, self._folder = title, folder
        try:
            yield self
        finally:
            self._end()

    def begin(self, progress: Progress, steps: int) -> None:
        """Training begins, or goes on from `progress`; later lines of its log are dropped."""
        self._recent, self._speed, self._began = [(progress, progress)], {}, progress.step
        if not is_first():
            return
        with explained(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            keep_until(self._folder / LOG, progress.step)
            self._file = (self._folder / LOG).open("a", encoding="utf-8")
        self._trackers = [TRACKERS[name][1](self._title, self._folder / name) for name in self._names]
        self._begun = True
        if self._display is not None:
            self._display.begin(self._title, progress.step, steps)

    def step(self, progress: Progress, steps: int, metrics: Mapping[str, float]) -> None:
        """Note a step; see `Observer`."""
        self._recent = [*self._recent[-_RATES_OVER:], (progress, self._recent[-1][0])]
        self._note_speed()
        left = self._left(steps)
        if self._display is not None:
            self._display.step(progress.step, metrics["loss"], self._speed, left)
        if progress.step % math.ceil(steps / _LINES) == 0:
            known = {} if left is None else {"seconds_left": left}
            self._write(progress, {**metrics, **self._speed, **known})

    def _left(self, steps: int) -> float | None:
        """Seconds until all steps are made, by the last ones; None at the first, which waits for its program."""
        timed = [one for one, _ in self._recent if one.step > self._began]
        if len(timed) < 2:
            return None
        first, last = timed[0], timed[-1]
        return (steps - last.step) * (last.seconds - first.seconds) / (last.step - first.step)

    def _note_speed(self) -> None:
        """Speeds over the last steps that the devices have done: when a step is handed to them, that before is not yet.

        Where that is none, the first step after the start or a validation, the speed before is kept.
        """
        (first, done_then), (last, done) = self._recent[0], self._recent[-1]
        seconds = last.seconds - first.seconds
        if done.step == done_then.step or seconds <= 0:
            return
        flops, masked = done.flops - done_then.flops, done.masked_flops - done_then.masked_flops
        self.peak = max(self.peak, flops / seconds)  # what devices have done they can do, whatever was measured before
        self._speed = {
            "tokens_per_second": (done.tokens - done_then.tokens) / seconds,
            "model_flops_utilisation": flops / seconds / self.peak,
            "causal_flops_utilisation": (flops - masked) / seconds / self.peak,
        }

    def validation(self, progress: Progress, evaluation: Evaluation) -> None:
        """Note a validation; see `Observer`."""
        values = {"validation_loss": evaluation.loss, "lowest_validation_loss": progress.best_loss}
        self._write(progress, values)
        self._recent = [(progress, progress)]
        if self._display is not None:
            self._display.validation(progress.step, evaluation.loss)

    def _write(self, progress: Progress, values: Mapping[str, float]) -> None:
        if self._file is None:
            return
        times = {"seconds": round(progress.seconds, 4), "seconds_waiting": round(progress.waiting, 4)}
        line = {"step": progress.step, **times, **values}
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise InputError(
                f"Cannot write {shorten(self._file.name, 400)}: {error.strerror}; make room, and run the same command "
                "again."
            ) from error
        for tracker in self._trackers:
            tracker.log(progress.step, values)

    def _end(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        for tracker in self._trackers:
            tracker.close()
        self._trackers = []
        if self._begun and self._display is not None:
            self._display.end()
        self._begun = False


def keep_until(path: Path, step: float) -> None:
    """Drop the lines of a log that are of later steps, or were not written whole; a file takes the place of a link.

    Raises:
      InputError: the log cannot be read or written.
    """
    try:
        text = (read_ours(path) or b"").decode(errors="replace")
    except Damaged:  # a pipe, or a link that leads nowhere: without it, a log begins anew
        text = ""
    kept = [line for line in text.splitlines() if _step(line) <= step]
    write_files({path: "".join(line + "\n" for line in kept)}, follow=False)


def measured_peak(dtype: str) -> float:
    """FLOP/s of a large matrix product on one device, for devices without a published peak."""
    size = 1024
    x = jnp.ones((size, size), dtype)
    multiply = jax.jit(lambda a: a @ a)
    multiply(x).block_until_ready()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        multiply(x).block_until_ready()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return math.inf
