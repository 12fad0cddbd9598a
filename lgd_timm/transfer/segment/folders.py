"""Find the images and label images of a segmentation data set, and the names of its classes in the data's own files.

ADE20K's scene parsing release has a table of names, the plain layout a text file. Cityscapes' download has names in its
polygon files only, and nothing that says which classes are evaluated: that is taken from torchvision's copy of the
official table, and the polygon files are checked against it.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
from PIL import Image
from torchvision.datasets import Cityscapes

from ...data.decode import upright_size
from ...data.image_folder import is_image
from ...errors import LGDError, ShardError
from ...utils.typed_json import JSONError, read_json
from .recipe import SegmentData

log = logging.getLogger(__name__)

IGNORED = 255  # class index of pixels that are neither learned nor scored
UNKNOWN = -1
# Label images, spread over the split, whose pixels are checked before a run begins; the others are checked when used.
CHECKED = 50

Numbers = npt.NDArray[np.int16]  # [256]: the class index of each value of a label image, or IGNORED, or UNKNOWN
# Pillow raises these, and struct.error, for files that are damaged
READ_ERRORS = (OSError, SyntaxError, ValueError, TypeError, struct.error, Image.DecompressionBombError)


class Pair(NamedTuple):
    """An image file and its label image."""

    picture: Path
    label: Path


@dataclass(frozen=True)
class Split:
    """A split: image files with their label images, and the class index of each value in a label image."""

    layout: str
    classes: tuple[str, ...]
    numbers: Numbers
    pairs: Sequence[Pair]


class Layout(NamedTuple):
    """How a data set's files lie in its folder."""

    expected: str
    pictures: Callable[[Path, str], list[Path]]  # (root, split)
    label: Callable[[Path, Path], Path]  # (root, picture)
    classes: Callable[[Path], tuple[tuple[str, ...], Numbers]]


