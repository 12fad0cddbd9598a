"""Commands of `lgd-timm`, run in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from lgd_timm import cli


def say(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    """What a command prints; it must end with status 0."""
    capsys.readouterr()
    status = cli.main([str(word) for word in argv])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out
