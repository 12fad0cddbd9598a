"""How often a failing request is repeated, and how long it is waited for."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from lgd_timm.utils import http
from lgd_timm.utils.http import Retry

httpx: Any = sys.modules[HTTPError.__module__.partition(".")[0]]  # that of the Hub's client


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, of which none takes time."""
    pauses: list[float] = []
    monkeypatch.setattr(http.time, "sleep", pauses.append)
    return pauses


def unavailable(after: str | None) -> HfHubHTTPError:
    headers = {} if after is None else {"retry-after": after}
    response = httpx.Response(503, headers=headers, request=httpx.Request("GET", "http://127.0.0.1/"))
    return HfHubHTTPError("503", response=response)


@pytest.mark.parametrize(
    "after",
    [None, "", "soon", "-5", "nan", "inf", "1e9", "9" * 30, "0x10", "2.5", "Wed, 21 Oct 2026 07:28:00 GMT", "0"],
)
def test_a_retry_after_that_is_no_number_is_none(after: str | None, slept: list[float]) -> None:
    assert Retry(10, pauses=(0.25,)).wait(unavailable(after))
    assert slept == [0.25]


def test_a_server_that_asks_for_a_longer_pause_gets_it_within_the_patience(slept: list[float]) -> None:
    assert Retry(10, pauses=(0.25,)).wait(unavailable("2"))
    assert slept == [2.0]
    assert not Retry(10, pauses=(0.25,)).wait(unavailable("3600"))
    assert slept == [2.0]
