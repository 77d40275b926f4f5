"""Being asked to stop."""

import os
import signal
import time

import pytest

from lensjax.core.signals import stop_requested, stopping_on_signals


def test_several_processes_are_asked_by_a_count_that_never_restarts(monkeypatch):
    counts = []
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr(
        "jax.experimental.multihost_utils.reached_preemption_sync_point", lambda count: bool(counts.append(count))
    )
    for step in (1, 2, 3, None, 1, 2):  # two runs
        stop_requested(step)
    assert counts == list(range(counts[0], counts[0] + 5))


def test_a_signal_asks_to_stop_and_the_second_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with stopping_on_signals():
        assert not stop_requested(1)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop_requested(1)
        with pytest.raises(KeyboardInterrupt):
            interrupt()
    assert signal.getsignal(signal.SIGINT) is before


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)
