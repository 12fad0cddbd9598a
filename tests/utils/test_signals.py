"""SIGTERM: asked once, obeyed in order."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from lgd_timm.utils.files import atomic_file
from lgd_timm.utils.signals import STATUS, StopRequest, ending_in_order


def test_the_first_signal_asks_and_the_second_does_what_it_did_before() -> None:
    with ending_in_order(), StopRequest() as request:
        assert not request.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.asked
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), signal.SIGTERM)
        assert ended.value.code == STATUS == 143


def test_what_signals_did_before_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with ending_in_order(), StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


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
            asked.append(request.asked)

    asked: list[bool] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [False]
