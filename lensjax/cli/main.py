"""The command line. Commands import what they need when they run, so that `lensjax --help` is immediate."""

import sys

import tyro

from lensjax.cli import curvature, data, evaluate, finetune, models, next, plan, rank, report, study
from lensjax.cli.streams import OutputLost, enduring
from lensjax.core.compiled import keep_compiled_programs
from lensjax.core.errors import InputError


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
    """Run the command line; bad input exits with status 2 and one sentence on standard error.

    A reader of the output that goes away, as `| head` does, ends printing and nothing else.
    """
    keep_compiled_programs()
    try:
        with enduring():
            _commands().cli(
                prog="lensjax",
                description="Which of these language models should we fine-tune on our data?",
                args=arguments,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except InputError as error:
        print(f"lensjax: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("lensjax: interrupted; nothing was written.", file=sys.stderr)
        sys.exit(130)
    except OutputLost as error:
        print(f"lensjax: the output could not be written ({error}); all files are.", file=sys.stderr)
        sys.exit(1)
