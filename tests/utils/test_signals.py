"""SIGTERM and Ctrl-C: asked once, obeyed in order."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lgd_timm.utils.files import atomic_file
from lgd_timm.utils.signals import STATUS, StopRequest, ending_in_order


def test_the_first_signal_asks_and_the_second_does_what_it_did_before() -> None:
    with ending_in_order(), StopRequest() as request:
        assert request.signal == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.signal == signal.SIGTERM
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), signal.SIGTERM)
        assert ended.value.code == STATUS == 143


def test_what_signals_did_before_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with ending_in_order(), StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.fixture
def interrupts() -> Iterator[None]:
    """SIGINT as a terminal's process has it, whatever these tests leave."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_asks_and_a_second_one_ends() -> None:
    with StopRequest() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_ends_at_once_where_nothing_is_lost() -> None:
    with StopRequest() as request:
        with pytest.raises(KeyboardInterrupt), request.interruptible():
            os.kill(os.getpid(), signal.SIGINT)
        assert request.signal == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal == signal.SIGINT


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_is_itself_again_where_a_library_made_another_error_of_it() -> None:
    def strike() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ImportError("core can't be imported") from error

    with pytest.raises(KeyboardInterrupt), ending_in_order():
        strike()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL  # the process is ending


@pytest.mark.usefixtures("interrupts")
def test_a_signal_that_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with ending_in_order(), StopRequest() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal == 0
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_what_is_half_written_is_removed(tmp_path: Path) -> None:
    def write() -> None:
        with ending_in_order(), atomic_file(tmp_path / "file") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        write()
    assert list(tmp_path.iterdir()) == []


def test_other_threads_leave_signals_alone() -> None:
    def work() -> None:
        with ending_in_order(), StopRequest() as request:
            asked.append(request.signal)

    asked: list[int] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [0]
