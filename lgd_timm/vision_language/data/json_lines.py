"""Samples from a file of JSON lines: any data, written in the plainest form.

    {"image": "1.jpg", "captions": ["a red square beside a dog"], "boxes": [[0, 0, 32, 32]], "tags": ["dog"]}
    {"image": "1.jpg", "question": "what is beside the dog ?", "answers": {"red square": 1.0}}

Only `image` is required, a path relative to the file. `key` is the line's number where it is left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from PIL import Image

from ...data.decode import read_image
from ...errors import LGDError, RecipeError, ShardError
from ...utils.files import fingerprint, sha256_of
from ...utils.schema import Coordinate, Share, build
from .sample import Sample


@dataclass(frozen=True)
class JsonLines:
    """Samples of a file of JSON lines."""

    kind: ClassVar[str] = "json_lines"
    path: str  # the file; its images' paths are relative to it

    def open(self) -> JsonLinesDataset:
        """Read the file, but not its images. Raises: LGDError that names the line."""
        return JsonLinesDataset(Path(self.path))


@dataclass(frozen=True)
class _Line:
    """What a line may hold."""

    image: str
    key: str | None = None
    boxes: list[list[Coordinate]] | None = None
    tags: list[str] | None = None
    captions: list[str] | None = None
    question: str | None = None
    answers: dict[str, Share] | None = None


class JsonLinesDataset:
    """The samples of a file of JSON lines. Raises: LGDError where it can't be read."""

    def __init__(self, path: Path) -> None:
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")  # JSON may hold other ends of lines
        except (OSError, UnicodeDecodeError) as error:
            raise LGDError(f"{path} can't be read ({error}). Give a file of JSON lines.") from error
        self._folder = path.parent
        written = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
        self._lines = [_read(line, where=f"{path}:{number}") for number, line in written]
        self._numbers = [number for number, _ in written]
        if not written:
            raise LGDError(f"{path} is empty. Write one object a line.")
        sizes = [_size(self._folder / line.image) for line in self._lines]
        self.fingerprint = fingerprint("json_lines", sha256_of(path), sizes)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Sample:
        line = self._lines[index]
        return Sample(
            key=line.key or str(self._numbers[index]),
            image=partial(_load, self._folder / line.image),
            boxes=None if line.boxes is None else torch.tensor(line.boxes, dtype=torch.float32).view(-1, 4),
            tags=tuple(line.tags or ()),
            captions=tuple(line.captions or ()),
            question=line.question,
            answers=line.answers,
            image_key=line.image,
        )


def _read(text: str, *, where: str) -> _Line:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LGDError(f"{where} is no JSON ({error}). Write one object a line.") from error
    try:
        line: _Line = build(_Line, data, where="the line")
    except RecipeError as error:
        raise LGDError(f"{where}: {' '.join(str(error).split())}") from error
    if any(len(box) != 4 or box[0] >= box[2] or box[1] >= box[3] for box in line.boxes or ()):
        raise LGDError(f"{where}: boxes must have four numbers each: left, top, right, bottom, in pixels.")
    return line


def _size(path: Path) -> int:
    """Bytes of an image's file. Raises: LGDError where it is missing."""
    try:
        return path.stat().st_size
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise LGDError(f"{str(path)!r} is missing ({reason}). Correct the path, relative to the JSON lines.") from error


def _load(path: Path) -> Image.Image:
    try:
        return Image.fromarray(read_image(path).permute(1, 2, 0).numpy())
    except ShardError as error:
        raise LGDError(f"{path} can't be read as an image ({error}). Fetch it again.") from error
