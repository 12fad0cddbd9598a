"""The rooms: which may import which, and no circle between files.

Imports inside functions and `TYPE_CHECKING` blocks count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import lgd_timm

PACKAGE = Path(lgd_timm.__file__).parent
ANYWHERE = {"errors", "settings", ""}  # "" is the package itself, for __version__
MAY_IMPORT = {
    "cli": "vision_language transfer training export evaluate publish config students teachers objectives hub data "
    "utils task",
    "vision_language": "transfer training evaluate publish config students teachers data hub utils",
    "transfer": "training evaluate students config data hub utils",
    "training": "evaluate publish task config students teachers objectives hub data utils",
    "export": "evaluate publish config students teachers hub data utils",
    "evaluate": "publish config students teachers objectives hub data utils",
    "publish": "config students teachers objectives hub data utils",
    "task": "students teachers objectives utils",
    "config": "teachers objectives hub data utils",
    "students": "hub data utils",
    "teachers": "hub data utils",
    "data": "utils",
    "objectives": "utils",
    "hub": "utils",
    "utils": "",
    "settings": "",
    "errors": "",
    "": "students hub utils evaluate",  # `load` is lazy
}


def module_name(path: Path, package: Path) -> str:
    """`cli.main` of package/cli/main.py, `cli` of package/cli/__init__.py."""
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, package: Path, modules: set[str]) -> Iterator[str]:
    """Modules of the package that a file imports, wherever in it the import stands."""
    here = module_name(path, package).split(".")
    base = here if path.stem == "__init__" else here[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            room = base[: len(base) - node.level + 1]
            start = [part for part in [*room, *(node.module or "").split(".")] if part]
            for alias in node.names:
                name = ".".join([*start, alias.name])
                yield name if name in modules else ".".join(start)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for name in names:
                assert name.partition(".")[0] != "lgd_timm", f"{path}:{node.lineno}: import {name} relatively"


def graph(package: Path) -> dict[str, set[str]]:
    """Each module of a package, with the modules of it that it imports."""
    files = {module_name(path, package): path for path in sorted(package.rglob("*.py"))}
    return {name: set(imports(path, package, set(files))) - {name} for name, path in files.items()}


def forbidden(edges: Mapping[str, set[str]]) -> list[str]:
    """Imports that the table of rooms does not allow, a line each."""
    lines = []
    for name, targets in edges.items():
        room = name.partition(".")[0]
        if room not in MAY_IMPORT:
            lines.append(f"{name} stands in no room")
            continue
        allowed = {room, *MAY_IMPORT[room].split(), *ANYWHERE}
        lines += [f"{name} imports {target}" for target in sorted(targets) if target.partition(".")[0] not in allowed]
    return lines


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Circles of imports between files: from each file on the way, the first that leads back."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
        elif name not in done:
            for target in sorted(edges.get(name, ())):
                visit(target, [*path, name])
            done.add(name)

    for name in edges:
        visit(name, [])
    return found


def test_rooms_import_downwards_only() -> None:
    assert forbidden(graph(PACKAGE)) == []


def test_no_file_imports_itself_through_others() -> None:
    assert circles(graph(PACKAGE)) == []


def test_the_table_is_of_rooms_that_exist() -> None:
    there = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"} - {
        "__init__",
        "__pycache__",
    }
    assert {room for room in MAY_IMPORT if room} == {name for name in there if name != "py"}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("from ..training.engine import fit", "data.views imports training.engine"),
        ("def late():\n    from ..publish import folder", "data.views imports publish.folder"),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .. import task", "data.views imports task"),
    ],
)
def test_an_upward_import_is_noticed(tmp_path: Path, line: str, complaint: str) -> None:
    for name in ("data/views", "training/engine", "publish/folder", "task"):
        file = tmp_path / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(line if name == "data/views" else "")
    assert forbidden(graph(tmp_path)) == [complaint]


def test_a_circle_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.py").write_text("from .b import x")
    (tmp_path / "data/b.py").write_text("def late():\n    from . import c")
    (tmp_path / "data/c.py").write_text("from .a import y")
    assert circles(graph(tmp_path)) == [["data.a", "data.b", "data.c", "data.a"]]
