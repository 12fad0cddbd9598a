"""List the export targets, and write a model for one of them.

Importing this module imports no target and no model code, as the command line reads the table for its help.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LGDError
from ..utils.files import atomic_file, atomic_folder, explain_full_disk

if TYPE_CHECKING:  # it imports evaluate and publish, which the command line's help need not wait for
    from .loading import ExportModel


@dataclass(frozen=True)
class Target:
    """One target: the module that writes it, and what the command line says of it.

    The module's function is called as `function(model, path, **options) -> str`: it writes to `path`, a temporary one
    that takes its final name when all went well, and returns a line about what it wrote.

    Attributes:
        module: of this package.
        text: one line for the help.
        ending: of the one file that is written; empty where a folder is.
        options: those of `cli.export.OPTIONS` that it takes; others are refused.
        function: of the module.
    """

    module: str
    text: str
    ending: str = ""
    options: tuple[str, ...] = ()
    function: str = "export"


TARGETS: dict[str, Target] = {
    "torchvision": Target(
        "torchvision", "the keys of torchvision's own model, classifier included", ending=".safetensors"
    ),
    "mmdet": Target(
        "openmmlab",
        "a backbone with the keys of MMDetection",
        ending=".safetensors",
        options=("prefix",),
        function="mmdet",
    ),
    "mmseg": Target(
        "openmmlab",
        "a backbone with the keys of MMSegmentation",
        ending=".safetensors",
        options=("prefix",),
        function="mmseg",
    ),
    "open_clip": Target("open_clip", "the image tower with its teacher's text tower, as open_clip loads them"),
    "onnx": Target(
        "onnx",
        "bytes in, answers out, for any batch size",
        ending=".onnx",
        options=("features", "vocabulary", "templates"),
    ),
    "onnx-int8": Target(
        "onnx_int8",
        "the same in int8, calibrated on pictures",
        ending=".onnx",
        options=("data", "split", "calibration_images", "vocabulary", "templates"),
    ),
    "web": Target(
        "web", "a page that classifies pictures in a browser", options=("vocabulary", "templates", "runtime")
    ),
    "ncnn": Target("ncnn", "for phones and small boards", options=("half", "features", "vocabulary", "templates")),
}


def export(model: ExportModel, out: str | Path, *, to: str, **options: Any) -> str:
    """Write a model for a target, whole or not at all.

    Args:
        model: from `loading.open_export_model`.
        out: the new file or folder.
        to: a key of `TARGETS`.
        **options: those that the target takes, by the names of the command line's options.

    Returns:
        A line that says what was written.

    Raises:
        LGDError: the target is unknown or does not take an option, `out` exists or has another ending than the
            target's, or the target can't express the model.
        MissingExtra: a library of the target is not installed.
    """
    out, target = Path(out), check_export(out, to=to, options=options)
    write = getattr(importlib.import_module(f".{target.module}", __package__), target.function)
    writing: AbstractContextManager[Path] = atomic_file(out) if target.ending else atomic_folder(out)
    with explain_full_disk(out), writing as temporary:
        line: str = write(model, temporary, **options)
    return line


def check_export(out: str | Path, *, to: str, options: dict[str, Any]) -> Target:
    """Check target, options and output path before a model is loaded.

    Args:
        out: the new file or folder.
        to: a key of `TARGETS`.
        options: what the target is to be given.

    Returns:
        The target.

    Raises:
        LGDError: as `export`, but for what only the model can tell.
    """
    out = Path(out)
    if to not in TARGETS:
        raise LGDError(f"--to {to!r} is no target. Choose one of {', '.join(TARGETS)}.")
    target = TARGETS[to]
    if foreign := [name for name in options if name not in target.options]:
        known = ", ".join(map(flag, target.options)) or "none"
        raise LGDError(
            f"--to {to} takes no {', '.join(map(flag, foreign))} (options that it takes: {known}). Leave it out."
        )
    if out.exists():
        raise LGDError(f"{out} exists. Choose another name, or remove it.")
    if out.suffix != target.ending and target.ending:
        raise LGDError(f"{out} must end in {target.ending}, as that is what --to {to} writes.")
    return target


def flag(option: str) -> str:
    """Write the name of an option as the command line takes it: `calibration_images` -> `--calibration-images`."""
    return f"--{option.replace('_', '-')}"
