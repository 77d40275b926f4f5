"""Going on after being stopped or killed: the same bits as without, and nothing lost but since the last checkpoint."""

import csv
import gc
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import lensjax.models
from lensjax.core.signals import stopping_on_signals
from lensjax.tasks.spec import read_spec
from lensjax.train.candidate import Candidate
from lensjax.train.loop import Stopped
from lensjax.train.prepare import read_examples
from lensjax.train.recorder import Recorder
from lensjax.train.runs import Run
from lensjax.train.spec import FinetuneSpec

EXAMPLES, STEPS = 64, 12
MESHES = {1: "data=1", 4: "fsdp=2,tensor=2", 8: "data=2,fsdp=2,tensor=2"}
METHODS = {"full": {"method": "full"}, "lora": {"method": "lora"}, "nf4": {"method": "lora", "quantise": "nf4"}}
UNLIKE = {"seconds": 0, "checksum": ""}  # what results of equal runs do not share


class Stopping(Recorder):
    """A recorder that sends this process SIGTERM when it hears of a step."""

    stop_at: int | None = None

    def step(self, progress, steps, metrics):
        super().step(progress, steps, metrics)
        if progress.step == self.stop_at:
            signal.raise_signal(signal.SIGTERM)


@dataclass
class Setting:
    """A model and task on some devices, and what an unbroken run made of them."""

    candidate: Candidate
    recorder: Stopping
    folder: Path

    def run_of(self, name):
        return Run(EXAMPLES, 0, 3e-3, self.folder / name)

    def run(self, name, stop_at=None):
        self.recorder.stop_at = stop_at
        with stopping_on_signals():
            return self.candidate.train(self.run_of(name), self.recorder, save_model=True)

    def log(self, name):
        """The log without what it says of time."""
        lines = map(json.loads, (self.folder / name / "log.jsonl").read_text().splitlines())
        timed = (
            "seconds",
            "tokens_per_second",
            "model_flops_utilisation",
            "causal_flops_utilisation",
            "seconds_left",
            "seconds_waiting",
        )
        return [{key: value for key, value in line.items() if key not in timed} for line in lines]

    def weights(self, name):
        return load_file(self.folder / name / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def setting(save_squares, pretrained, tmp_path_factory):
    """Makes a `Setting`, once for each number of devices and method."""
    made = {}

    def make(devices, method):
        key = devices, method
        if key not in made:
            folder = tmp_path_factory.mktemp("runs")
            # Adam makes much of rounding where gradients are tiny, so its epsilon is raised for other meshes.
            path = save_squares(folder, max_steps=STEPS, evaluate_every=4, lora_rank=2, epsilon=1e-3, **METHODS[method])
            spec = read_spec(path, FinetuneSpec)
            mesh = lensjax.models.make_mesh(MESHES[devices], jax.devices()[:devices])
            examples = read_examples(spec, [EXAMPLES], [0])
            candidate = Candidate(spec, str(pretrained("llama")), "tiny", examples, folder, mesh)
            made[key] = Setting(candidate, Stopping(candidate.dtype, 1), folder)
            made[key].run("whole")
        return made[key]

    return make


@pytest.mark.eight_devices
@pytest.mark.parametrize(("devices", "method"), [(1, "full"), pytest.param(8, "nf4", marks=pytest.mark.long)])
def test_a_stopped_run_goes_on_to_the_same_bits(setting, devices, method):
    trial = setting(devices, method)
    for stop_at in (2, 5, 9):  # it is saved one step later; validations are at 4, 8 and 12
        with pytest.raises(Stopped):
            trial.run("broken", stop_at)
        assert [path.name for path in (trial.folder / "broken" / "checkpoints").iterdir()] == [str(stop_at + 1)]
    result, expected = trial.run("broken"), json.loads((trial.folder / "whole" / "result.json").read_text())
    assert json.loads(result.model_dump_json()) | UNLIKE == expected | UNLIKE
    assert result.best_step > 9
    assert trial.log("broken") == trial.log("whole")
    found, whole = trial.weights("broken"), trial.weights("whole")
    assert found.keys() == whole.keys()
    assert all(found[name].tobytes() == whole[name].tobytes() for name in whole)


@pytest.mark.eight_devices
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # readers that Orbax leaves behind
@pytest.mark.parametrize("damaged", ["arrays", "record"])
def test_a_run_with_a_damaged_checkpoint_begins_anew_and_comes_to_the_same_bits(setting, damaged, capsys):
    trial = setting(1, "full")
    with pytest.raises(Stopped):
        trial.run(damaged, 5)
    files = [path for path in (trial.folder / damaged / "checkpoints").rglob("*") if path.is_file()]
    if damaged == "arrays":
        largest = max(files, key=lambda path: path.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)
    else:
        (record,) = (path for path in files if path.parent.name == "record" and '"progress"' in path.read_text())
        record.write_text(record.read_text().replace('"stale": 0', '"stale": 1').replace('"stale":0', '"stale":1'))
    result, expected = trial.run(damaged), json.loads((trial.folder / "whole" / "result.json").read_text())
    said = capsys.readouterr().err
    assert said.startswith(f"{damaged}/checkpoints was set aside in quarantine (it")
    assert "; it is made again." in said
    assert json.loads(result.model_dump_json()) | UNLIKE == expected | UNLIKE
    assert trial.log(damaged) == trial.log("whole")
    gc.collect()


@pytest.mark.eight_devices
def test_a_run_of_eight_devices_goes_on_with_four(setting):
    eight, four = setting(8, "full"), setting(4, "full")
    with pytest.raises(Stopped):
        eight.run("moved", 5)
    (eight.folder / "moved").rename(four.folder / "moved")
    result = four.run("moved")
    before = [json.loads((s.folder / "whole" / "result.json").read_text()) for s in (eight, four)]
    assert (result.devices, result.steps) == (4, STEPS)
    for expected in before:
        assert abs(result.loss - expected["loss"]) < 1e-6
        assert abs(result.validation_loss - expected["validation_loss"]) < 1e-6
    for line, expected in zip(four.log("moved"), eight.log("whole"), strict=True):
        assert line == pytest.approx(expected, rel=1e-6, abs=1e-6)
    found, whole = four.weights("moved"), eight.weights("whole")
    for name in whole:
        np.testing.assert_allclose(found[name], whole[name], rtol=0, atol=1e-6)


KILLS = int(os.environ.get("LENSJAX_TEST_KILLS", "5"))  # a hundred take five minutes
LAST = Path("examples-200-seed-0")


@pytest.fixture(scope="module")
def killed(save_squares, pretrained, tmp_path_factory):
    """The folder that `killed_runs.py` leaves behind, and what it says of it."""
    folder = tmp_path_factory.mktemp("killed")
    spec = save_squares(folder, epochs=3, checkpoint_every=6, evaluate_every=10)
    script = Path(__file__).with_name("killed_runs.py")
    command = [sys.executable, "-W", "error", script, spec, pretrained("gpt2"), folder, str(KILLS), "0"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads(done.stdout)


def environment(folder):
    """That of a process that takes compiled programs from a folder."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return os.environ | cache | {"JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}


def results(out):
    """Every result in a folder and its table, without what they say of time, and the weights that were saved."""
    found = {path.relative_to(out): json.loads(path.read_text()) | UNLIKE for path in out.rglob("result.json")}
    with (out / "curves.csv").open() as file:
        rows = [row | {"seconds": 0} for row in csv.DictReader(file)]
    return found, rows, {path.relative_to(out): path.read_bytes() for path in out.rglob("*.safetensors")}


def test_runs_that_are_killed_again_and_again_come_to_the_same_end(killed):
    folder, said = killed
    assert said["kills"] == KILLS
    assert said["runs"] >= 1
    assert any(0 < step < 39 for step in said["places"])  # some were killed with a checkpoint to go on from
    expected = results(folder / "whole")
    assert [row["examples"] for row in expected[1]] == ["0", "200"]
    assert len(expected[2]) == 2
    for run in range(said["runs"]):
        assert results(folder / str(run)) == expected


def test_sigterm_saves_and_the_same_command_goes_on(killed, pretrained):
    folder, _ = killed
    command = [sys.executable, "-m", "lensjax", "finetune", folder / "squares.yaml", "--model", pretrained("gpt2")]
    command += ["--examples", "200", "--out", folder / "asked", "--name", "gpt2"]
    how = {"env": environment(folder), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    run = folder / "asked" / "gpt2" / LAST
    with subprocess.Popen(command, **how) as process:
        deadline = time.monotonic() + 120
        while not ((run / "log.jsonl").exists() and len((run / "log.jsonl").read_text().splitlines()) > 5):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.terminate()
        _, errors = process.communicate()
    assert process.returncode == 143, errors
    assert errors.strip().splitlines()[-1].startswith("lensjax: stopped;")
    (saved,) = (run / "checkpoints").iterdir()
    last = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()][-1]
    assert int(saved.name) == last < 39
    assert not (run / "result.json").exists()

    done = subprocess.run(command, **how)
    assert done.returncode == 0, done.stderr
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "loss" in line] == list(range(1, 40))
    found, rows, weights = results(folder / "asked")
    whole = results(folder / "whole")
    assert found == {path: result for path, result in whole[0].items() if LAST.name in path.parts}
    assert rows == whole[1][1:]
    assert weights == {path: content for path, content in whole[2].items() if LAST.name in path.parts}
