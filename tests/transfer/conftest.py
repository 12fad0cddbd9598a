"""The task that takes the place of detection."""

from __future__ import annotations

import pytest

from lgd_timm.transfer import run as runs
from tests.helpers.dots import DotsTask


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> DotsTask:
    """It takes the place of detection."""
    made = DotsTask()
    monkeypatch.setattr(runs, "find_task", lambda _: made)
    monkeypatch.setattr("lgd_timm.transfer.tasks.find_task", lambda _: made)
    return made
