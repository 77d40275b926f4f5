"""The command line. Commands import what they need when they run, so that `lensjax --help` is immediate."""

import sys

import tyro

from lensjax.cli import curvature, data, evaluate, finetune, models, next, plan, rank, report, study
from lensjax.cli.faults import internal_error, sentences
from lensjax.cli.streams import OutputLost, enduring
from lensjax.core.compiled import keep_compiled_programs
from lensjax.core.errors import InputError, as_sentence
from lensjax.core.terminal import prepare_streams, say


def _commands() -> tyro.extras.SubcommandApp:
    of_models = tyro.extras.SubcommandApp()
    of_models.command(name="list")(models.list_families)
    of_models.command(models.show)
    of_models.command(models.check)
    of_models.command(models.export)
    of_studies = tyro.extras.SubcommandApp()
    of_studies.command(study.init)
    of_data = tyro.extras.SubcommandApp()
    of_data.command(data.show)
    of_data.command(data.fetch)
    commands = tyro.extras.SubcommandApp()
    commands.command(of_studies, name="study", help="Begin a study.")
    commands.command(plan.plan)
    commands.command(study.run)
    commands.command(report.report)
    commands.command(rank.rank)
    commands.command(evaluate.evaluate)
    commands.command(name="next")(next.next_cells)
    commands.command(finetune.finetune)
    commands.command(finetune.curve)
    commands.command(curvature.ntk)
    commands.command(curvature.hessian)
    commands.command(of_data, name="data", help="Show a task's data, or fetch some to try.")
    commands.command(of_models, name="models", help="List, show, check and export language models.")
    return commands


def main(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Exits with status 2 and one sentence on standard error for bad input, and with 1 and the name of a file that holds
    the details for a fault of LensJAX. A reader of the output that goes away, as `| head` does, ends printing and
    nothing else.
    """
    prepare_streams()
    keep_compiled_programs()
    try:
        with enduring(), sentences():
            _commands().cli(
                prog="lensjax",
                description="Which of these language models should we fine-tune on our data?",
                args=arguments,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except InputError as error:
        say(f"lensjax: {as_sentence(error)}", error=True)
        sys.exit(2)
    except KeyboardInterrupt:
        say("lensjax: interrupted; nothing was written.", error=True)
        sys.exit(130)
    except OutputLost as error:
        say(f"lensjax: the output could not be written ({error}); all files are.", error=True)
        sys.exit(1)
    except Exception as error:
        say(f"lensjax: {internal_error(error)}", error=True)
        sys.exit(1)
