"""The parser of the `lgd-timm` command, and its entry point.

A command parses, calls one function of the package and prints what it made; each group of commands has a file of its
own. Bad input ends with one line on standard error and status 2. A command may return another status than 0.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import select
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import LGDError, MissingExtra, WorkerError
from ..utils.signals import INTERRUPTED, STATUS, Stopped, ending_in_order
from .auto import add_auto
from .common import Parser, first_rank, parse_overrides, plain
from .completion import add_completion
from .demo import add_demo
from .evaluate import add_evaluate
from .export import add_export
from .hub import add_hub
from .predict import add_predict
from .recipes import add_recipes
from .report import add_report
from .shards import add_shards
from .teacher import add_teacher
from .training import add_training
from .transfer import add_transfer
from .vl import add_vl

NOBODY_READS = 141  # 128 + SIGPIPE, as of other programs
NOISY = ("sentence_transformers", "httpx", "httpx2", "timm", "onnx_ir", "onnxscript")  # libraries that log each call


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the words after the program's name; None: those of this process.

    Returns:
        The exit status: 0, the command's own, 1 after a worker process died, 2 for bad input, 130 after Ctrl-C,
        141 where nobody reads what it prints, 143 after SIGTERM.

    Raises:
        SystemExit: status 2 for words that the parser refuses, 0 after --help and --version.
    """
    options = argparse.Namespace(go_on="")
    try:
        with ending_in_order():
            _escape_what_stdout_cant_spell()
            parser = build_parser()
            _, rest = parser.parse_known_args(argv, options)
            _set_up_logging()
            if rest and not options.takes_overrides:
                parser.error(f"unrecognized arguments: {' '.join(rest)}")
            if options.takes_overrides:
                options.overrides = parse_overrides(rest)
            status: int | None = options.command(options)
            if sys.stdout is not None:  # it is None where it was closed
                sys.stdout.flush()  # here, where a full disk is one line
    except (Stopped, KeyboardInterrupt) as stopped:
        if first_rank():
            print(f"lgd-timm: {plain(str(stopped) or 'stopped by Ctrl-C.')} {options.go_on}".rstrip(), file=sys.stderr)
        return STATUS if isinstance(stopped, Stopped) else INTERRUPTED
    except (LGDError, MissingExtra, OSError) as error:  # OSError: a full disk, a folder that is a file
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return NOBODY_READS
        if isinstance(error, OSError):
            _drop_what_stdout_holds()
        print(f"lgd-timm: error: {plain(_message(error), lines=True)}", file=sys.stderr)
        return 1 if isinstance(error, WorkerError) else 2
    return status or 0


def build_parser() -> Parser:
    """Build the parser of all commands. It imports neither torch nor timm."""
    parser = Parser(prog="lgd-timm", description="Small timm backbones that know your category names.")
    parser.add_argument("--version", action="version", version=f"lgd-timm {__version__}")
    add_completion(parser)
    parser.advice = {
        "invalid choice: 'subset'": "subsets are drawn with `lgd-timm shards subset SHARDS FILE --per-class N`."
    }
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_auto(commands)
    add_shards(commands)
    add_training(commands)
    add_teacher(commands)
    add_evaluate(commands)
    add_predict(commands)
    add_demo(commands)
    add_hub(commands)
    add_transfer(commands)
    add_vl(commands)
    add_export(commands)
    add_report(commands)
    add_recipes(commands)
    return parser


def _escape_what_stdout_cant_spell() -> None:
    """Let names of any alphabet be printed in a C locale and on old consoles, as stderr does by itself."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _nobody_reads() -> bool:
    """Whether whoever read standard output has gone, as `head` does."""
    if sys.stdout is None or not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    gone = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    if gone:
        _drop_what_stdout_holds()
    return gone


def _drop_what_stdout_holds() -> None:
    """Drop what standard output can't take, which Python would try again, with a traceback, when it ends."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _set_up_logging() -> None:
    """Log to standard error: what the first rank reports, and every rank's warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain("%(message)s"))
    logging.basicConfig(level=logging.INFO if first_rank() else logging.WARNING, handlers=[handler])
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


class _Plain(logging.Formatter):
    """Escapes control characters of what is logged: keys and names of samples are foreign text."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record), lines=True)


def _message(error: Exception) -> str:
    """Return an error's own text. A DataLoader's worker puts its traceback before it; the last line has the message."""
    text = str(error).strip()
    return text.splitlines()[-1].partition(": ")[2] if text.startswith("Caught ") else text
