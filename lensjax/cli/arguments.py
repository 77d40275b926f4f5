"""Arguments that several commands take, each with its help, and choices from registries."""

import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg
from tyro.constructors import PrimitiveConstructorSpec
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


def _count(text: str) -> int:
    """The whole number that a user wrote, also as 12k or 1.6M."""
    from lensjax.core.specs import whole

    try:
        return int(text)
    except ValueError:
        number = whole(text)
    if not isinstance(number, int):
        raise ValueError("give a whole number, such as 400, 12k or 1.6M")
    return number


def _named(names: tuple[str, ...]) -> Callable[[str], str]:
    """Reads one of the names of types, also a short one."""

    def read(text: str) -> str:
        from lensjax.core.specs import precision

        if (name := str(precision(text))) not in names:
            raise ValueError(f"give one of {', '.join(names)}")
        return name

    return read


def _written(metavar: str, read: Callable[[str], Any], kind: type) -> PrimitiveConstructorSpec[Any]:
    """An argument that a function reads from its text."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda texts: read(texts[0]),
        is_instance=lambda value: isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )


_BRACKETS = "[]'"  # of a default that is of no type which tyro knows
_PRECISIONS = ("float32", "float64", "bfloat16")
_DTYPES = ("float32", "bfloat16", "float16", "float64")
_MODEL = "Folder of a model, its name on the Hugging Face hub, or pocket:NAME, which is part of LensJAX."
_CURVES = (
    "CSV file of fine-tuning curves, or rectified:flan or rectified:gigaword for a public benchmark (fetched once), or "
    "'simulated' for curves made up to try the command."
)
_SPEC = (
    "YAML file that says what the task is, and under `training` how models are fine-tuned; or that of a study, or a "
    "study's folder, whose task it then is."
)
_STUDY = "YAML file of the study; `lensjax study init` writes one."
_FINETUNED = (
    "Folders of runs as `lensjax finetune` or `lensjax curve --save-models` writes them, or the model's folder that "
    "holds several."
)

CurvesFile = Annotated[str, Positional, arg(metavar="CURVES.csv", help=_CURVES)]
SpecFile = Annotated[Path, Positional, arg(metavar="SPEC.yaml", help=_SPEC)]
StudyFile = Annotated[Path, Positional, arg(metavar="STUDY.yaml", help=_STUDY)]
StudyFolders = Annotated[
    tuple[Path, ...],
    Positional,
    arg(
        metavar="DIR", help="Folders of studies, as `lensjax run` wrote them; that of several tasks holds one for each."
    ),
]

ModelSource = Annotated[str | None, arg(help=_MODEL)]
CandidateName = Annotated[
    str | None, arg(metavar="NAME", help="In place of a model: one of the study's candidates, with its own training.")
]
Settings = Annotated[
    tuple[tuple[str, ...], ...],
    UseAppendAction,
    arg(
        name="set",
        metavar="FIELD=VALUE",
        help="Fields that are not as in the file, as in --set budget=400 training.epochs=3.",
    ),
]
ModelName = Annotated[str, Positional, arg(metavar="MODEL", help=_MODEL)]
Revision = Annotated[str | None, arg(help="Branch, tag or commit on the hub.")]
FinetunedFolders = Annotated[tuple[Path, ...], arg(help=_FINETUNED)]
Mesh = Annotated[
    str | None, arg(help="Devices along each axis (data, fsdp, tensor); all of them along fsdp by default.")
]
XlaPreset = Annotated[
    Literal["overlap", "slices"] | None,
    arg(
        help="Flags of XLA for TPUs and GPUs: overlap, with which collectives run beside products, or slices, which "
        "sums gradients between slices of TPUs beside products too. By default XLA's own."
    ),
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
Examples = Annotated[int, _written("INT", _count, int)]
PrecisionName = Literal["float32", "float64", "bfloat16"]
Precision = Annotated[PrecisionName, _written("|".join(_PRECISIONS), _named(_PRECISIONS), str)]
DTypeName = Literal["float32", "bfloat16", "float16", "float64"]
DType = Annotated[DTypeName, _written("|".join(_DTYPES), _named(_DTYPES), str)]
