"""The scripts of recipes/paper as modules."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

PAPER = Path(__file__).resolve().parents[2] / "recipes" / "paper"


@pytest.fixture(scope="session")
def script() -> Iterator[Callable[[str], ModuleType]]:
    sys.path.insert(0, str(PAPER))
    yield importlib.import_module
    sys.path.remove(str(PAPER))
