"""Finding the other processes."""

import os
import sys

import pytest

from lensjax.core.errors import InputError
from lensjax.core.processes import on_first, start_processes


@pytest.fixture
def bare_environment(monkeypatch):
    """An environment in which no launcher, and nobody by hand, has said anything."""
    for name in list(os.environ):
        if name.startswith(("SLURM", "OMPI", "TPU", "KUBERNETES", "JOB", "MEGASCALE", "LENSJAX_")):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("environment", "together"),
    [
        ({}, False),
        ({"TPU_WORKER_HOSTNAMES": "a"}, False),
        ({"TPU_PROCESS_ADDRESSES": "a:8476,b:8476", "TPU_WORKER_HOSTNAMES": "a"}, True),  # as JAX reads them
        ({"TPU_PROCESS_ADDRESSES": "local", "TPU_WORKER_HOSTNAMES": "a,b"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"SLURM_NTASKS": "8"}, False),  # an interactive allocation
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NODELIST": "n[1-8]"}, True),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0", "LENSJAX_PROCESSES": "1"}, False),
    ],
)
def test_launchers_are_recognised(monkeypatch, bare_environment, environment, together):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr("jax.distributed.initialize", lambda *args, **kwargs: calls.append((args, kwargs)))
    start_processes()
    assert bool(calls) == together


@pytest.mark.parametrize(("on_tpu_vm", "workers", "together"), [(False, 2, False), (True, 1, False), (True, 2, True)])
def test_tpu_vms_that_only_the_metadata_server_knows_of_are_recognised(
    monkeypatch, bare_environment, on_tpu_vm, workers, together
):
    asked = []

    def metadata(key):
        asked.append(key)
        values = {"worker-network-endpoints": ",".join(f"host{i}" for i in range(workers))}
        return values.get(key, "0"), 200

    monkeypatch.setattr("jax._src.clusters.cloud_tpu_cluster.running_in_cloud_tpu_vm", on_tpu_vm)
    monkeypatch.setattr("jax._src.clusters.cloud_tpu_cluster.get_metadata", metadata)
    calls = []
    monkeypatch.setattr("jax.distributed.initialize", lambda *args, **kwargs: calls.append((args, kwargs)))
    start_processes()
    assert bool(calls) == together
    assert bool(asked) == on_tpu_vm


def test_kubernetes_without_its_package_is_said_in_one_sentence(monkeypatch, bare_environment):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: False)  # other tests have computed
    with pytest.raises(
        InputError,
        match=r"did not meet \(.*\); on Kubernetes, pip install 'lensjax\[k8s\]', or set LENSJAX_PROCESSES=1",
    ) as caught:
        start_processes()
    assert "coordinator_address should be defined" in str(caught.value)


def test_processes_that_cannot_join_are_told_in_one_sentence(monkeypatch, bare_environment):
    def fail(*args, **kwargs):
        raise OSError("no route\n to host")

    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    monkeypatch.setattr("jax.distributed.initialize", fail)
    with pytest.raises(InputError, match=r"did not meet \(no route to host\); set LENSJAX_COORDINATOR, LENSJAX_PROC"):
        start_processes()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("host:1", None, "0"), "LENSJAX_COORDINATOR and LENSJAX_PROCESS is set, but not LENSJAX_PROCESSES"),
        (("host:1", "two", "0"), "LENSJAX_PROCESSES is 'two'; it needs a whole number"),
        (("host", "2", "0"), "LENSJAX_COORDINATOR is 'host'; it needs a port too"),
        (("host:", "2", "0"), "LENSJAX_COORDINATOR is 'host:'; it needs a port too"),
        (("host:1", "2", "2"), "LENSJAX_PROCESS is 2 of 2 processes; they are numbered from 0"),
    ],
)
def test_what_is_said_by_hand_is_checked(monkeypatch, values, message):
    for name, value in zip(("COORDINATOR", "PROCESSES", "PROCESS"), values, strict=True):
        if value is not None:
            monkeypatch.setenv(f"LENSJAX_{name}", value)
    with pytest.raises(InputError, match=message):
        start_processes()


@pytest.mark.parametrize("processes", [1, 2])
def test_what_the_system_refuses_the_first_process_is_a_sentence_in_all(monkeypatch, tmp_path, processes):
    monkeypatch.setattr("jax.process_count", lambda: processes)
    monkeypatch.setattr("jax.experimental.multihost_utils.broadcast_one_to_all", lambda value: value)
    assert on_first(lambda: {"a": [1]}) == {"a": [1]}
    with pytest.raises(InputError, match=r"Cannot read or write .*none/a: No such file or directory; make room"):
        on_first((tmp_path / "none" / "a").touch)
