"""The memory of a device that fine-tuning takes, as the compiler counts it, and whether a machine has as much."""

import re
import warnings
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from rich import filesize

from lensjax.core.devices import device_memory
from lensjax.core.errors import InputError, shorten
from lensjax.core.processes import agreed
from lensjax.core.pytrees import device_bytes
from lensjax.core.specs import Strict
from lensjax.train.spec import TrainingSpec
from lensjax.train.step import State


class NoRoom(Exception):
    """A program does not fit the device; the message is "21.40G of 15.75G" if the compiler says so, else empty."""

    @property
    def needed(self) -> int | None:
        """Bytes that the program takes, where the compiler says so."""
        found = re.match(r"([\d.]+)([KMGT]) of ", str(self))
        return None if found is None else round(float(found[1]) * 2 ** (10 * (1 + "KMGT".index(found[2]))))


class TooLarge(InputError):
    """Fine-tuning a candidate takes more memory than the machine has."""


class Memory(Strict):
    """Bytes on each device while a candidate is fine-tuned, as the compiler counts them.

    Attributes:
      arguments, outputs, temporaries, aliased: Of a training step; aliased outputs take the place of arguments.
      step: Of a training step in all: arguments + outputs + temporaries − aliased.
      evaluation: Of a batch of evaluation.
      moments: Of the optimiser's moments, which stay in memory during evaluation.
      best: Of the best parameters so far, which stay in memory too.
      peak: The largest sum at any time.
    """

    arguments: int
    outputs: int
    temporaries: int
    aliased: int
    step: int
    evaluation: int
    moments: int
    best: int
    peak: int


def compiled(program: Any, *arguments: Any) -> jax.stages.Compiled:
    """A program compiled for shapes; calls of the program with arrays of these shapes do not compile it again.

    Raises:
      NoRoom: it does not fit the device.
    """
    return compiled_from(program.lower(*arguments))


def compiled_from(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """The same of a lowered program.

    Raises:
      NoRoom: it does not fit the device.
    """
    try:
        with warnings.catch_warnings():
            # JAX's cache holds programs for TPUs that are not attached, and cannot read them again.
            warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
            return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needed = re.search(r"Used ([\d.]+\w) of ([\d.]+\w)", str(error))
        needed = needed or re.search(r"\(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", str(error))
        raise NoRoom("" if needed is None else f"{needed[1]} of {needed[2]}") from error


def memory_of(step: jax.stages.Compiled, losses: jax.stages.Compiled, state: State) -> Memory:
    """The memory of fine-tuning.

    Args:
      step: The program of a training step.
      losses: That of a batch of evaluation.
      state: Shapes of the state of training.
    """
    arguments, outputs, temporaries, aliased = _sizes(step)
    whole = program_bytes(step)
    evaluation = sum(_sizes(losses)[:3])
    moments, best = device_bytes(state.optimiser), device_bytes(state.params)
    return Memory(
        arguments=arguments,
        outputs=outputs,
        temporaries=temporaries,
        aliased=aliased,
        step=whole,
        evaluation=evaluation,
        moments=moments,
        best=best,
        peak=max(whole, evaluation + moments) + best,
    )


def check_room(name: str, memory: Memory, training: TrainingSpec, mesh: Mesh) -> None:
    """Refuse to train where a machine's memory is not enough, as its system would end the process without a word.

    Devices with memory of their own say themselves when it runs out, and are not checked.

    Args:
      name: Of the candidate.
      memory: Of fine-tuning it.
      training: How it is fine-tuned.
      mesh: The devices.

    Raises:
      TooLarge: it is not.
    """
    room = device_memory(mesh) if mesh.devices.flat[0].platform == "cpu" else None
    if room is None or not agreed(memory.peak > room):
        return
    helping = what_helps(training, mesh)
    mend = f"in its training, set {' or '.join(helping)}" if helping else "leave it out"
    each = "" if mesh.size == 1 else " on each device"
    raise TooLarge(
        f"A batch of {shorten(name)} needs {filesize.decimal(memory.peak)} of memory{each}, and this machine has "
        f"{filesize.decimal(room)}; {mend}, or go on with --over-memory."
    )


def what_helps(training: TrainingSpec, mesh: Mesh) -> Sequence[str]:
    """The settings of training that would lower the memory that it takes on each device."""
    found = []
    if training.batch_size // training.accumulation > mesh.shape["data"] * mesh.shape["fsdp"]:
        found.append("a smaller batch_size or more accumulation")
    if training.remat != "full":
        found.append("remat full")
    if training.method != "lora":
        found.append("method lora")
    elif training.quantise != "nf4":
        found.append("quantise nf4")
    return found


def program_bytes(program: jax.stages.Compiled) -> int:
    """Bytes of a device that a program takes: arguments, outputs that do not take their place, and temporaries."""
    arguments, outputs, temporaries, aliased = _sizes(program)
    return arguments + outputs + temporaries - aliased


def _sizes(program: jax.stages.Compiled) -> list[int]:
    """Bytes of a program's arguments, outputs, temporaries, and outputs that take the place of arguments."""
    sizes = program.memory_analysis()
    return [getattr(sizes, f"{kind}_size_in_bytes") for kind in ("argument", "output", "temp", "alias")]
