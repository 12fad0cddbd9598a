"""`lgd-timm vl pretrain | adapt | distill | evaluate | caption | answer | publish`: vision-language models."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..utils.schema import GridSide
from .common import Parser, add_command, add_device, add_group, first_rank, number, plain, print_json

if TYPE_CHECKING:
    from ..vision_language.recipe import VLRecipe
    from .common import Commands

MODEL = "published folder or run folder of `lgd-timm vl`, hub://ORG/NAME, or a name of `lgd-timm list`"


def add_vl(commands: Commands) -> None:
    """Add the parsers."""
    _, group = add_group(commands, "vl", "small models that caption and answer, distilled", metavar="COMMAND")
    _add_run(group, "pretrain", _pretrain, "train a model without a teacher")
    adapt = _add_run(group, "adapt", _adapt, "train a teacher on its student's boxes")
    adapt.add_argument("--student", required=True, help="recipe of the student, whose regions the teacher learns")
    _add_run(group, "distill", _distill, "train a student with the teacher that its recipe names")
    evaluate = add_command(group, "evaluate", _evaluate, "score a model on its recipe's evaluation data")
    evaluate.add_argument("model", help=MODEL)
    evaluate.add_argument("--recipe", help="recipe whose data.val is taken (default: the model's own)")
    add_device(evaluate)
    caption = add_command(group, "caption", _caption, "describe pictures")
    caption.add_argument("model", help=MODEL)
    caption.add_argument("images", help="an image, or a folder of them")
    _add_looking(caption)
    answer = add_command(group, "answer", _answer, "answer a question about a picture")
    answer.add_argument("model", help=MODEL)
    answer.add_argument("image", help="an image")
    answer.add_argument("question", help="such as 'what is at the left ?'")
    _add_looking(answer)
    publish = add_command(group, "publish", _publish, "write a run's model as a folder of float16 weights")
    publish.add_argument("run", help="run folder of `lgd-timm vl`")
    publish.add_argument("out", help="new folder")
    publish.add_argument(
        "--compare", action="append", default=[], metavar="RUN", help="another run, whose scores the card has beside"
    )


def _add_run(group: Commands, name: str, run: Any, text: str) -> Parser:
    parser = add_command(group, name, run, text, overrides=True)
    parser.add_argument("recipe", help="YAML recipe, such as those in recipes/vl/")
    parser.add_argument("--output", help="run folder (default: output/NAME)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint, if there is one")
    parser.add_argument("--print-config", action="store_true", help="print the resolved recipe and stop")
    return parser


def _add_looking(parser: Parser) -> None:
    parser.add_argument(
        "--grid", type=number(GridSide), help="look at the cells of an N x N grid (default: the model's own regions)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_device(parser)


def _read(options: argparse.Namespace) -> VLRecipe:
    from ..vision_language.recipe import read_vl_recipe

    return read_vl_recipe(options.recipe, overrides=options.overrides)


def _pretrain(options: argparse.Namespace) -> None:
    from ..vision_language.run import pretrain

    _run(options, _read(options), pretrain)


def _adapt(options: argparse.Namespace) -> None:
    from ..vision_language.recipe import read_vl_recipe
    from ..vision_language.run import adapted, pretrain

    _run(options, adapted(_read(options), student=read_vl_recipe(options.student)), pretrain)


def _distill(options: argparse.Namespace) -> None:
    from ..vision_language.run import distill

    _run(options, _read(options), distill)


def _run(options: argparse.Namespace, recipe: VLRecipe, train: Any) -> None:
    from ..utils.device import keep_memory

    if options.print_config:
        print(recipe.to_yaml(), end="")
        return
    keep_memory()
    out = options.output or f"output/{recipe.name}"
    metrics = train(recipe, out=out, resume=options.resume)
    if first_rank():
        print(f"{recipe.name}: {_format(metrics['scores'])}")
        print(f"run: {out}")


def _format(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in scores.items()) or "not evaluated"


def _evaluate(options: argparse.Namespace) -> None:
    from ..vision_language.recipe import read_vl_recipe
    from ..vision_language.run import evaluate

    recipe = None if options.recipe is None else read_vl_recipe(options.recipe)
    print(f"{options.model}: {_format(evaluate(options.model, recipe, device=options.device))}")


def _caption(options: argparse.Namespace) -> None:
    from ..vision_language.describe import caption

    found = caption(options.model, options.images, grid=options.grid, device=options.device)
    if options.json:
        print_json({str(file): text for file, text in found.items()})
        return
    for file, text in found.items():
        print(f"{plain(file.name)}: {plain(text)}")


def _answer(options: argparse.Namespace) -> None:
    from ..vision_language.describe import answer

    found = answer(options.model, options.image, options.question, grid=options.grid, device=options.device)
    if options.json:
        print_json({"question": options.question, "answer": found})
    else:
        print(plain(found))


def _publish(options: argparse.Namespace) -> None:
    from ..vision_language.run import publish

    print(publish(options.run, options.out, compare=options.compare))
