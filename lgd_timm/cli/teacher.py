"""`lgd-timm teacher list | get`: teachers that have short names."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .common import add_command, add_group, table

if TYPE_CHECKING:
    from .common import Commands


def add_teacher(commands: Commands) -> None:
    """Add the parsers."""
    _, kinds = add_group(commands, "teacher", "teachers that have short names", metavar="list|get")
    add_command(kinds, "list", _list, "print the teachers that have short names")
    parser = add_command(kinds, "get", _get, "get a teacher, so that later runs need no network")
    parser.add_argument("name", help="short name, such as conse-lite2")
    parser.add_argument("--out", help="folder for its classifier, as data/teachers (default: the cache)")


def _list(_: argparse.Namespace) -> None:
    from ..teachers.catalog import TEACHERS

    rows = [
        [name, teacher.about, teacher.licence, f"{teacher.megabytes} MB", teacher.needs]
        for name, teacher in TEACHERS.items()
    ]
    print("\n".join(table(["name", "teacher", "licence", "size", "needs"], rows, width=140)))


def _get(options: argparse.Namespace) -> None:
    import yaml

    from ..teachers.catalog import get_teacher
    from ..utils.schema import to_plain

    spec = get_teacher(options.name, out=Path(options.out) if options.out else None)
    print(f"{options.name} is ready. In a recipe:")
    print(yaml.safe_dump({"teacher": to_plain(spec)}, sort_keys=False), end="")
