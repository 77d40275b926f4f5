"""Kills `lensjax curve` at random times and starts it again: python killed_runs.py SPEC.yaml MODEL FOLDER KILLS SEED.

Everything is imported once, and every attempt is a fork, as importing takes longer than all else. No backend of JAX is
started before forking, since its threads would be missing in the child. FOLDER/whole is an unbroken run; FOLDER/0,
FOLDER/1 and so on are runs that were killed until they had come to their end. Prints what was found as JSON.
"""

import csv
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import jax
import orbax.checkpoint  # noqa: F401
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401

import lensjax.models.families.gpt2
import lensjax.train.candidate
import lensjax.train.ladder  # noqa: F401
from lensjax.cli.main import main
from lensjax.core.files import is_leftover
from lensjax.tasks.spec import read_spec
from lensjax.train.spec import FinetuneSpec


def start(arguments: list[str], part: Callable[[], None] = lambda: None) -> int:
    """The process number of a fork that runs a command, and then parts from others that run it too."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        main(arguments)
        part()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 70
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def wait(child: int, seconds: float) -> int | None:
    """The exit status of a child, killed after some seconds; None where it was."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if status == -signal.SIGKILL else status


def check_files(out: Path) -> None:
    """Raise an error where a result, a table, a specification or a model's description is not whole."""
    for path in out.glob("**/*.json"):
        parts = path.relative_to(out).parts  # checkpoints are Orbax's, and leftovers are known to be half made
        if "checkpoints" not in parts and not any(is_leftover(part) for part in parts):
            json.loads(path.read_text())
    for path in out.glob("**/result.json"):
        assert json.loads(path.read_text())["loss"] > 0, path
    for path in out.glob("curves.csv"):
        header, *rows = csv.reader(path.read_text().splitlines())
        assert header[0] == "model", header
        assert all(len(row) == len(header) for row in rows), rows


def newest(out: Path) -> int:
    """The step of the last checkpoint; 0 before the first one."""
    names = [path.name for path in out.glob("*/examples-200-seed-0/checkpoints/*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def logged(out: Path) -> int:
    """The last step that the log has."""
    for path in out.glob("*/examples-200-seed-0/log.jsonl"):
        whole = [line for line in path.read_text().splitlines() if line.endswith("}")]
        return json.loads(whole[-1])["step"] if whole else 0
    return 0


def finished(out: Path) -> bool:
    return any(out.glob("*/examples-200-seed-0/result.json"))


def run(spec: str, model: str, folder: Path, kills: int, seed: int) -> dict[str, object]:
    every = read_spec(spec, FinetuneSpec).training.checkpoint_every

    def command(name: str) -> list[str]:
        return ["curve", spec, "--model", model, "--max-examples", "200", "--out", str(folder / name), "--save-models"]

    began = time.monotonic()
    assert wait(start(command("whole")), 300) == 0
    unbroken = time.monotonic()
    assert wait(start(command("warm")), 300) == 0  # its programs come from the cache
    usual = time.monotonic() - unbroken
    chance = random.Random(seed)
    killed, runs, reached, places = 0, 0, 0, []
    while killed < kills:
        out = folder / str(runs)
        started = time.monotonic()
        status = wait(start(command(out.name)), chance.uniform(0.25, 1.0) * usual)
        check_files(out)
        if status is None:
            killed += 1
            if not finished(out):
                step = newest(out)
                assert step >= reached, f"the newest checkpoint was of step {reached} and is of step {step}"
                # One checkpoint is written while training goes on to the next.
                assert logged(out) <= step + 2 * every, f"step {logged(out)} was reached, and {step} is kept"
                reached = step
                places.append(step)
        else:
            assert status == 0, f"a run ended with status {status}"
            runs, reached, usual = runs + 1, 0, min(usual, time.monotonic() - started + 0.5)
    if (folder / str(runs)).exists():
        assert wait(start(command(str(runs))), 300) == 0
        runs += 1
    return {
        "kills": killed,
        "runs": runs,
        "places": places,
        "usual": round(usual, 2),
        "seconds": round(time.monotonic() - began, 1),
    }


if __name__ == "__main__":
    spec, model, folder, kills, seed = sys.argv[1:]
    jax.config.update("jax_compilation_cache_dir", str(Path(folder) / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    print(json.dumps(run(spec, model, Path(folder), int(kills), int(seed))))
