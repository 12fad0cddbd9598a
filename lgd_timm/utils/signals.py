"""SIGTERM, the notice that a machine will be taken away: a run saves what it has and ends with a status that says so."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

STATUS = 128 + signal.SIGTERM  # what shells say of a process that SIGTERM ended; torchrun restarts on any but 0


class Stopped(Exception):
    """A run was asked to stop and has saved what it had. The message says how to go on."""


class StopRequest:
    """While it is entered, the first SIGTERM only sets `asked`. A second one does what it did before."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # no other may say what signals do
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, self._before)


@contextmanager
def ending_in_order() -> Iterator[None]:
    """SIGTERM ends the process as Ctrl-C does, so that what is half-written is removed on the way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(STATUS))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
