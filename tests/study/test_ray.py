"""A study on a local Ray cluster gives what it gives in one process."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest

from lensjax.core.errors import InputError
from lensjax.measure.measurement import Cell
from lensjax.study.runner import run_study
from lensjax.study.spec import Resources, read_study

os.environ["RAY_AUTH_MODE"] = "disabled"  # the processes of this test have no token in common; read on importing Ray
ray = pytest.importorskip("ray")


# Ray forks to start a cluster, which a process whose JAX has threads should not do, so another one does.
_START = """
import ray, sys
head = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
print(head.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


# What a cluster that the launcher starts listens on, besides the loopback.
_LISTEN = """
import sys
from pathlib import Path
from types import SimpleNamespace
import psutil
from lensjax.study.launchers.ray import ray_launcher
from lensjax.study.spec import read_study

with ray_launcher(SimpleNamespace(spec=read_study(Path(sys.argv[1])), out=Path("out"), retry=False, over_memory=False)):
    me = psutil.Process()
    sockets = [one for process in [me, *me.children(recursive=True)] for one in process.net_connections("inet")]
    listening = [one.laddr.ip for one in sockets if one.status == "LISTEN"]
    print(len(listening), *{ip.removeprefix("::ffff:") for ip in listening} - {"127.0.0.1", "::1"})
"""


def test_a_cluster_of_this_machine_listens_on_the_loopback_alone(write_study, tmp_path):
    psutil = pytest.importorskip("psutil")
    assert psutil.Process().net_connections() is not None
    spec = write_study(tmp_path, "gpt2", "opt")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    call = [sys.executable, "-c", _LISTEN, str(spec)]
    ended = subprocess.run(call, env=environment, capture_output=True, text=True, check=True)
    count, *others = ended.stdout.split()
    assert int(count) > 0
    assert others == []


@pytest.fixture(scope="module")
def cluster():
    """Ray on this machine, with room for two workers."""
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", _START], env=environment, **pipes) as head:
        ray.init(address=head.stdout.readline().strip(), log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()
        head.communicate()


def losses(folder):
    with (folder / "curves.csv").open() as file:
        return {(row["model"], row["examples"]): float(row["loss"]) for row in csv.DictReader(file)}


def test_two_workers_give_what_one_process_gives(cluster, write_study, tmp_path):
    spec = read_study(write_study(tmp_path, "gpt2", "opt", training={"learning_rate": [1e-3, 3e-3], "epochs": 1}))
    run_study(spec, tmp_path / "local")
    journal = run_study(spec, tmp_path / "ray", launcher="ray")
    assert {entry.status for entry in journal.entries} == {"ok"}
    local, remote = losses(tmp_path / "local"), losses(tmp_path / "ray")
    assert remote.keys() == local.keys()
    np.testing.assert_allclose(list(remote.values()), [local[key] for key in remote], rtol=1e-6)


@pytest.mark.long
def test_hosts_compute_a_cell_together(cluster, write_study, tmp_path):
    spec = read_study(write_study(tmp_path, "gpt2", "opt", resources={"hosts": 2}))
    journal = run_study(spec, tmp_path / "out", launcher="ray", limit=1)
    assert [(entry.cell, entry.error) for entry in journal.entries] == [(Cell("finetune", "gpt2", 0), "")]
    (row,) = list(csv.DictReader((tmp_path / "out" / "curves.csv").read_text().splitlines()))
    assert int(row["devices"]) == 2 * ray.get(ray.remote(_devices).remote())


def _devices():
    import jax

    return jax.local_device_count()


def test_cells_that_no_host_has_room_for_are_not_waited_for(cluster, write_study, tmp_path):
    spec = read_study(write_study(tmp_path, "gpt2", "opt"))
    spec = spec.model_copy(update={"resources": Resources(gpus=1)})
    with pytest.raises(InputError, match=r"A cell takes 1 GPU, and the largest host of the Ray cluster has 0"):
        run_study(spec, tmp_path / "out", launcher="ray")
