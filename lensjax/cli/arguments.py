"""Arguments that several commands take, each with its help, and choices from registries."""

import pkgutil
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg
from tyro.extras import literal_type_from_choices


def choice_of(names: str) -> object:
    """Names in a registry as the choices of an argument.

    Args:
      names: Registry or mapping as "module:NAME", imported only when a command with such an argument is parsed.
    """
    return arg(
        constructor_factory=lambda: literal_type_from_choices(tuple(pkgutil.resolve_name(names))),
        help_behavior_hint=lambda default: f"(default: {default.strip(_BRACKETS)})",
    )


_BRACKETS = "[]'"  # of a default that is of no type which tyro knows
_MODEL = "Folder of a model, its name on the Hugging Face hub, or pocket:NAME, which is part of LensJAX."
_CURVES = (
    "CSV file of fine-tuning curves, or rectified:flan or rectified:gigaword for a public benchmark (fetched once), or "
    "'simulated' for curves made up to try the command."
)
_SPEC = "YAML file that says what the task is, and under `training` how models are fine-tuned."
_STUDY = "YAML file of the study; `lensjax study init` writes one."
_FINETUNED = (
    "Folders of runs as `lensjax finetune` or `lensjax curve --save-models` writes them, or the model's folder that "
    "holds several."
)

CurvesFile = Annotated[str, Positional, arg(metavar="CURVES.csv", help=_CURVES)]
SpecFile = Annotated[Path, Positional, arg(metavar="SPEC.yaml", help=_SPEC)]
StudyFile = Annotated[Path, Positional, arg(metavar="STUDY.yaml", help=_STUDY)]
StudyFolder = Annotated[Path, Positional, arg(metavar="DIR", help="Folder of the study, as `lensjax run` wrote it.")]

ModelSource = Annotated[str, arg(help=_MODEL)]
ModelName = Annotated[str, Positional, arg(metavar="MODEL", help=_MODEL)]
Revision = Annotated[str | None, arg(help="Branch, tag or commit on the hub.")]
FinetunedFolders = Annotated[tuple[Path, ...], arg(help=_FINETUNED)]
Mesh = Annotated[
    str | None, arg(help="Devices along each axis (data, fsdp, tensor); all of them along fsdp by default.")
]
FunctionalName = Annotated[str, choice_of("lensjax.measure.functionals:FUNCTIONALS")]
LauncherName = Annotated[str, choice_of("lensjax.study.launching:LAUNCHERS")]
UnitName = Annotated[
    Literal["bits_per_byte", "nats_per_token", "nats_per_example", "errors_per_example"] | None,
    arg(
        help="Unit of losses: the column to read, of a file with a row per measurement, or what losses are in, of one "
        "with a row per model. By default bits per byte where all losses are known in them, and else nats per token."
    ),
]
MetricName = Annotated[
    Literal["exact_match", "token_accuracy", "choice_accuracy", "choice_accuracy_per_byte"] | None,
    arg(
        help="Rank by this column of a file with a row per measurement, more being better: predicted from the loss, to "
        "which the measurements link it. By default the loss ranks."
    ),
]
MethodName = Annotated[str, choice_of("lensjax.selection.methods:METHODS")]
TaskName = Annotated[str, Positional, choice_of("lensjax.tasks.ready_made:TASKS")]
MaxParameters = Annotated[
    str | None,
    arg(metavar="N", help="Most parameters of a model to choose, as in 1.5B; larger ones are shown, but never chosen."),
]
SmallestWithin = Annotated[
    float | None,
    arg(
        metavar="LOSS",
        help="Choose the smallest model whose expected loss is no more than this above that of the best.",
    ),
]
Precision = Literal["float32", "float64", "bfloat16"]
DType = Literal["float32", "bfloat16", "float16", "float64"]
