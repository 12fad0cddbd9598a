"""A loader that is measured in turns with something else.

A loader with workers works ahead. If it did so while the other side of a pair has the clock, it would come to its own
turn with a full queue, which it did not pay for, and it would take the other side's cores. So its workers stand still
(SIGSTOP) whenever it is not its turn: a turn ends with the queue as it began, and as many batches are made in it as are
taken.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from pathlib import Path
from typing import Any


class Feed:
    """Batches without end. `start` begins to iterate; the processes that begin with it are the workers."""

    def __init__(self, start: Callable[[], Iterable[Any]]) -> None:
        before = set(active_children())
        self._batches: Iterator[Any] = iter(start())
        self.first = next(self._batches)  # generators start their workers no sooner
        self._workers = [process.pid for process in active_children() if process not in before and process.pid]
        self._signal(signal.SIGSTOP)

    @contextmanager
    def turn(self) -> Iterator[Iterator[Any]]:
        """Let the workers work."""
        self._signal(signal.SIGCONT)
        try:
            yield self._batches
        finally:
            self._signal(signal.SIGSTOP)

    def cpu_seconds(self) -> float:
        """CPU time that the workers have used so far, all threads of them, as Linux counts it."""
        tasks = (path for pid in self._workers for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))
        return sum(int(path.read_text().split()[0]) for path in tasks) / 1e9

    def close(self) -> None:
        """Let go of the workers; those that stand still could not hear that they may end."""
        self._signal(signal.SIGCONT)
        del self._batches

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._workers:
            os.kill(pid, number)


@contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Keep this process, and what it starts, on one core; None, or a system that can't, leaves it alone."""
    if core is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
