"""The tests' own architecture: a folder for each room, and no test module imports another one or a conftest."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lgd_timm
from tests.helpers import ROOT

TESTS = ROOT / "tests"
OTHER_FOLDERS = {"benchmarks", "docs", "end_to_end", "fuzz", "golden", "helpers", "recipes"}


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports; of `from a import b` both `a` and `a.b`, as `b` may be a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            yield from (start, *(f"{start}.{alias.name}" for alias in node.names))


def of_tests(path: Path) -> list[str]:
    """Imports of test modules and conftests, by any spelling."""
    return [name for name in imported(path) if name.rpartition(".")[2].startswith("test_") or "conftest" in name]


def test_nothing_imports_a_test_module_or_a_conftest() -> None:
    found = {str(path.relative_to(TESTS)): of_tests(path) for path in TESTS.rglob("*.py")}
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("from test_distill import run", ["test_distill"]),
        ("from tests.end_to_end import test_distill", ["tests.end_to_end.test_distill"]),
        ("import tests.hub.conftest", ["tests.hub.conftest"]),
        ("from .conftest import CLASSES", [".conftest", ".conftest.CLASSES"]),
        ("from tests.helpers.runs import merge", []),
    ],
)
def test_such_an_import_is_noticed(tmp_path: Path, line: str, names: list[str]) -> None:
    (tmp_path / "test_it.py").write_text(f"def late():\n    {line}")
    assert of_tests(tmp_path / "test_it.py") == names


def test_every_folder_is_a_room_or_says_what_else() -> None:
    rooms = {path.name for path in Path(lgd_timm.__file__).parent.iterdir() if (path / "__init__.py").is_file()}
    folders = {path.relative_to(TESTS).parts[0] for path in TESTS.glob("*/**/*.py")}
    assert folders <= rooms | OTHER_FOLDERS
