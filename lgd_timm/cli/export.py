"""`lgd-timm export`: write a model for another library or runtime."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..utils.schema import Count
from .common import add_command, number

if TYPE_CHECKING:
    from .common import Commands

# What some targets can be told, as argparse takes it. None has a default here: the target's function has it.
OPTIONS: dict[str, dict[str, Any]] = {
    "prefix": {"help": "text before every key, such as 'backbone.' for a whole detector's checkpoint (default: none)"},
    "data": {
        "help": "shard folder, or address of one, of images like those that the model will see; labels are not needed"
    },
    "split": {"help": "split of --data that is read (default: train)"},
    "calibration_images": {
        "type": number(Count),
        "metavar": "N",
        "help": "images of --data that are read (default: 512)",
    },
    "half": {"action": "store_true", "help": "weights as float16, in half the space"},
    "features": {"action": "store_true", "help": "pooled features, and no classifier"},
    "vocabulary": {"help": "class names to answer with: a list, a file, folder:PATH, ... (default: the model's own)"},
    "runtime": {
        "metavar": "FILE",
        "help": "tarball of `npm pack onnxruntime-web` (default: fetched from the npm registry once)",
    },
    "templates": {"help": "prompt templates for --vocabulary: none, simple, openai, a file (default: none)"},
}


def add_export(commands: Commands) -> None:
    """Add the parser."""
    from ..export.targets import TARGETS, flag

    parser = add_command(commands, "export", _export, "write a model for another library or runtime")
    parser.add_argument(
        "model", help="published folder, hub://ORG/NAME[@REV], name as lgd_mobilenetv2, run folder, or any timm model"
    )
    parser.add_argument("out", help="new file, or folder where a target writes several")
    parser.add_argument("--to", required=True, metavar="TARGET", help=f"one of {', '.join(TARGETS)}; see below")
    parser.add_argument(
        "--random-weights", action="store_true", help="a timm model before any training, to try things out"
    )
    for name, settings in OPTIONS.items():
        targets = ", ".join(to for to, target in TARGETS.items() if name in target.options)
        parser.add_argument(
            flag(name), default=argparse.SUPPRESS, **{**settings, "help": f"{targets}: {settings['help']}"}
        )
    width = max(map(len, TARGETS))
    rows = (f"  {to:{width}}  {target.text} ({target.ending or 'folder'})" for to, target in TARGETS.items())
    parser.epilog = "\n".join(("targets:", *rows))


def _export(options: argparse.Namespace) -> None:
    from ..export.loading import open_export_model
    from ..export.targets import check_export, export

    given = {name: getattr(options, name) for name in OPTIONS if hasattr(options, name)}
    check_export(options.out, to=options.to, options=given)
    written = export(
        open_export_model(options.model, pretrained=not options.random_weights), options.out, to=options.to, **given
    )
    print(f"{options.out}: {written}")
