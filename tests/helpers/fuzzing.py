"""Run a reader on damaged input: it answers, or raises one LGDError in one line, in bounded time and memory."""

from __future__ import annotations

import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

from lgd_timm.errors import LGDError

SECONDS, MEGABYTES = 15, 1024

T = TypeVar("T")


class Refused:
    """What a reader said of its input."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def survive(read: Callable[[], T], *, case: object) -> T | Refused:
    """Call a reader. Fail, with the case, for a traceback, several lines, or more than `SECONDS`."""
    try:
        with alarm(case):
            return read()
    except LGDError as error:
        said = str(error)
    except Exception:
        pytest.fail(f"{case}: {traceback.format_exc()}")
    assert len(said.splitlines()) == 1, f"{case}: {said!r}"
    assert len(said) < 8000, f"{case}: {said!r}"
    return Refused(said)


@contextmanager
def alarm(case: object) -> Iterator[None]:
    """Fail where the block takes longer than `SECONDS`."""

    def ring(*_: Any) -> None:
        pytest.fail(f"{case}: more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Fail where the block's peak is more than `MEGABYTES` above what the process had before."""
    before = _peak()
    yield
    assert _peak() - before < MEGABYTES


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
