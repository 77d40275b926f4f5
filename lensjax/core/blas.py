"""BLAS on one thread, where its matrices are small.

Threads of a product that takes microseconds wait for each other for longer than they compute, spinning, and so keep
all cores from other work: ranking 3,000 models takes twice the CPU time with two of them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock, Thread
from typing import Any

_lock = Lock()
_users = 0
_limits: list[Any] = []


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep NumPy's BLAS to one thread; as a decorator, during calls.

    The number belongs to the process: it is what it was again when the last of all threads of Python that are inside
    has left.
    """
    global _users
    controller = _controller()
    with _lock:
        if not _users and controller is not None:
            _apart(lambda: _limits.append(controller.limit(limits=1, user_api="blas")))
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users and _limits:
                _apart(_limits.pop().restore_original_limits)


def _apart(change: Callable[[], Any]) -> None:
    """In a thread that ends: from one that lives on, threadpoolctl lets no other thread change the number again."""
    thread = Thread(target=change)
    thread.start()
    thread.join()


@cache
def _controller() -> Any:
    """Of the libraries that are loaded; None in an environment that is older than this dependency."""
    import numpy  # noqa: F401, whose BLAS it is

    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController()
