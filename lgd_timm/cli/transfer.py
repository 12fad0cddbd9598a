"""`lgd-timm transfer detect | segment | predict`: train on a backbone, and draw what the model finds."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .common import RESUME, add_command, add_device, add_group, first_rank

if TYPE_CHECKING:
    from .common import Commands

TEXTS = {
    "detect": "train a detector of boxes, or boxes and masks, on a backbone",
    "segment": "train a decoder that gives each pixel a class, on a backbone",
}


def add_transfer(commands: Commands) -> None:
    """Add the parsers."""
    _, tasks = add_group(commands, "transfer", "train a detector or segmenter on a backbone", metavar="TASK")
    for task, text in TEXTS.items():
        parser = add_command(tasks, task, _train, text, overrides=True, go_on=RESUME)
        parser.set_defaults(task=task)
        parser.add_argument("recipe", help="YAML recipe, such as those in recipes/transfer/")
        parser.add_argument("--output", help="run folder (default: output/NAME)")
        parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint, if there is one")
        parser.add_argument(
            "--compare", action="store_true", help="also timm's weights of the same architecture, and from scratch"
        )
        parser.add_argument("--print-config", action="store_true", help="print the resolved recipe and stop")
    predict = add_command(tasks, "predict", _predict, "draw what a run's model finds into copies of images")
    predict.add_argument("run", help="run folder of `lgd-timm transfer detect` or `segment`")
    predict.add_argument("images", help="an image, or a folder of them")
    predict.add_argument("out", help="new folder of the drawn images")
    add_device(predict)


def _train(options: argparse.Namespace) -> None:
    from ..transfer.recipe import read_transfer
    from ..transfer.run import compare, transfer
    from ..transfer.tasks import find_task
    from ..utils.device import keep_memory

    recipe = read_transfer(find_task(options.task).RECIPE, options.recipe, overrides=options.overrides)
    if options.print_config:
        print(recipe.to_yaml(), end="")
        return
    keep_memory()
    out = options.output or f"output/{recipe.name}"
    if options.compare:
        scores = compare(options.task, recipe, out=out, resume=options.resume)
    else:
        scores = {recipe.backbone.model: transfer(options.task, recipe, out=out, resume=options.resume)["scores"]}
    if first_rank():
        for name, values in scores.items():
            print(f"{name}: {', '.join(_format_score(key, value) for key, value in values.items()) or 'not evaluated'}")
        print(f"run: {out}")


def _format_score(name: str, value: Any) -> str:
    return f"{name} {value:.2f}" if isinstance(value, float) else f"{name}: {value}"


def _predict(options: argparse.Namespace) -> None:
    from ..transfer.run import predict

    drawn = predict(options.run, options.images, out=options.out, device=options.device)
    print(f"{options.out}: {len(drawn)} pictures")
