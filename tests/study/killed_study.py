"""Kills `lensjax run` at random times and starts it again: python killed_study.py STUDY.yaml FOLDER KILLS SEED.

FOLDER/whole is an unbroken run; FOLDER/0, FOLDER/1 and so on are runs that were killed until they had come to their
end, each attempt a fork of this process. Prints how many there were, as JSON.
"""

import json
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

import jax
from killed_runs import start, wait

import lensjax.models.families.gpt2
import lensjax.study.runner  # noqa: F401


def run(spec: str, folder: Path, kills: int, seed: int) -> dict[str, object]:
    def command(name: str) -> list[str]:
        return ["run", spec, "--out", str(folder / name), "--tries", "1000"]

    began = time.monotonic()
    assert wait(start(command("whole")), 300) == 0
    usual = time.monotonic() - began  # later runs take less, as programs come from JAX's cache
    chance = random.Random(seed)
    killed = runs = 0
    while killed < kills:
        status = wait(start(command(str(runs))), chance.uniform(0.05, 0.5) * usual)
        assert status in (None, 0), f"a run ended with status {status}"
        killed += status is None
        runs += status == 0
    assert wait(start(command(str(runs))), 300) == 0
    return {"kills": killed, "runs": runs + 1}


if __name__ == "__main__":
    spec, folder, kills, seed = sys.argv[1:]
    # A cache of its own: what is killed while it writes a program leaves half of one.
    jax.config.update("jax_compilation_cache_dir", str(Path(folder) / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    print(json.dumps(run(spec, Path(folder), int(kills), int(seed))))
