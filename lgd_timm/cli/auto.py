"""`lgd-timm auto`: a folder of pictures to a published student in one command."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .common import add_command

if TYPE_CHECKING:
    from ..training.auto import AutoResult
    from .common import Commands


def add_auto(commands: Commands) -> None:
    """Add the parser."""
    text = "make a student of a folder of pictures, in one"
    parser = add_command(commands, "auto", _auto, text, go_on="The same command goes on.")
    parser.add_argument("images", metavar="PHOTOS", help="folder of pictures, with one folder a class, or flat")
    parser.add_argument(
        "--names", help="names: a text file with one a line, '[a, b]', ... (default: those of the class folders)"
    )
    parser.add_argument(
        "--templates", help="prompt templates of the names: none, simple, openai, a file (default: the teacher's)"
    )
    parser.add_argument(
        "--teacher", default="conse-lite2", help="short name (`lgd-timm teacher list`), or a recipe with a teacher"
    )
    parser.add_argument("--student", default="lgd_mobilenetv2", help="timm model")
    parser.add_argument("--time", default="4m", help="for teaching and distilling: 90s, 4m, 1h")
    parser.add_argument(
        "--from-scratch", action="store_true", help="start from random weights, also where published ones are at hand"
    )
    parser.add_argument("--out", help="folder of the results (default: output/STUDENT.FOLDER)")
    parser.add_argument("--device", default="auto", help="torch device; auto: cuda, else mps, else cpu")


def _auto(options: argparse.Namespace) -> None:
    from ..training.auto import distill_folder
    from ..utils.device import keep_memory

    keep_memory()
    result = distill_folder(
        options.images,
        names=options.names,
        teacher=options.teacher,
        student=options.student,
        templates=options.templates,
        time=options.time,
        from_scratch=options.from_scratch,
        out=options.out,
        device=options.device,
    )
    print("\n".join(_lines(result)))


def _lines(result: AutoResult) -> list[str]:
    scores = []
    if result.student is not None:
        shares = {"student": result.student, "teacher": result.teacher, "chance": result.chance}
        told = (f"{name} {share:.1f} %" for name, share in shares.items() if share is not None)
        scores = [f"right on held-out images: {', '.join(told)}"]
    return [
        *scores,
        f"published: {result.published}",
        f"report:    {result.report}",
        f"recipe:    {result.recipe}, for a longer run with lgd-timm distill",
        f"try:       lgd-timm predict {result.published} PICTURES",
    ]
