"""The scripts of recipes/paper and recipes/prepare as modules."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

from tests.helpers import ROOT

FOLDERS = [str(ROOT / "recipes" / name) for name in ("paper", "prepare")]


@pytest.fixture(scope="session")
def script() -> Iterator[Callable[[str], ModuleType]]:
    sys.path[:0] = FOLDERS
    yield importlib.import_module
    for folder in FOLDERS:
        sys.path.remove(folder)
