"""Two real processes that train one model."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest


def run_processes(arguments, count, devices):
    """Outputs of `lensjax` in some processes that share the work."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    started = []
    for rank in range(count):
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
        if count > 1:
            environment |= {"LENSJAX_COORDINATOR": address, "LENSJAX_PROCESSES": str(count)}
            environment |= {"LENSJAX_PROCESS": str(rank)}
        command = [sys.executable, "-m", "lensjax", *map(str, arguments)]
        started.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    return started


@pytest.mark.long
def test_two_processes_that_are_stopped_and_go_on_train_what_one_does(save_task, pretrained, tmp_path):
    spec = save_task(validation=6, test=10, epochs=100, max_steps=100, evaluate_every=25, patience=9)
    results = {}
    for count in (1, 2):
        arguments = ["finetune", spec, "--model", pretrained("gpt2"), "--examples", 64, "--mesh", "fsdp=2"]
        arguments += ["--out", tmp_path / f"out{count}"]
        folder = tmp_path / f"out{count}" / "gpt2" / "examples-64-seed-0"
        if count == 2:
            running = run_processes(arguments, count, 1)
            deadline = time.monotonic() + 120
            while not (folder / "log.jsonl").exists() or (folder / "log.jsonl").stat().st_size < 2000:
                assert all(process.poll() is None for process in running)
                assert time.monotonic() < deadline
                time.sleep(0.05)
            running[1].send_signal(signal.SIGTERM)  # which the other hears of
            said = [process.communicate(timeout=300) for process in running]
            assert [process.returncode for process in running] == [143, 143], said
            (step,) = (int(path.name) for path in (folder / "checkpoints").iterdir())
            assert json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["step"] == step < 100
        running = run_processes(arguments, count, 2 // count)
        said = [process.communicate(timeout=300) for process in running]
        assert [process.returncode for process in running] == [0] * count, said
        assert "test loss" in said[0][0]
        assert all("test loss" not in text for text, _ in said[1:])  # one of them speaks
        results[count] = json.loads((folder / "result.json").read_text())
        assert (folder / "model" / "model.safetensors").exists()
    one, two = results[1], results[2]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["validation_loss"] == pytest.approx(one["validation_loss"], rel=1e-5)
    same = ("steps", "best_step", "tokens", "flops", "data", "spec", "devices", "test_tokens")
    assert {key: one[key] for key in same} == {key: two[key] for key in same}


def test_bad_input_ends_all_processes(save_task, pretrained, tmp_path):
    arguments = ["finetune", save_task(), "--model", pretrained("gpt2"), "--examples", 5000, "--out", tmp_path / "out"]
    running = run_processes(arguments, 2, 1)
    said = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [2, 2], said
    assert all("5,000" in error for _, error in said)
