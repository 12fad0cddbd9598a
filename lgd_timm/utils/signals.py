"""Handle SIGTERM, which announces that a machine will be taken away: a run saves its state and stops."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

STATUS = 128 + signal.SIGTERM  # shells report it of a process that SIGTERM ended; torchrun restarts on any but 0


class Stopped(Exception):
    """A run got SIGTERM and has saved its state. The message says how to resume it."""


class StopRequest:
    """A context in which the first SIGTERM only sets `asked`; a second one is handled as it was before.

    Attributes:
        asked: whether SIGTERM arrived.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # signal handlers can be set in no other
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
    """Let SIGTERM end the process by an exception, as Ctrl-C does, so that half-written files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(STATUS))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
