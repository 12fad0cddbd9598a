"""Where a model can go: one row a target, one module each, whose function writes it. `export` is the door to all of them."""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LGDError
from ..utils.files import atomic_file, atomic_folder, explain_full_disk

if TYPE_CHECKING:
    from .loading import ExportModel


@dataclass(frozen=True)
class Target:
    """`module` of this package has `function(source, path, **options) -> str`, which writes there and says what it wrote.

    `path` is a temporary one, which takes the name that was asked for when all went well. A target with an `ending` writes one
    file, any other fills a new folder. `options` are those of commands.py that it takes; whatever else is given is refused.
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
    "ncnn": Target("ncnn", "for phones and small boards", options=("half", "features", "vocabulary", "templates")),
}


def export(source: ExportModel, out: str | Path, *, to: str, **options: Any) -> str:
    """Write a model for `to`, whole or not at all, and say in a line what was written.

    `source` is what `open_source` opened. Raises: LGDError for an unknown target, for an option that it does not take, for an
    `out` that exists or does not end as its file must, and for what the target can't express; MissingExtra.
    """
    out, target = Path(out), check_export(out, to=to, options=options)
    write = getattr(importlib.import_module(f".{target.module}", __package__), target.function)
    place: AbstractContextManager[Path] = atomic_file(out) if target.ending else atomic_folder(out)
    with explain_full_disk(out), place as temporary:
        said: str = write(source, temporary, **options)
    return said


def check_export(out: str | Path, *, to: str, options: dict[str, Any]) -> Target:
    """The target, if this much can be asked of it; before anything is loaded. Raises: LGDError."""
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
    """An option as it is written on the command line."""
    return f"--{option.replace('_', '-')}"
