"""Going on after being stopped or killed: the same bits as without, and nothing lost but since the last checkpoint."""

import json
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import lensjax.models
from lensjax.data.spec import read_spec
from lensjax.errors import InputError
from lensjax.train.candidate import Candidate, Cell
from lensjax.train.loop import Stopped
from lensjax.train.distributed import stopping_on_signals
from lensjax.train.prepare import read_examples
from lensjax.train.recorder import Recorder
from lensjax.train.spec import FinetuneSpec

EXAMPLES, STEPS = 64, 12
MESHES = {1: "data=1", 4: "fsdp=2,tensor=2", 8: "data=2,fsdp=2,tensor=2"}


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

    def cell(self, name):
        return Cell(EXAMPLES, 0, 3e-3, self.folder / name)

    def run(self, name, stop_at=None):
        self.recorder.stop_at = stop_at
        with stopping_on_signals():
            return self.candidate.run(self.cell(name), self.recorder, save_model=True)

    def log(self, name):
        """The log without what it says of time."""
        lines = map(json.loads, (self.folder / name / "log.jsonl").read_text().splitlines())
        timed = ("seconds", "tokens_per_second", "model_flops_utilisation", "seconds_left")
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
            # Adam makes much of rounding where gradients are tiny, so its epsilon is raised for the sake of other meshes.
            path = save_squares(
                folder, max_steps=STEPS, evaluate_every=4, method=method, lora_rank=2, epsilon=1e-3
            )
            spec = read_spec(path, FinetuneSpec)
            mesh = lensjax.models.make_mesh(MESHES[devices], jax.devices()[:devices])
            examples = read_examples(spec, [EXAMPLES], [0])
            candidate = Candidate(spec, str(pretrained("llama")), "tiny", examples, folder, mesh)
            made[key] = Setting(candidate, Stopping(candidate.dtype, 1), folder)
            made[key].run("whole")
        return made[key]

    return make


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("devices", [1, 8])
def test_a_stopped_run_goes_on_to_the_same_bits(setting, devices, method):
    trial = setting(devices, method)
    for stop_at in (2, 5, 9):  # it is saved one step later; validations are at 4, 8 and 12
        with pytest.raises(Stopped):
            trial.run("broken", stop_at)
        assert [path.name for path in (trial.folder / "broken" / "checkpoints").iterdir()] == [str(stop_at + 1)]
    result, expected = trial.run("broken"), json.loads((trial.folder / "whole" / "result.json").read_text())
    assert result.model_dump() | {"seconds": 0} == expected | {"seconds": 0}
    assert result.best_step > 9
    assert trial.log("broken") == trial.log("whole")
    found, whole = trial.weights("broken"), trial.weights("whole")
    assert found.keys() == whole.keys()
    assert all(found[name].tobytes() == whole[name].tobytes() for name in whole)


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
        assert line == pytest.approx(expected, abs=1e-6)
    found, whole = four.weights("moved"), eight.weights("whole")
    for name in whole:
        np.testing.assert_allclose(found[name], whole[name], rtol=0, atol=1e-6)