def open_split(data: SegmentData, split: str) -> Split:
    """Open a split and check it: the sizes and modes of all images, and the values in some of the label images.

    Raises:
        LGDError: names the file that is wrong, and the layout that was expected.
    """
    layout, root = LAYOUTS[data.layout], Path(data.root)
    with _expecting(data.layout):
        pictures = layout.pictures(root, split)
        if not pictures:
            raise LGDError(f"{root} holds no pictures of split {split!r}")
        pairs = [Pair(picture, layout.label(root, picture)) for picture in pictures]
        classes, numbers = layout.classes(root)
        if not 2 <= len(classes) <= IGNORED:
            raise LGDError(f"{root} has a list of {len(classes)} classes, where 2 to {IGNORED} make sense")
        for pair in pairs:
            _check_pair(pair)
        found = Split(data.layout, classes, numbers, pairs)
        checked = range(0, len(pairs), max(1, len(pairs) // CHECKED))
        present = set[int]()
        for index in checked:
            present.update(np.unique(_read(found, index)).tolist())
            if data.layout == "cityscapes":
                _check_polygons(pairs[index].label)
    _log_missing_classes(found, split, present, checked=len(checked))
    return found


def _log_missing_classes(found: Split, split: str, present: set[int], *, checked: int) -> None:
    """Log the classes that no label picture has, if all were checked, or only one class occurs at all."""
    missing = [name for index, name in enumerate(found.classes) if index not in present]
    alone = len(present - {IGNORED}) < 2
    if not missing or (checked < len(found.pairs) and not alone):
        return
    some = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
    means = (
        f" {IGNORED}, which they have, means no class: it is neither learned nor scored." if IGNORED in present else ""
    )
    log.warning(
        "%s: no pixel of %s in %d of %d label pictures.%s%s",
        split,
        some,
        checked,
        len(found.pairs),
        means,
        " Write the class's index instead, 0, 1, ... as in classes.txt." if alone and found.layout == "folder" else "",
    )


def read_label(split: Split, index: int) -> npt.NDArray[np.uint8]:
    """Read a label image as class indices, uint8 [H, W], 255 where ignored. Raises: LGDError, as `open_split`."""
    with _expecting(split.layout):
        return _read(split, index)


@contextmanager
def _expecting(layout: str) -> Iterator[None]:
    """Add the expected layout to an LGDError."""
    try:
        yield
    except LGDError as error:
        raise LGDError(f"{error}. data.layout {layout} expects {LAYOUTS[layout].expected}") from error


def _read(split: Split, index: int) -> npt.NDArray[np.uint8]:
    file = split.pairs[index].label
    try:
        with Image.open(file) as image:
            values = np.asarray(image)
    except READ_ERRORS as error:
        raise LGDError(f"{file} can't be read as a picture ({error})") from error
    indices = split.numbers[values]
    if (unknown := indices == UNKNOWN).any():
        raise LGDError(
            f"{file} has the number {values[unknown][0]}, which is none of the {len(split.classes)} classes'"
        )
    return indices.astype(np.uint8)


def _check_pair(pair: Pair) -> None:
    if not pair.label.is_file():
        raise LGDError(f"{pair.picture} has no labels: {pair.label} is not there")
    try:
        size = upright_size(pair.picture)
    except ShardError as error:
        raise LGDError(f"{pair.picture} can't be read as a picture ({error})") from error
    try:
        with Image.open(pair.label) as image:  # the header alone
            label_size, mode = image.size, image.mode
    except READ_ERRORS as error:
        raise LGDError(f"{pair.label} can't be read as a picture ({error})") from error
    if mode not in ("L", "P"):
        raise LGDError(
            f"{pair.label} holds pixels of kind {mode!r}, "
            "where a number a pixel of 8 bits is expected (kind 'L' or 'P')"
        )
    if size != label_size:
        (width, height), (label_width, label_height) = size, label_size
        raise LGDError(
            f"{pair.picture} has {width} x {height} pixels and its labels {pair.label} have {label_width} x "
            f"{label_height}"
        )


class _Polygon(TypedDict):
    label: str


class _Polygons(TypedDict):
    objects: list[_Polygon]


def _check_polygons(label: Path) -> None:
    """Check that the names in the polygon file beside a label image, where there is one, are Cityscapes'."""
    file = label.with_name(label.name.replace("labelIds.png", "polygons.json"))
    if not file.is_file():
        return
    try:
        names = {entry["label"].removesuffix("group") for entry in read_json(file, _Polygons)["objects"]}
    except (OSError, JSONError) as error:
        raise LGDError(f"{file} is no polygon file of Cityscapes ({error})") from error
    if strange := names - {row.name.removesuffix("group") for row in Cityscapes.classes}:
        raise LGDError(f"{file} has names that are not Cityscapes' ({', '.join(sorted(strange))})")


def _files(folder: Path, pattern: str) -> list[Path]:
    if not folder.is_dir():
        raise LGDError(f"{folder} is not there")
    return sorted(folder.glob(pattern))


def _numbers(indices: dict[int, int]) -> Numbers:
    numbers = np.full(256, UNKNOWN, dtype=np.int16)
    for number, index in indices.items():
        numbers[number] = index
    return numbers


def _cityscapes_label(root: Path, picture: Path) -> Path:
    folder = root / "gtFine" / picture.parent.relative_to(root / "leftImg8bit")
    return folder / picture.name.replace("_leftImg8bit.png", "_gtFine_labelIds.png")


def _cityscapes_classes(_: Path) -> tuple[tuple[str, ...], Numbers]:
    evaluated = sorted(
        (row for row in Cityscapes.classes if not row.ignore_in_eval and row.id >= 0), key=lambda row: row.train_id
    )
    ignored = {row.id: IGNORED for row in Cityscapes.classes if row.id >= 0}
    numbers = _numbers({**ignored, **{row.id: row.train_id for row in evaluated}})
    return tuple(row.name for row in evaluated), numbers


def _ade20k_classes(root: Path) -> tuple[tuple[str, ...], Numbers]:
    """Read lines of `Idx, Ratio, Train, Val, Name`, separated by tabs; value 0 of a label image means no class."""
    file = root / "objectInfo150.txt"
    header, *rows = ([cell.strip() for cell in line.split("\t")] for line in _lines(file))
    if header[0] != "Idx" or header[-1] != "Name" or [row[0] for row in rows] != [str(n + 1) for n in range(len(rows))]:
        raise LGDError(f"{file} is no table of classes 1, 2, ... with columns from Idx to Name, parted by tabs")
    return tuple(row[-1] for row in rows), _numbers({0: IGNORED, **{n + 1: n for n in range(min(len(rows), 255))}})


def _folder_classes(root: Path) -> tuple[tuple[str, ...], Numbers]:
    names = tuple(line.strip() for line in _lines(root / "classes.txt"))
    if len(set(names)) != len(names):
        raise LGDError(f"{root / 'classes.txt'} has a name twice")
    return names, _numbers({**{n: n for n in range(min(len(names), IGNORED))}, IGNORED: IGNORED})


def _lines(file: Path) -> list[str]:
    try:
        lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise LGDError(f"{file}, the names of the classes, can't be read ({error})") from error
    if not lines:
        raise LGDError(f"{file}, the names of the classes, is empty")
    return lines


def _folder_pictures(root: Path, split: str) -> list[Path]:
    folder = root / "images" / ("" if split == "all" else split)
    return [path for path in _files(folder, "*") if is_image(path.name)]


LAYOUTS: dict[str, Layout] = {
    "cityscapes": Layout(
        "ROOT/leftImg8bit/SPLIT/CITY/*_leftImg8bit.png and ROOT/gtFine/SPLIT/CITY/*_gtFine_labelIds.png, "
        "of splits train and val.",
        pictures=lambda root, split: _files(root / "leftImg8bit" / split, "*/*_leftImg8bit.png"),
        label=_cityscapes_label,
        classes=_cityscapes_classes,
    ),
    "ade20k": Layout(
        "ROOT/images/SPLIT/*.jpg, ROOT/annotations/SPLIT/*.png and ROOT/objectInfo150.txt, "
        "of splits training and validation: what ADEChallengeData2016.zip holds.",
        pictures=lambda root, split: _files(root / "images" / split, "*.jpg"),
        label=lambda root, picture: root / "annotations" / picture.parent.name / f"{picture.stem}.png",
        classes=_ade20k_classes,
    ),
    "folder": Layout(
        "ROOT/images/SPLIT/*.jpg (or other pictures), "
        "ROOT/labels/SPLIT/*.png with a class index each pixel and 255 where there is none, "
        "and ROOT/classes.txt with a name a line; without split folders for split 'all'.",
        pictures=_folder_pictures,
        label=lambda root, picture: root / "labels" / picture.relative_to(root / "images").with_suffix(".png"),
        classes=_folder_classes,
    ),
}
