"""Acting once a package is imported."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lgd_timm.utils.lazy import when_imported


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = "package_that_is_imported_later"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("value = 1")
    (tmp_path / name / "part.py").write_text("value = 2")
    monkeypatch.syspath_prepend(tmp_path)
    finders = list(sys.meta_path)
    yield name
    sys.meta_path[:] = finders
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


def test_it_is_called_once_after_the_import_however_it_comes(package: str) -> None:
    seen: list[int] = []
    before = list(sys.meta_path)
    when_imported(package, lambda: seen.append(sys.modules[package].value))
    assert importlib.util.find_spec(package) is not None  # as libraries do to see what is installed
    assert seen == []
    assert importlib.import_module(f"{package}.part").value == 2
    assert seen == [1]
    assert sys.meta_path == before
    importlib.reload(sys.modules[package])
    assert seen == [1]


def test_it_is_called_at_once_for_what_is_imported(package: str) -> None:
    importlib.import_module(package)
    seen: list[str] = []
    when_imported(package, lambda: seen.append(package))
    assert seen == [package]


def test_an_error_ends_every_import(package: str) -> None:
    def fail() -> None:
        raise ValueError("no manifest")

    when_imported(package, fail)
    for _ in range(2):
        with pytest.raises(ValueError, match="no manifest"):
            importlib.import_module(package)


def test_a_package_that_is_not_there_is_not_found(package: str) -> None:
    when_imported(f"{package}.nothing", lambda: None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"{package}.nothing")
