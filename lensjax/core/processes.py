"""Several processes that work on one model.

On a TPU pod, under Slurm, Kubernetes and Open MPI, JAX finds the other processes by itself. Elsewhere, set for each
LENSJAX_COORDINATOR=host:port, LENSJAX_PROCESSES=number of processes, and LENSJAX_PROCESS=its rank, from 0.
LENSJAX_PROCESSES=1 without the others makes a process work alone, whatever launched it.
"""

import importlib.util
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np

from lensjax.core.errors import InputError, PeerLost, one_line, shorten
from lensjax.core.presets import use_preset

Json = TypeVar("Json")  # a value that JSON can hold

_BY_HAND = ("LENSJAX_COORDINATOR", "LENSJAX_PROCESSES", "LENSJAX_PROCESS")
_LOST = re.compile(
    r"gloo|connection (closed|reset|refused)|socket closed|heartbeat|coordination service", re.IGNORECASE
)


def start_processes() -> None:
    """Join the other processes, if there are any; call it before anything else of JAX.

    It also sets the flags of XLA that LENSJAX_XLA_PRESET names (`lensjax.core.presets`).

    Raises:
      InputError: the environment sets some of coordinator, number and rank, but not all, or names a preset that is
        none; or the processes do not meet.
    """
    use_preset()
    if jax.distributed.is_initialized():
        return
    given = {name: os.environ[name] for name in _BY_HAND if os.environ.get(name)}
    if given == {"LENSJAX_PROCESSES": "1"}:
        return
    if given:
        _start_by_hand(given)
    elif _launched_together():
        mend = f"set {', '.join(_BY_HAND[:2])} and {_BY_HAND[2]}"
        if "KUBERNETES_SERVICE_HOST" in os.environ and importlib.util.find_spec("kubernetes") is None:
            mend = "on Kubernetes, pip install 'lensjax[k8s]'"
        _join(
            "The processes that were launched together did not meet",
            f"{mend}, or set LENSJAX_PROCESSES=1 for each to work alone",
        )


def _start_by_hand(given: dict[str, str]) -> None:
    missing = [name for name in _BY_HAND if name not in given]
    if missing:
        raise InputError(f"{' and '.join(given)} is set, but not {' and '.join(missing)}; set all of them, or none.")
    for name in _BY_HAND[1:]:
        if not given[name].isdecimal():
            raise InputError(f"{name} is '{shorten(given[name])}'; it needs a whole number.")
    coordinator, processes, process = given[_BY_HAND[0]], int(given[_BY_HAND[1]]), int(given[_BY_HAND[2]])
    if not re.fullmatch(r".+:\d+", coordinator):
        raise InputError(f"LENSJAX_COORDINATOR is '{shorten(coordinator)}'; it needs a port too, as in host0:1234.")
    if process >= processes:
        raise InputError(f"LENSJAX_PROCESS is {process} of {processes} processes; they are numbered from 0.")
    _join(f"The processes did not meet at {shorten(coordinator)}", "start all of them", coordinator, processes, process)


def _join(
    failed: str, mend: str, coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Meet the other processes; JAX asks their launcher for arguments that are not given."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"\s*Kubernetes environment detected")  # lines that the sentence sums up
            jax.distributed.initialize(coordinator, num_processes=processes, process_id=process)
    except Exception as error:  # launchers' environments make JAX raise what they like
        raise InputError(f"{failed} ({one_line(error)}); {mend}.") from error


def _launched_together() -> bool:
    """Whether a launcher that JAX knows has started more than one process."""
    environment = os.environ
    workers = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES"))
    counts = [environment.get(name, "1") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")]
    # An interactive Slurm allocation sets the number of tasks, but only srun gives each of them a rank.
    together = any(count.isdecimal() and int(count) > 1 for count in counts) and (
        "SLURM_STEP_NODELIST" in environment or "OMPI_COMM_WORLD_RANK" in environment
    )
    indexed_job = "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment
    if together or indexed_job or "MEGASCALE_COORDINATOR_ADDRESS" in environment:
        return True
    return _is_in_tpu_pod() if workers is None else "," in workers


def _is_in_tpu_pod() -> bool:
    """Whether this is one of several VMs of a Cloud TPU that no variable names, only Google's metadata server."""
    try:
        # Private: nothing public tells how many there are before joining them. Without libtpu, or TPU chips on the PCI
        # bus, JAX says no without asking any network.
        from jax._src.clusters import GceTpuCluster

        return GceTpuCluster.is_env_present() and GceTpuCluster.get_process_count() > 1
    except (ImportError, AttributeError, OSError, RuntimeError, ValueError):  # it has moved, or there is no such server
        return False


def agreed(mine: bool) -> bool:
    """The first process's answer, in every process."""
    if jax.process_count() == 1:
        return mine
    from jax.experimental.multihost_utils import broadcast_one_to_all

    return bool(broadcast_one_to_all(np.asarray(mine)))


def peer_lost(error: Exception) -> PeerLost | None:
    """What an error is where the end of another process has caused it; None of all other errors."""
    if isinstance(error, PeerLost):
        return error
    cause: BaseException | None = error
    while cause is not None and not (_LOST.search(str(cause)) and not isinstance(cause, InputError | OSError)):
        cause = cause.__cause__ or cause.__context__  # libraries, and we, say it in words of their own
    if cause is None or not jax.distributed.is_initialized():
        return None
    why = one_line(Exception(str(cause)))
    return PeerLost(
        f"Another process that computed with this one is gone ({why}); start the same command again on the hosts that "
        "are left, and it goes on from its last checkpoint."
    )


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def on_first(function: Callable[[], Json]) -> Json:
    """Call a function in the first process only, and return its result in every process.

    Args:
      function: Its result must be JSON, as that is how the other processes get it.

    Raises:
      InputError: the function raised one, or an OSError; every process raises it.
    """
    if jax.process_count() == 1:
        with _in_a_sentence():
            return function()
    from jax.experimental.multihost_utils import broadcast_one_to_all

    said: dict[str, Any] = {}
    if is_first():
        try:
            with _in_a_sentence():
                said = {"value": function()}
        except InputError as error:
            said = {"error": str(error)}
    text = np.frombuffer(json.dumps(said).encode(), np.uint8)
    size = int(broadcast_one_to_all(np.asarray(text.size)))
    text = np.asarray(broadcast_one_to_all(text if is_first() else np.zeros(size, np.uint8)))
    said = json.loads(text.tobytes())
    if "error" in said:
        raise InputError(said["error"])
    return said["value"]


@contextmanager
def _in_a_sentence() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        path = "a file" if error.filename is None else shorten(error.filename, 400)
        why = error.strerror or one_line(error)
        raise InputError(f"Cannot read or write {path}: {why}; make room, or choose another place.") from error


def wait_for_all(name: str) -> None:
    """Wait until every process has come here.

    Args:
      name: Of this place, the same in every process.
    """
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices(name)
