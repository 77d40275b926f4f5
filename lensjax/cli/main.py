"""The command line. Commands import what they need when they run, so that `lensjax --help` is immediate."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import tyro

from lensjax.cli import curvature, data, evaluate, finetune, mesh, models, next, plan, rank, report, study
from lensjax.cli.faults import internal_error, sentences
from lensjax.cli.helping import readers_of_options, told_well
from lensjax.cli.streams import OutputLost, enduring
from lensjax.core.compiled import keep_compiled_programs
from lensjax.core.errors import InputError, PeerLost, as_sentence, listing, meant, shorten
from lensjax.core.terminal import prepare_streams, say

_TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h

# Commands by name; a group of commands has its help beside them.
_COMMANDS: dict[str, Any] = {
    "study": ({"init": study.init}, "Begin a study."),
    "plan": plan.plan,
    "run": study.run,
    "report": report.report,
    "rank": rank.rank,
    "evaluate": evaluate.evaluate,
    "next": next.next_cells,
    "finetune": finetune.finetune,
    "curve": finetune.curve,
    "ntk": curvature.ntk,
    "hessian": curvature.hessian,
    "data": ({"show": data.show, "fetch": data.fetch}, "Show a task's data, or fetch some to try."),
    "models": (
        {
            "list": models.list_families,
            "show": models.show,
            "mesh": mesh.mesh,
            "check": models.check,
            "export": models.export,
        },
        "List, show, place, check and export language models.",
    ),
}


def _app(commands: Mapping[str, Any], given: Sequence[str]) -> tyro.extras.SubcommandApp:
    """Commands, with all help of the one that is given, and a line of each other: they fit a screen."""
    app = tyro.extras.SubcommandApp()
    for name, command in commands.items():
        chosen = given[:1] == [name]
        if isinstance(command, tuple):
            app.command(_app(command[0], given[1:] if chosen else ()), name=name, help=command[1])
        else:
            told = told_well(command) if chosen else command
            app.command(name=name, help=None if chosen else _summary(command))(told)
    return app


def _summary(command: Any) -> str:
    """The first sentence of a command's help."""
    return " ".join((command.__doc__ or "").split("\n\n", 1)[0].split())


def _check_command(arguments: Sequence[str], commands: Mapping[str, Any] = _COMMANDS) -> None:
    """Raise InputError where a command is misspelt."""
    if not arguments or arguments[0].startswith("-"):
        return
    name, *rest = arguments
    if name not in commands:
        near = [*_elsewhere(name), meant(name, commands)][0]
        mend = f"did you mean {near}?" if near else f"choose from {listing(list(commands), 20)}."
        raise InputError(f"There is no command '{shorten(name)}'; {mend}")
    if isinstance(commands[name], tuple):
        _check_command(rest, commands[name][0])


def _elsewhere(name: str) -> Iterator[str]:
    """Commands of a name, as one writes them, whatever group they are in."""
    if name in _COMMANDS:
        yield f"lensjax {name}"
    groups = ((group, command[0]) for group, command in _COMMANDS.items() if isinstance(command, tuple))
    yield from (f"lensjax {group} {name}" for group, members in groups if name in members)


def _leave(status: int) -> None:
    """End at once: JAX would wait for processes that are gone."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Exits with status 2 and one sentence on standard error for bad input, and with 1 and the name of a file that holds
    the details for a fault of LensJAX. It exits with 75 where another process that computed with this one is
    gone. A reader of the output that goes away, as `| head` does, ends printing and
    nothing else.
    """
    prepare_streams()
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that models need PyTorch, which ours do not
    keep_compiled_programs()
    try:
        with enduring():
            status = _run(arguments)
    except OutputLost as error:
        with enduring():  # standard error may be as full
            say(f"lensjax: the output could not be written ({error}); all files are.", error=True)
        status = 1
    if status:
        sys.exit(status)


def _run(arguments: list[str] | None) -> int:
    """Run the command line; the exit status, unless a command exits itself."""
    try:
        with sentences():
            given = sys.argv[1:] if arguments is None else arguments
            if given == ["--version"]:
                from lensjax.core.version import __version__

                say(f"lensjax {__version__}")
                return 0
            _check_command(given)
            with readers_of_options():
                _app(_COMMANDS, given).cli(
                    prog="lensjax",
                    description="Which of these language models should we fine-tune on our data?",
                    args=arguments,
                    config=(tyro.conf.OmitArgPrefixes,),
                )
    except PeerLost as error:
        say(f"lensjax: {as_sentence(error)}", error=True)
        _leave(_TRY_AGAIN)
    except InputError as error:
        say(f"lensjax: {as_sentence(error)}", error=True)
        return 2
    except KeyboardInterrupt:
        say("lensjax: interrupted; nothing was written.", error=True)
        return 130
    except Exception as error:
        say(f"lensjax: {internal_error(error)}", error=True)
        return 1
    return 0
