"""A study is killed, stopped, or sent back in time before each step: whatever it does to a file in its folder."""

import json
import os
import shutil
import signal
import sys
import time
import warnings
from datetime import datetime, timedelta

import pytest
from chaos_study import outcome

from lensjax.core import files
from lensjax.core.errors import InputError
from lensjax.selection.evidence import Evidence
from lensjax.study import runner
from lensjax.study.folder import read_study_folder
from lensjax.study.state import read_state

ALL = "LENSJAX_TEST_CHAOS" in os.environ  # every step, not a few
STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}  # audit events
LONGEST = 120  # seconds of a child that does not hang


def run_in_child(scene, out, before=lambda step: None):
    """Start a run of the study in a child process, which calls a function before every step; returns its pid.

    It writes the number of its steps beside the folder.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of JAX, which the child does not compute with
        child = os.fork()
    if child:
        return child
    steps = 0

    def count(event, arguments):
        nonlocal steps
        if event not in STEPS or not str(arguments[0]).startswith(str(out)):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        steps += 1
        before(steps)

    try:
        # JAX would wait for threads that a forked process lacks; the study's method looks at curves alone.
        runner.evidence_for_methods = lambda records: Evidence()
        sys.addaudithook(count)
        scene.run(out)
        (out.with_suffix(".steps")).write_text(str(steps))
        os._exit(0)
    finally:
        os._exit(1)


def sends_itself(what, at):
    return lambda step: os.kill(os.getpid(), what) if step == at else None


def ended(child, how=0):
    """Wait until a child ends, or is stopped; returns its status."""
    until = time.monotonic() + LONGEST
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG | how)
        if pid:
            return status
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the run hangs")


@pytest.fixture
def steps(scene, tmp_path):
    """Numbers of steps of a run: all of them, or a few in the first half and in the second."""
    if not scene.steps:
        out = tmp_path / "counted"
        assert ended(run_in_child(scene, out)) == 0
        assert outcome(out) == outcome(scene.whole)
        scene.steps = int(out.with_suffix(".steps").read_text())
    assert scene.steps > 100
    return range(1, scene.steps + 1) if ALL else range(3, scene.steps, scene.steps // 5)


def test_killed_before_any_step_it_comes_to_the_same_end(scene, tmp_path, steps):
    """What a kill leaves is what lies there before the step: all such folders are taken from one run."""
    out, kept, whole = tmp_path / "out", tmp_path / "kept", outcome(scene.whole)
    wanted = set(steps)

    def keep(step):
        if step in wanted:
            shutil.copytree(out, kept / str(step)) if out.exists() else (kept / str(step)).mkdir(parents=True)

    assert ended(run_in_child(scene, out, keep)) == 0
    wrong = []
    for at in steps:
        folder = kept / str(at)
        if why := wrong_after(scene, folder, whole):
            wrong.append(f"step {at}: {why}")
        shutil.rmtree(folder)
    assert not wrong, "\n".join(wrong)


def wrong_after(scene, folder, whole):
    """What is wrong with a run that goes on in the folder that a killed one left."""
    try:
        if (folder / "study.json").exists():
            read_state(read_study_folder(folder), folder)
        scene.run(folder)
        if outcome(folder) != whole:
            return "another outcome"
        left = [path for path in folder.rglob("*") if path.suffix == ".part"]
        return f"{left} is left" if left else ""
    except Exception as error:  # all are told of together
        return f"{type(error).__name__} {error}"


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
def test_killed_for_real_it_comes_to_the_same_end(scene, tmp_path, steps, part):
    out = tmp_path / "killed"
    status = ended(run_in_child(scene, out, sends_itself(signal.SIGKILL, int(part * scene.steps))))
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert not wrong_after(scene, out, outcome(scene.whole))


def test_stopped_for_a_while_before_any_step_it_goes_on_and_nobody_else_does(scene, tmp_path, steps, monkeypatch):
    monkeypatch.setattr(files, "LONGEST_WAIT", 0.1)
    out, stops = tmp_path / "stopped", 0

    def stop(step):
        if step in steps:
            os.kill(os.getpid(), signal.SIGSTOP)

    child = run_in_child(scene, out, stop)
    while os.WIFSTOPPED(status := ended(child, os.WUNTRACED)):
        stops += 1
        try:
            if (out / ".running").exists():
                with pytest.raises(InputError, match="Another command"):
                    scene.run(out)
        finally:
            os.kill(child, signal.SIGCONT)
    assert status == 0
    assert stops == len(steps)
    assert outcome(out) == outcome(scene.whole)


def test_a_clock_that_goes_back_an_hour_changes_nothing(scene, tmp_path, monkeypatch):
    back, now = timedelta(hours=1), time.time

    class Earlier(datetime):
        """A clock that was put back."""

        @classmethod
        def now(cls, zone=None):
            return datetime.now(zone) - back

    cells = len(json.loads(outcome(scene.whole)[2]))
    for limit in range(1, cells, 1 if ALL else cells // 2):
        out = tmp_path / str(limit)
        scene.run(out, limit=limit)
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: now() - back.total_seconds())
            for name, module in list(sys.modules.items()):
                if name.startswith("lensjax.") and getattr(module, "datetime", None) is datetime:
                    patch.setattr(module, "datetime", Earlier)
            scene.run(out)
            state = read_state(read_study_folder(out), out)
        assert not state.damage
        assert outcome(out) == outcome(scene.whole)
        times = [entry.time for entry in state.journal]
        assert times != sorted(times)
