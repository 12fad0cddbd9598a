"""`lgd-timm report`: one HTML page about runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .common import add_command

if TYPE_CHECKING:
    from .common import Commands


def add_report(commands: Commands) -> None:
    """Add the parser."""
    parser = add_command(commands, "report", _report, "one page about runs: numbers, curves, images")
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run folder of `lgd-timm distill`, or published folder; runs that differ by their seed alone are grouped",
    )
    parser.add_argument("--data", help="shard folder of the images that are shown (default: the recipe's data.shards)")
    parser.add_argument("--split", help="which split of them (default: the recipe's data.val_split, else val)")
    parser.add_argument("--out", default="output/report", help="folder; an earlier report in it is replaced")


def _report(options: argparse.Namespace) -> None:
    from ..evaluate.report import report

    print(f"report: {report(options.runs, data=options.data, split=options.split, out=options.out)}")
