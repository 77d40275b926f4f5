"""Signals that ask training to save and stop, in one process or several."""

import itertools
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import jax

_asked_to_stop = threading.Event()
_asked = itertools.count(1)  # how often JAX was asked whether to stop: equal in all processes, and never restarted


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """A context in which SIGTERM and SIGINT ask training to save and stop; a second SIGINT interrupts at once.

    With several processes, JAX itself notes SIGTERM, and makes all of them stop at the same step.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and _asked_to_stop.is_set():
            raise KeyboardInterrupt
        _asked_to_stop.set()

    _asked_to_stop.clear()
    signals = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
    before = {number: signal.signal(number, ask) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_requested(step: int | None = None) -> bool:
    """Whether to stop after this step; all processes agree, even if only one got a signal.

    Args:
      step: The step; None between runs, where several processes cannot agree.
    """
    # JAX makes all stop at the count after the highest of any process. Steps begin anew in every run, so a signal at
    # the end of one run would be for a step that the next run only reaches much later, or never.
    if jax.process_count() == 1 or step is None:
        return _asked_to_stop.is_set()
    from jax.experimental.multihost_utils import reached_preemption_sync_point

    return reached_preemption_sync_point(next(_asked))
