"""What benchmarks share: parts in fresh processes, contenders that take turns, and results that are written and shown.

A benchmark is a file of functions that each measure one part, given a plan of how much, and a call of `run_parts`.
"""

import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from machine import describe
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

T = TypeVar("T")
Json = dict[str, Any]
Promise = tuple[str, float, float | None]  # what, how much of it at most, and how much was measured

RATIO = (
    "time of the peer over time of lensjax; above 1, lensjax is faster; `within_turns` is the median of the ratios "
    "within each turn, in which each contender runs once"
)


def run_parts(
    name: str,
    measures: Mapping[Any, Callable[[Any], Json | None]],
    plan: Any,
    parts: Iterable[str],
    out: Path,
    *,
    quick: bool,
    notes: Mapping[str, str],
    packages: Iterable[str],
    targets: Callable[[Mapping[str, Json]], list[Promise]],
    columns: Mapping[str, str],
) -> None:
    """Measure some parts, write them beside those that the file has already, and print tables.

    Args:
        name: Of the benchmark.
        measures: What measures each part, given the plan; None where it needs a GPU and JAX has none.
        quick: What a quick run measured and what a full one did never stand in the same file.
        packages: Whose versions each part names.
        targets: What was promised, of the parts that there are.
        columns: Headings of the table of times, and the names of the values below them.
    """
    console = Console()
    found: Json = {"benchmark": name, "quick": quick, "notes": notes, "parts": {}}
    if out.exists():
        before = json.loads(out.read_text(encoding="utf-8"))
        found["parts"] = before["parts"] if before["quick"] == quick else {}
    with processes(quick) as call:
        for part in parts:
            with console.status(part):
                described = describe(*packages)
                measured = call(measures[part], plan)
            if measured is None:
                console.print(f"{part} is skipped: JAX has no GPU here.")
                continue
            known = found["parts"] | {part: described | measured}
            found["parts"] = {name: known[name] for name in measures if name in known}
            write(found, targets(found["parts"]), out)
    conclude(found, targets(found["parts"]), times_table(found["parts"], columns), out, console)


@contextlib.contextmanager
def processes(quick: bool) -> Iterator[Callable[..., Any]]:
    """Calls functions, each in a fresh process that compiles all anew, or all in this process if it should be quick."""
    if quick:
        yield lambda function, *arguments: function(*arguments)
        return
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # processes inherit it
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as fresh:
        yield lambda function, *arguments: fresh.submit(function, *arguments).result()


def use_cpu() -> None:
    """All cores for both sides, and no messages of transformers among the tables."""
    import transformers

    jax.config.update("jax_platforms", "cpu")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if find_spec("torch"):
        import torch

        torch.set_num_threads(os.cpu_count() or 1)


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """Wall time and result of a call that returns NumPy arrays or waits for JAX itself, as all calls here do."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def command(*arguments: str) -> Json:
    """Seconds and memory of a command of lensjax, a process of its own on the CPU that compiles all anew."""
    settings = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "lensjax", *arguments], stdout=said, stderr=said, env=os.environ | settings
        )
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SystemExit(said.read().decode())
    unit = 1 if sys.platform == "darwin" else 1024
    return {"median_s": seconds, "cpu_s": used.ru_utime + used.ru_stime, "peak_gb": used.ru_maxrss * unit / 1e9}


class Stopwatch:
    """Times the steps between two of them."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.began = self.ended = 0.0

    def mark(self, step: int) -> None:
        """A step has ended."""
        now = time.perf_counter()
        self.began = now if step == self.first else self.began
        self.ended = now if step == self.last else self.ended

    @property
    def seconds(self) -> float:
        """Of one step."""
        return (self.ended - self.began) / (self.last - self.first)


def warm(contenders: Mapping[str, Callable[[], Any]], repeats: int) -> Json:
    """Wall times of calls, each of which was made once before; see `compared`."""
    return compared({name: partial(_seconds, call) for name, call in contenders.items()}, repeats, warm_up=1)


def _seconds(call: Callable[[], Any]) -> float:
    return timed(call)[0]


def compared(contenders: Mapping[str, Callable[[], float]], repeats: int, warm_up: int = 0) -> Json:
    """Seconds that every contender says it took, all taking turns, and the ratios of the others to the first.

    The first `warm_up` turns do not count.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(-warm_up, repeats):
        for name, call in contenders.items():
            gc.collect()
            seconds = call()
            if turn >= 0:
                times[name].append(seconds)
    first, *others = times
    found = {name: summary(measured) for name, measured in times.items()}
    for name in others:
        within = float(np.median(np.divide(times[name], times[first])))
        found[name] |= ratios(found[name], found[first]) | {"ratio_within_turns": within}
    return found


def summary(times: list[float]) -> Json:
    return {"median_s": float(np.median(times)), "min_s": min(times)}


def utilisations(flops: float, causal: float, seconds: float, peak: float | None) -> Json:
    """Shares of a device's peak, attention counted in full and without the half that causality masks.

    Raises:
      AssertionError: the work that cannot be left out takes more than all of the peak, so that something is wrong.
    """
    if peak is None:
        return {"utilisation": None, "causal": None}
    assert causal <= seconds * peak, f"{causal:.3g} operations in {seconds:.3g} s are over the peak of {peak:.3g}"
    return {"utilisation": min(1.0, flops / seconds / peak), "causal": causal / seconds / peak}


def ratios(peer: Json, ours: Json) -> Json:
    return {"ratio": peer["median_s"] / ours["median_s"], "ratio_of_minima": peer["min_s"] / ours["min_s"]}


def conclude(found: Json, promised: list[Promise], times: Table, out: Path, console: Console) -> None:
    """Judge what was promised, write the file, and print two tables."""
    write(found, promised, out)
    goals = Table("", "at most", "measured", "met", box=SIMPLE, title="Targets")
    for goal in found["targets"]:
        measured = "" if goal["measured"] is None else f"{goal['measured']:.3g}"
        goals.add_row(goal["what"], f"{goal['at_most']:g}", measured, {None: "", True: "yes", False: "no"}[goal["met"]])
    console.print(times, goals, f"Wrote {out}")


def write(found: Json, promised: list[Promise], out: Path) -> None:
    """Judge what was promised, and write the file, so that what was measured is kept whatever comes."""
    found["targets"] = [
        {"what": what, "at_most": limit, "measured": value, "met": None if value is None else value <= limit}
        for what, limit, value in promised
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(rounded(found), indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def rounded(value: Any) -> Any:
    """The same with floats to five significant digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def times_table(parts: Mapping[str, Json], columns: Mapping[str, str]) -> Table:
    """A row for everything that has a median time, wherever it stands in a part."""
    table = Table("", *columns, box=SIMPLE, title="Times")
    for name, times in _with_times("", parts):
        known = (times.get(key) for key in columns.values())
        table.add_row(name, *("" if number is None else f"{number:.3g}" for number in known))
    return table


def _with_times(name: str, value: Any) -> Iterator[tuple[str, Json]]:
    if isinstance(value, Mapping) and "median_s" in value:
        yield name, dict(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _with_times(f"{name}, {key}" if name else key, item)
