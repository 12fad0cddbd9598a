"""`lgd-timm export`: what it is told, and what it prints."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from ..export.targets import TARGETS, check_export, export, flag

Add = Callable[..., argparse.ArgumentParser]

# What some targets can be told, as argparse takes it. None has a default here: the target's function has it.
OPTIONS: dict[str, dict[str, Any]] = {
    "prefix": {"help": "in front of every key, such as 'backbone.' for a whole detector's checkpoint (default: none)"},
    "data": {
        "help": "shard folder, or address of one, of pictures like those that will be seen; labels are not needed"
    },
    "split": {"help": "which split of it (default: train)"},
    "calibration_images": {"type": int, "metavar": "N", "help": "so many of its pictures (default: 512)"},
    "half": {"action": "store_true", "help": "weights as float16, in half the space"},
    "features": {"action": "store_true", "help": "pooled features, and no classifier"},
    "vocabulary": {"help": "answers by other names: a list, a file, folder:PATH, ... (default: the model's own)"},
    "templates": {"help": "prompt templates for --vocabulary: none, simple, openai, a file (default: none)"},
}


def add_export(commands: Any, add: Add) -> None:
    """The parser. `add` makes one, of (commands, name, function, text)."""
    parser = add(commands, "export", _export, "write a model for another library or runtime")
    parser.add_argument(
        "model", help="published folder, hub://ORG/NAME[@REV], name as lgd_mobilenetv2, run folder, or any timm model"
    )
    parser.add_argument("out", help="new file, or folder where a target writes several")
    parser.add_argument("--to", required=True, metavar="TARGET", help=f"one of {', '.join(TARGETS)}; see below")
    parser.add_argument(
        "--random-weights", action="store_true", help="a timm model before any training, to try things out"
    )
    for name, facts in OPTIONS.items():
        takers = ", ".join(to for to, target in TARGETS.items() if name in target.options)
        parser.add_argument(flag(name), default=argparse.SUPPRESS, **{**facts, "help": f"{takers}: {facts['help']}"})
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    width = max(map(len, TARGETS))
    rows = (f"  {to:{width}}  {target.text} ({target.ending or 'folder'})" for to, target in TARGETS.items())
    parser.epilog = "\n".join(("targets:", *rows))


def _export(options: argparse.Namespace) -> None:
    from ..export.loading import open_source

    given = {name: getattr(options, name) for name in OPTIONS if hasattr(options, name)}
    check_export(options.out, to=options.to, options=given)
    said = export(
        open_source(options.model, pretrained=not options.random_weights), options.out, to=options.to, **given
    )
    print(f"{options.out}: {said}")
