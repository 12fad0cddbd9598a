"""What every command shares: a parser whose help shows defaults, `add_command`, recipe overrides, tables, JSON."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from ..errors import RecipeError
from ..utils.schema import build

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction["Parser"]  # generic for type checkers only

Command = Callable[[argparse.Namespace], int | None]
T = TypeVar("T")

WIDTH = 120  # columns of a printed table
AGAIN = "Nothing half-written is left; run the same command again."  # after a signal
RESUME = "Go on with --resume."


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Append `(default: ...)` to the help of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        silent = action.default is None or action.default is False or action.default in ([], argparse.SUPPRESS)
        if silent or "(default" in text or not action.option_strings:
            return text
        default = action.default if isinstance(action.default, list) else [action.default]
        return f"{text} (default: {' '.join(map(str, default))})"


class Parser(argparse.ArgumentParser):
    """A parser with our help format, exact option names, and advice where a command was renamed.

    Attributes:
        advice: part of an error message -> the line that is printed instead of the usage and that message.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": HelpFormatter, "allow_abbrev": False, **settings})
        self.advice: Mapping[str, str] = {}

    def error(self, message: str) -> NoReturn:
        for part, advice in self.advice.items():
            if part in message:
                self.exit(2, f"lgd-timm: error: {advice}\n")
        super().error(message)


def number(hint: Any) -> Callable[[str], Any]:
    """Make the `type` of an option whose number has bounds.

    Args:
        hint: of `utils.schema`, such as `Count`, `Share` or `int | None` with a range.

    Returns:
        A function that reads the number; argparse prints why one is refused.
    """

    def read(text: str) -> Any:
        try:
            plain = int(text) if re.fullmatch("[+-]?[0-9]{1,18}", text) else text
            return build(hint, plain, where="the value")
        except RecipeError as error:
            raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None

    return read


def add_group(commands: Commands, name: str, text: str, *, metavar: str) -> tuple[Parser, Commands]:
    """Add a command that only holds others, such as `lgd-timm shards`.

    Args:
        commands: the subparsers that it joins.
        name: the word that is typed.
        text: its line in the help above it.
        metavar: what the second word is called in a usage line.

    Returns:
        The parser of the group, and the subparsers that its commands join.
    """
    parser = commands.add_parser(name, help=text, description=_sentence(text))
    return parser, parser.add_subparsers(required=True, metavar=metavar)


def add_command(
    commands: Commands, name: str, run: Command, text: str, *, overrides: bool = False, go_on: str = AGAIN
) -> Parser:
    """Add a command.

    Args:
        commands: the subparsers that it joins.
        name: the word that is typed.
        run: called with the parsed options; what it returns is the exit status, None means 0.
        text: its line in the help above it.
        overrides: whether `--field.sub value` pairs override the fields of its recipe.
        go_on: a sentence for whoever stopped it by a signal: how it goes on.

    Returns:
        The parser, for the command's own arguments.
    """
    more = " Recipe fields are overridden with --field.sub value." if overrides else ""
    parser = commands.add_parser(name, help=text, description=_sentence(text) + more)
    parser.set_defaults(command=run, takes_overrides=overrides, go_on=go_on)
    return parser


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def add_device(parser: Parser) -> None:
    """Add `--device`."""
    parser.add_argument("--device", default="auto", help="torch device; auto: cuda, else mps, else cpu")


def parse_overrides(words: Sequence[str]) -> dict[str, str]:
    """Read the recipe fields that a command line overrides.

    Args:
        words: `--a.b value` or `--a.b=value`, any number of them.

    Returns:
        Field -> value as text: {"a.b": "value"}.

    Raises:
        RecipeError: for a value without a field, or a field without a value.
    """
    overrides, words = {}, list(words)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise RecipeError(f"{word!r} stands alone; recipe fields are overridden with --field.sub value.")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not words or words[0].startswith("--"):
                raise RecipeError(f"{word} lacks a value.")
            value = words.pop(0)
        overrides[key] = value
    return overrides


def first_rank() -> bool:
    """Return whether this process prints: the first of those that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def plain(text: object, *, lines: bool = False) -> str:
    """Escape the control characters of foreign text, which could move the cursor or forge lines of a terminal.

    Args:
        text: what is printed.
        lines: whether it may have several lines.
    """
    return "".join(c if c.isprintable() or (lines and c in "\n\t") else ascii(c)[1:-1] for c in str(text))


def print_json(value: Any) -> None:
    """Print a value as JSON, one key a line."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, width: int = WIDTH) -> list[str]:
    """Lay out text in columns.

    Args:
        head: one title a column.
        rows: cells; the first column is aligned to the left, and so are those that hold words.
        width: columns of the terminal. A first cell that is too long for it gets a line of its own.

    Returns:
        The lines, without trailing spaces. None is longer than `width`, if no first cell is.
    """
    columns = list(zip(head, *rows, strict=True))
    rest = [max(map(len, column)) for column in columns[1:]]
    room = width - sum(size + 2 for size in rest)
    first = max(len(cell) for cell in columns[0] if len(cell) <= room)
    lines = []
    for cell, *cells in (head, *rows):
        others = "".join(f"  {text:{size}}" for text, size in zip(cells, rest, strict=True))
        lines += [f"{cell:{first}}{others}"] if len(cell) <= first else [cell, f"{'':{first}}{others}"]
    return [line.rstrip() for line in lines]
