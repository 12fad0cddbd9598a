"""`lgd-timm recipes | init`: the recipes that come with the package, and a commented one to begin with."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .common import WIDTH, add_command

if TYPE_CHECKING:
    from .common import Commands


def add_recipes(commands: Commands) -> None:
    """Add the parsers."""
    add_command(commands, "recipes", _recipes, "list the recipes that come with the package")
    init = add_command(commands, "init", _init, "write a commented recipe for your own images and names")
    init.add_argument("out", nargs="?", default="recipe.yaml", help="new YAML file (default: recipe.yaml)")
    init.add_argument("--shards", default="data/photos", help="folder that `lgd-timm shards write` makes")
    init.add_argument("--names", default="names.txt", help="text file with one name a line")


def _recipes(_: argparse.Namespace) -> None:
    from ..config.builtin import builtin_recipes, describe

    known = builtin_recipes()
    width = max(map(len, known), default=0)
    for name, path in known.items():
        print(f"{name:{width}}  {describe(path)}"[:WIDTH])


def _init(options: argparse.Namespace) -> None:
    from ..config.builtin import write_template

    path = write_template(options.out, shards=options.shards, names=options.names)
    print(f"written: {path}. Next: lgd-timm shards write PHOTOS {options.shards}, then lgd-timm distill {path}")
