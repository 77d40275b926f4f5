"""BLAS keeps to one thread while anything asks for that, and then has those it had."""

import threading

import numpy as np
import pytest

from lensjax.core import blas
from lensjax.core.blas import one_blas_thread

threadpoolctl = pytest.importorskip("threadpoolctl")


def threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}


@pytest.fixture
def several():
    """BLAS with two threads, of the libraries that are loaded now."""
    np.linalg.inv(np.eye(2))
    blas._controller.cache_clear()
    limits = []
    blas._apart(lambda: limits.append(threadpoolctl.threadpool_limits(2, "blas")))
    yield threads()
    blas._apart(limits.pop().restore_original_limits)


def test_the_last_one_out_gives_threads_back(several):
    entered, leave = threading.Event(), threading.Event()

    @one_blas_thread()
    def wait():
        entered.set()
        leave.wait(10)

    other = threading.Thread(target=wait)
    with one_blas_thread():
        other.start()
        assert entered.wait(10)
        assert threads() == {1}
    assert threads() == {1}  # the other is still inside
    leave.set()
    other.join()
    assert threads() == several


def test_errors_give_threads_back_too(several):
    with pytest.raises(ZeroDivisionError), one_blas_thread():
        1 / 0  # noqa: B018
    assert threads() == several
