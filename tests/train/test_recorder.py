"""What is kept of training."""

import json
import os

import pytest

from lensjax.core.errors import InputError
from lensjax.train.evaluate import Evaluation
from lensjax.train.loop import Progress
from lensjax.train.recorder import LOG, Recorder, keep_until, measured_peak
from lensjax.train.trackers import check_trackers

METRICS = {"loss": 2.0, "gradient_norm": 1.0, "learning_rate": 0.1, "tokens": 7.0}


def test_log_has_a_line_for_every_step_and_validation(tmp_path, capsys):
    recorder = Recorder("float32", 1, show=True)
    recorder.peak = 1e9
    with recorder.run("tiny", tmp_path):
        recorder.begin(Progress(), 4)
        recorder.step(Progress(step=1, tokens=100, flops=10**8, seconds=0.5), 4, METRICS)
        recorder.step(Progress(step=2, tokens=300, flops=2 * 10**8, seconds=1.0, waiting=0.25), 4, METRICS)
        recorder.step(Progress(step=3, tokens=600, flops=5 * 10**8, seconds=1.5, masked_flops=10**8), 4, METRICS)
        recorder.validation(Progress(step=2, seconds=1.5, best_loss=1.0, best_step=2), Evaluation(1.0, 0.1, 5, 50))
    first, second, third, validation = map(json.loads, (tmp_path / LOG).read_text().splitlines())
    assert "tokens_per_second" not in first  # it was handed to the devices, and is not done
    assert second["tokens_per_second"] == pytest.approx(100)  # the first is
    assert second["model_flops_utilisation"] == pytest.approx(0.1)
    assert third["tokens_per_second"] == pytest.approx(200)
    assert second["seconds_left"] == pytest.approx(1.0)
    assert (second["seconds"], second["seconds_waiting"]) == (1.0, 0.25)
    assert validation["validation_loss"] == 1.0
    assert "tiny: step 2, validation loss 1.0000" in capsys.readouterr().err


def test_no_share_of_the_peak_is_over_all_of_it(tmp_path):
    """Devices that are faster than was measured, steps that are not done yet, and a first one after a validation."""
    recorder = Recorder("float32", 1)
    recorder.peak = 1e6
    with recorder.run("tiny", tmp_path):
        recorder.begin(Progress(), 100)
        for step in range(1, 9):
            now = Progress(step=step, tokens=step, flops=step * 10**8, masked_flops=step * 10**7, seconds=1e-9 + step)
            recorder.step(now, 100, METRICS)
        recorder.validation(now, Evaluation(1.0, 0.1, 5, 50))
        recorder.step(
            Progress(step=9, tokens=9, flops=9 * 10**8, masked_flops=9 * 10**7, seconds=8 + 1e-6), 100, METRICS
        )
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    shares = [line["model_flops_utilisation"] for line in lines if "model_flops_utilisation" in line]
    causal = [line["causal_flops_utilisation"] for line in lines if "causal_flops_utilisation" in line]
    assert max(shares) == shares[-1] == pytest.approx(1)
    assert causal == pytest.approx([0.9 * share for share in shares])
    assert len(shares) == 8


def test_long_runs_log_some_of_their_steps(tmp_path):
    recorder = Recorder("float32", 1)
    with recorder.run("tiny", tmp_path):
        recorder.begin(Progress(), 10_000)
        for step in range(1, 101):
            recorder.step(Progress(step=step, seconds=float(step)), 10_000, METRICS)
    assert [json.loads(line)["step"] for line in (tmp_path / LOG).read_text().splitlines()] == list(range(5, 101, 5))


def test_a_resumed_log_drops_what_came_after_the_checkpoint(tmp_path):
    path = tmp_path / LOG
    path.write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(1, 9)) + '{"step": 9, "lo')
    keep_until(path, 5)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5]
    path.write_bytes(path.read_bytes() + b"\xff\x00" * 40)  # as after a power cut
    keep_until(path, 3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_tensorboard_gets_the_same_values(tmp_path):
    pytest.importorskip("tensorboardX")
    recorder = Recorder("float32", 1, ["tensorboard"])
    with recorder.run("tiny", tmp_path):
        recorder.begin(Progress(), 4)
        recorder.step(Progress(step=1, seconds=0.5), 4, METRICS)
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"gradient_norm" in events.read_bytes()


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="--track wandb needs the package wandb; install it with pip install wandb"):
        check_trackers(("wandb",))


def test_the_peak_of_a_device_is_measured_where_none_is_published():
    assert 1e9 < measured_peak("float32") < 1e15


def test_time_left_leaves_out_the_step_that_compiles(tmp_path):
    recorder = Recorder("float32", 1)
    with recorder.run("tiny", tmp_path):
        recorder.begin(Progress(step=5, seconds=9.0), 105)  # of an earlier command
        recorder.step(Progress(step=6, seconds=39.0), 105, METRICS)
        recorder.step(Progress(step=7, seconds=40.0), 105, METRICS)
    first, second = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert "seconds_left" not in first
    assert second["seconds_left"] == pytest.approx(98.0)


def test_a_log_takes_the_place_of_a_link_or_a_pipe(tmp_path):
    path, outside = tmp_path / LOG, tmp_path / "outside"
    outside.write_text('{"step": 1}\n{"step": 9}\n')
    path.symlink_to(outside)
    keep_until(path, 5)
    assert not path.is_symlink()
    assert path.read_text() == '{"step": 1}\n'
    assert outside.read_text().count("\n") == 2
    path.unlink()
    os.mkfifo(path)
    keep_until(path, 5)
    assert path.read_text() == ""
