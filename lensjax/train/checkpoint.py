"""Checkpoints of a fine-tuning run, which Orbax writes while training goes on."""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from lensjax.core.errors import InputError, one_line, shorten
from lensjax.models.model import Params
from lensjax.train.step import State, shapes_of

Json = Mapping[str, Any]

# Orbax logs the traceback of every error that it raises too.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname or record.levelno < logging.ERROR)


class Checkpoints:
    """The checkpoints in a folder: the last complete one, and the one that is being written.

    A checkpoint holds the state of training, the parameters of the lowest validation loss so far, and a JSON record.

    Raises:
      InputError: the folder cannot be made or read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=1, cleanup_tmp_directories=True)
        with _explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)  # Orbax would not yet complain of a file in its place
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, step: int, state: State, best: Params, record: Json) -> None:
        """Start writing the checkpoint of a step; its arrays may be donated as soon as this returns.

        Raises:
          InputError: this checkpoint or the one before cannot be written.
        """
        with _explained(self.folder):
            self._manager.wait_until_finished()
            if step in self._manager.all_steps():
                return
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(state.params),
                    optimiser=ocp.args.StandardSave(state.optimiser),
                    best=ocp.args.StandardSave(best),
                    record=ocp.args.JsonSave(dict(record)),
                ),
            )

    def record(self) -> tuple[int, Json] | None:
        """Step and record of the last checkpoint; None if there is none.

        Raises:
          InputError: it cannot be read.
        """
        with _explained(self.folder):
            step = self._manager.latest_step()
            if step is None:
                return None
            return step, self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore())).record

    def restore(self, step: int, state: State, best: Params) -> tuple[State, Params]:
        """State and best parameters of a checkpoint.

        Args:
          step: Of the checkpoint.
          state, best: Arrays, or their shapes with shardings, which say how to lay out the result on devices.

        Raises:
          InputError: it cannot be read.
        """
        with _explained(self.folder):
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(shapes_of(state.params)),
                    optimiser=ocp.args.StandardRestore(shapes_of(state.optimiser)),
                    best=ocp.args.StandardRestore(shapes_of(best)),
                ),
            )
        return State(restored.params, restored.optimiser), restored.best

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is on disk.

        Raises:
          InputError: it cannot be written.
        """
        with _explained(self.folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait as `wait` does, and release the resources of checkpointing."""
        try:
            self.wait()
        finally:
            self._manager.close()


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turns Orbax's errors, of full disks and damaged files, into one sentence."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"The checkpoint in {shorten(folder, 400)} cannot be written or read ({_reason(error)}); make room or "
            "remove the folder, and run the same command again."
        ) from error


def _reason(error: Exception) -> str:
    """The operating system's error if it is known, else the beginning of a long message."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    known = os.strerror(int(code[1])) if code else getattr(error, "strerror", None)
    return known or one_line(error, 200)
