"""`lgd-timm --print-completion bash | zsh`: a script that completes commands, options and files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ..errors import MissingExtra, require

SHELLS = ("bash", "zsh")


def add_completion(parser: argparse.ArgumentParser) -> None:
    """Add the option."""
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=SHELLS,
        metavar="SHELL",
        help="print completion for bash or zsh, and stop",
    )


class _PrintCompletion(argparse.Action):
    """Print the script and exit. It is static, so completing never starts Python."""

    def __init__(self, option_strings: Sequence[str], dest: str, **settings: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, default=argparse.SUPPRESS, **settings)

    def __call__(
        self, parser: argparse.ArgumentParser, options: argparse.Namespace, shell: Any, option: str | None = None
    ) -> None:
        try:
            shtab = require("shtab", extra="completion")
        except MissingExtra as error:
            parser.error(str(error))
        _offer_files(parser, shtab.FILE)
        print(shtab.complete(parser, shell=shell))
        parser.exit()


def _offer_files(parser: argparse.ArgumentParser, files: dict[str, str]) -> None:
    """Complete file names wherever an argument is text: most are files, folders or addresses."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _offer_files(command, files)
        elif action.nargs != 0 and action.type is None and not action.choices:
            action.complete = files  # type: ignore[attr-defined]  # which shtab reads
