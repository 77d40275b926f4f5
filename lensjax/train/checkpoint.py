"""Checkpoints of a fine-tuning run, which Orbax writes while training goes on."""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from lensjax.core.artefacts import Damaged, with_checksum, without_checksum
from lensjax.core.errors import InputError, one_line, shorten
from lensjax.core.files import is_disk_full
from lensjax.models.model import Params, whole
from lensjax.train.step import State, shapes_of

Json = Mapping[str, Any]
_SUMS = "sums"  # in a record: of its arrays, whose files may be damaged without anybody noticing

# Orbax logs the traceback of every error that it raises too.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname or record.levelno < logging.ERROR)


class Checkpoints:
    """The checkpoints in a folder: the last complete one, and the one that is being written.

    A checkpoint holds the state of training, the parameters of the lowest validation loss so far, and a JSON record.

    Raises:
      Damaged: something lies in the folder that reading would wait for.
      InputError: the folder cannot be made or read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._sums: dict[int, list[int]] = {}  # by step
        options = ocp.CheckpointManagerOptions(max_to_keep=1, cleanup_tmp_directories=True)
        with _explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)  # Orbax would not yet complain of a file in its place
            _check_files(self.folder)
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
                    record=ocp.args.JsonSave(with_checksum({**record, _SUMS: _sums_of(state, best)})),
                ),
            )

    def record(self) -> tuple[int, Json] | None:
        """Step and record of the last checkpoint; None if there is none.

        Raises:
          Damaged: it does not hold what was written.
          InputError: it cannot be read.
        """
        with _explained(self.folder, reading=True):
            step = self._manager.latest_step()
            if step is None:
                return None
            read = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore())).record
            record = without_checksum(read, self.folder, required=_SUMS in read)  # earlier versions wrote none
            self._sums[step] = record.pop(_SUMS, [])
            return step, record

    def restore(self, step: int, state: State, best: Params) -> tuple[State, Params]:
        """State and best parameters of a checkpoint.

        Args:
          step: Of the checkpoint.
          state, best: Arrays, or their shapes with shardings, which say how to lay out the result on devices.

        Raises:
          Damaged: it does not hold what was written.
          InputError: it cannot be read.
        """
        with _explained(self.folder, reading=True):
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(shapes_of(state.params)),
                    optimiser=ocp.args.StandardRestore(shapes_of(state.optimiser)),
                    best=ocp.args.StandardRestore(shapes_of(best)),
                ),
            )
        found = State(restored.params, restored.optimiser)
        if self._sums.get(step) and self._sums[step] != _sums_of(found, restored.best):
            raise Damaged(self.folder, "its arrays are not those that were written")
        return found, restored.best

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


def _sums_of(state: State, best: Params) -> list[int]:
    """A sum of every array, which does not depend on how it lies on devices."""
    return [int(one) for one in whole(_sums(jax.tree.leaves((state.params, state.optimiser, best))))]


@jax.jit
def _sums(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([_sum(leaf) for leaf in leaves])


def _sum(leaf: jax.Array) -> jax.Array:
    """The sum of an array's bits, each word times an odd number of its place, so that any bit that flips changes it."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == bool:
        leaf = leaf.astype(np.uint8)
    bits = jax.lax.bitcast_convert_type(leaf, f"uint{8 * min(leaf.dtype.itemsize, 4)}").astype(np.uint32)
    place = jnp.zeros(bits.shape, np.uint32)
    for axis, size in enumerate(bits.shape):
        place = place * np.uint32(size) + jax.lax.broadcasted_iota(np.uint32, bits.shape, axis)
    return jnp.sum(bits * (2 * place + 1), dtype=np.uint32)


def _check_files(folder: Path) -> None:
    """Raise Damaged where something lies in a checkpoint that opening would wait for."""
    for path in folder.rglob("*"):
        if not (path.is_file() or path.is_dir()):
            raise Damaged(folder, f"{path.name} in it is a link that leads nowhere, a pipe or a device")


@contextmanager
def _explained(folder: Path, *, reading: bool = False) -> Iterator[None]:
    """Turns Orbax's errors, of full disks and damaged files, into one sentence."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if reading and not is_disk_full(error) and "ermission denied" not in str(error):
            raise Damaged(folder, _reason(error)) from error
        raise InputError(
            f"The checkpoint in {shorten(folder, 400)} cannot be written or read ({_reason(error)}); make room or "
            "remove the folder, and run the same command again."
        ) from error


def _reason(error: Exception) -> str:
    """The operating system's error if it is known, else the beginning of a long message."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    known = os.strerror(int(code[1])) if code else getattr(error, "strerror", None)
    return known or one_line(error, 200)
