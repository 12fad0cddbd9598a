"""Folders and numbers of the environment."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from lgd_timm.errors import LGDError
from lgd_timm.settings import cache_folder, cache_size, hub_timeout


def test_a_user_without_a_home_has_a_cache_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LGD_TIMM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as without HOME and passwd entry
    assert cache_folder().parent == Path(tempfile.gettempdir())
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/lgd_timm")


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e30", "soon", "5 s"])
def test_a_number_of_seconds_that_is_none_is_refused_by_its_name(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LGD_TIMM_HUB_TIMEOUT", text)
    with pytest.raises(LGDError, match=r"LGD_TIMM_HUB_TIMEOUT='.*' is no number of seconds above 0 and up to a day"):
        hub_timeout()


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e30", "much", "9" * 40, "5 XB"])
def test_a_size_that_is_none_is_refused_by_its_name(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LGD_TIMM_CACHE_SIZE", text)
    with pytest.raises(LGDError, match=r"LGD_TIMM_CACHE_SIZE='.*' is no number of bytes"):
        cache_size()
