"""A study of four processes one of which is killed: python elastic_study.py STUDY.yaml OUT LOG.

Everything is imported once, and every process is a fork. Once LOG, a run's log of training, has a few lines, the third
of four processes is killed; the others are given half a minute to notice. Then two processes take the study to its end.
Prints exit statuses and what was logged until the kill, as JSON.
"""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

import jax
from killed_runs import start, wait

import lensjax.models.families.gpt2
import lensjax.study.runner  # noqa: F401

LINES, NOTICE, END = 4, 30, 120  # lines of the log, and seconds


def together(command: list[str], count: int) -> list[int]:
    """Numbers of processes that compute together."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        os.environ["LENSJAX_COORDINATOR"] = f"127.0.0.1:{listener.getsockname()[1]}"
    os.environ["LENSJAX_PROCESSES"] = str(count)
    started = []
    for rank in range(count):
        os.environ["LENSJAX_PROCESS"] = str(rank)
        started.append(start(command, part=jax.distributed.shutdown))
    return started


def run(study: str, out: str, log: Path) -> dict[str, object]:
    command = ["run", study, "--out", out]
    first = together(command, 4)
    deadline = time.monotonic() + END
    while not log.exists() or len(log.read_text().splitlines()) < LINES:
        assert time.monotonic() < deadline, "no training was logged"
        assert not any(os.waitpid(child, os.WNOHANG)[0] for child in first), "a process ended early"
        time.sleep(0.01)
    os.kill(first[2], signal.SIGKILL)
    killed = wait(first[2], END)
    left = [wait(child, NOTICE) for child in (first[0], first[1], first[3])]
    logged = log.read_text().splitlines()
    second = [wait(child, END) for child in together(command, 2)]
    return {"killed": killed, "left": left, "second": second, "logged": logged}


if __name__ == "__main__":
    study, out, log = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", 1)
    print(json.dumps(run(study, out, Path(log))))
