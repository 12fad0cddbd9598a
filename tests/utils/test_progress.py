"""Long work speaks: a bar in a terminal, lines without one."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator

import pytest

from lgd_timm.utils.progress import progress_bar


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    with caplog.at_level(logging.INFO, logger="lgd_timm"):
        yield clock


def test_without_a_terminal_a_line_comes_now_and_then(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with progress_bar(total=2000, unit="img", desc="distill") as bar:
        bar.set_postfix_str("loss 3.21", refresh=False)
        for _ in range(200):
            clock.now += 1
            bar.update(10)
    assert caplog.messages == [
        "distill: 100 of 2000 images (5%), 10 images/s, 03:10 left, loss 3.21",
        "distill: 300 of 2000 images (15%), 10 images/s, 02:50 left, loss 3.21",
        "distill: 700 of 2000 images (35%), 10 images/s, 02:10 left, loss 3.21",
        "distill: 1300 of 2000 images (65%), 10 images/s, 01:10 left, loss 3.21",
        "distill: 1900 of 2000 images (95%), 10 images/s, 00:10 left, loss 3.21",
    ]


def test_short_work_says_nothing(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for _ in progress_bar(range(9), desc="k-NN"):
        clock.now += 1
    assert caplog.messages == []


def test_items_pass_through_and_their_waits_grow_too(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    seen = []
    for item in progress_bar(range(40), desc="k-NN"):
        seen.append(item)
        clock.now += 4
    assert seen == list(range(40))
    assert caplog.messages[0] == "k-NN: 3 of 40 (8%), 0.25 steps/s, 02:28 left"
    assert len(caplog.messages) == 4  # after 12, 32, 72 and 132 s of 160


def test_bytes_and_unknown_totals_are_spelt(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    bar = progress_bar(unit="B", unit_scale=True, desc="pull")
    clock.now += 20
    bar.update(4_000_000)
    bar.close()
    assert caplog.messages == ["pull: 4.00M bytes, 200k bytes/s"]


def test_other_ranks_are_silent(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for _ in progress_bar(range(9), disable=True):
        clock.now += 100
    assert caplog.messages == []


def test_in_a_terminal_it_is_a_bar(
    clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    for _ in progress_bar(range(3), desc="k-NN"):
        clock.now += 30
    assert "k-NN: 100%|" in sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert caplog.messages == []
