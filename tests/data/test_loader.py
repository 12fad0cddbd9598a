"""What a dead worker does to whoever loads batches."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from lgd_timm.data.loader import WorkerDataLoader, worker_errors
from lgd_timm.errors import WorkerError


class Deadly:
    """Ten numbers, one of which kills the process that reads it."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> int:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


def _consume(loader: WorkerDataLoader, *, busy: bool) -> None:
    for _ in loader:
        if busy:
            time.sleep(5)  # which the signal ends


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("busy", [False, True], ids=["while it waits", "while it works"])
def test_a_dead_worker_is_an_error_that_says_what_to_do(busy: bool) -> None:
    """torch raises its own error wherever the main thread is."""
    before = signal.getsignal(signal.SIGCHLD)
    loader = WorkerDataLoader(Deadly(), batch_size=1, num_workers=1, prefetch_factor=4)  # type: ignore[arg-type,var-annotated]
    with pytest.raises(WorkerError, match=r"^DataLoader worker .*\. Memory may have run out: lower data\.workers or"):
        _consume(loader, busy=busy)
    signal.signal(signal.SIGCHLD, before)


def test_other_errors_are_left_as_they_are() -> None:
    loader = WorkerDataLoader([1, 2], batch_size=1)  # type: ignore[arg-type,var-annotated]
    with pytest.raises(RuntimeError, match=r"^mine$"), worker_errors():
        raise RuntimeError("mine")
    assert list(map(int, loader)) == [1, 2]


def test_a_small_shared_memory_is_named() -> None:
    with pytest.raises(WorkerError, match=r"/dev/shm is too small.*--shm-size"), worker_errors():
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")
