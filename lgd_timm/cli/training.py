"""`lgd-timm teach | distill | save`: store a teacher's embeddings, train a student, make its published folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .common import RESUME, add_command, first_rank

if TYPE_CHECKING:
    from .common import Commands

GO_ON = "Shards that are finished stay; the same command goes on at the next."
PRINT_CONFIG = "print the resolved recipe and stop"


def add_training(commands: Commands) -> None:
    """Add the parsers."""
    _add_teach(commands)
    _add_distill(commands)
    _add_save(commands)


def _add_teach(commands: Commands) -> None:
    parser = add_command(
        commands, "teach", _teach, "store a teacher's embeddings beside shards", overrides=True, go_on=GO_ON
    )
    parser.add_argument("recipe", help="YAML with teacher, views and shards; or what distill takes, if it names both")
    parser.add_argument("--print-config", action="store_true", help=PRINT_CONFIG)
    parser.add_argument(
        "--out", help="folder of the embeddings (default: what a recipe of distill names, else beside the shards)"
    )


def _add_distill(commands: Commands) -> None:
    parser = add_command(commands, "distill", _distill, "distil a student", overrides=True, go_on=RESUME)
    parser.add_argument("recipe", help="YAML recipe, a published folder or hub://ORG/NAME[@REV]")
    parser.add_argument("--output", help="run folder (default: output/MODEL.NAME)")
    parser.add_argument(
        "--vocabulary",
        help="other class names: a text file, '[a, b]', folder:PATH, coco:PATH, ... (default: the recipe's "
        "vocabulary.source)",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint, if there is one")
    parser.add_argument("--print-config", action="store_true", help=PRINT_CONFIG)


def _add_save(commands: Commands) -> None:
    parser = add_command(commands, "save", _save, "make a published folder from a run's checkpoint")
    parser.add_argument("run", help="run folder of `lgd-timm distill`")
    parser.add_argument("out", help="new folder")
    parser.add_argument(
        "--best",
        action="store_true",
        help="of the checkpoints that were scored, the one with the highest score (default: the last checkpoint)",
    )
    parser.add_argument(
        "--open-clip",
        action="store_true",
        help="add the two files that open_clip loads: the teacher's text tower is large",
    )
    parser.add_argument(
        "--register", metavar="ORG/NAME", help="also write the weight's row into the package's manifest"
    )


def _teach(options: argparse.Namespace) -> None:
    from ..config.reader import read_teach_recipe
    from ..training.build import check_names
    from ..training.teach import teach_recipe
    from ..utils.device import keep_memory

    if options.out:
        options.overrides["out"] = options.out
    recipe = read_teach_recipe(options.recipe, overrides=options.overrides)
    if options.print_config:
        print(recipe.to_yaml(), end="")
        return
    check_names(options.recipe)
    keep_memory()
    stored = teach_recipe(recipe)
    if first_rank():
        print(f"embeddings: {stored.root}")


def _distill(options: argparse.Namespace) -> None:
    from ..config.reader import local_source, read_recipe
    from ..publish.card import weight_name
    from ..training.distill import distill
    from ..utils.device import keep_memory

    if options.vocabulary:
        options.overrides["vocabulary.source"] = options.vocabulary
    source = local_source(options.recipe)
    recipe = read_recipe(source, overrides=options.overrides)
    if options.print_config:
        print(recipe.to_yaml(), end="")
        return
    keep_memory()
    out = options.output or f"output/{weight_name(recipe)}"
    published = distill(recipe, out=out, resume=options.resume, source=source)
    if first_rank():
        print(f"published: {published}")


def _save(options: argparse.Namespace) -> None:
    from ..publish.registration import check_name, register
    from ..training.distill import save_run

    if options.register:
        check_name(Path(options.out).resolve().name)
    folder = save_run(options.run, out=options.out, open_clip=options.open_clip, best=options.best)
    if options.register:
        register(folder, repo_id=options.register)
    print(f"published: {folder}")
