"""Handle SIGTERM, which announces that a machine will be taken away, and SIGINT (Ctrl-C): a run is saved and stops."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}  # that runs obey, and what messages call them
STATUS = 128 + signal.SIGTERM  # shells report it of a process that SIGTERM ended; torchrun restarts on any but 0
INTERRUPTED = 128 + signal.SIGINT  # the same of Ctrl-C


class Stopped(Exception):
    """A run got SIGTERM and has saved its state. The message says where."""


def stopped_by(number: int, text: str) -> Stopped | KeyboardInterrupt:
    """Make the exception that ends a run after it was saved.

    Args:
        number: SIGTERM or SIGINT.
        text: when it stopped, and where it is saved.
    """
    message = f"stopped by {NAMES[signal.Signals(number)]} {text}"
    return KeyboardInterrupt(message) if number == signal.SIGINT else Stopped(message)


class StopRequest:
    """A context in which the first SIGTERM or SIGINT only sets `signal`; a second one is handled as it was before.

    Attributes:
        signal: the number of the signal that arrived; 0: none.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # signal handlers can be set in no other
            # what is ignored stays so: SIGINT is, of a process in the background of a script
            self._before = {n: h for n in NAMES if (h := signal.getsignal(n)) != signal.SIG_IGN}
            for number in self._before:
                signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let Ctrl-C end the block at once, as nothing is lost by that."""
        if signal.SIGINT not in self._before:
            yield
            return
        ours = signal.signal(signal.SIGINT, self._before[signal.SIGINT])
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, ours)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self._before[number])


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Let SIGTERM end the process by an exception, as Ctrl-C does, so that half-written files are removed.

    After Ctrl-C the process is ending: another one ends it at once, and without a traceback.

    Raises:
        KeyboardInterrupt: of Ctrl-C, also where a library made another error of it, as some do while they are imported.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(STATUS))}
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        before[signal.SIGINT] = signal.SIG_DFL
        raise
    except Exception as error:
        if not interrupted:
            raise
        before[signal.SIGINT] = signal.SIG_DFL
        raise KeyboardInterrupt from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_interrupts_to_parent(_: int = 0) -> None:
    """Ignore Ctrl-C in a process that loads images: it reaches all of a terminal's processes, and the first decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
