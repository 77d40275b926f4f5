"""What benchmarks of TPU topologies share: a command that measures cases, and writes each row as it comes."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax
from machine import describe
from parts import Json, rounded

from lensjax.core.devices import topology_devices
from lensjax.core.errors import InputError


class Case(Protocol):
    """What a row of the results is of."""

    @property
    def title(self) -> str: ...

    @property
    def topology(self) -> str: ...


C = TypeVar("C", bound=Case)


def parser_of(doc: str) -> argparse.ArgumentParser:
    """The arguments that all of these benchmarks take."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the results to this JSON file; those of other cases stay")
    parser.add_argument("--case", type=int, nargs="*", help="only these, counted from 0, even if they are there")
    parser.add_argument("--quick", action="store_true", help="only try the script on tiny models")
    return parser


def results_of(out: Path | None) -> dict[str, Any]:
    """The rows that a file has already, by the titles of their cases."""
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out is not None and out.exists() else {}
    return found


def run_cases(
    arguments: argparse.Namespace,
    cases: Sequence[C],
    measure: Callable[[C], Json],
    packages: Sequence[str],
    *,
    missing: Callable[[Json], bool] = lambda row: not row,
    hidden: Sequence[str] = (),
) -> None:
    """Measure cases, and write every row as it comes.

    Args:
      arguments: As `parser_of` takes them.
      packages: Whose versions each row names.
      missing: Whether a row, {} where there is none, is to be measured; rows of --case always are.
      hidden: Fields of rows that are not printed.
    """
    use_compiler(cases[0].topology)
    numbers = range(len(cases)) if arguments.case is None else arguments.case
    if not all(0 <= number < len(cases) for number in numbers):
        sys.exit(f"--case counts from 0 to {len(cases) - 1}.")
    results = results_of(arguments.out)
    for number in numbers:
        case = cases[number]
        if arguments.case is None and not missing(results.get(case.title, {})):
            continue
        described = describe(*packages)
        results[case.title] = rounded(measure(case)) | described
        shown = {name: value for name, value in results[case.title].items() if name not in hidden}
        print(case.title, json.dumps(shown, indent=2), flush=True)
        if arguments.out is not None:
            ordered = {case.title: rounded(results[case.title]) for case in cases if case.title in results}
            arguments.out.write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")


def use_compiler(topology: str) -> None:
    """Compute on the CPU, and end the program, with what to install, where nothing compiles for TPUs."""
    jax.config.update("jax_platforms", "cpu")
    try:
        topology_devices(topology)
    except InputError as error:
        sys.exit(str(error))
