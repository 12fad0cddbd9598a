"""The scripts of recipes/paper as modules."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

from tests.helpers import ROOT

PAPER = ROOT / "recipes" / "paper"


@pytest.fixture(scope="session")
def script() -> Iterator[Callable[[str], ModuleType]]:
    sys.path.insert(0, str(PAPER))
    yield importlib.import_module
    sys.path.remove(str(PAPER))
