"""COCO's and LVIS v1's annotation files, read whole and checked: a wrong one says so before anything is trained."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import LGDError, require
from ...utils.typed_json import LARGEST_ANNOTATIONS, JSONError, read_json

BOX = {"id": int, "image_id": int, "category_id": int, "bbox": list}
LAYOUTS: dict[str, dict[str, dict[str, type]]] = {  # what each entry of a file's lists has
    "coco": {
        "images": {"id": int, "file_name": str, "height": int, "width": int},
        "annotations": BOX,
        "categories": {"id": int, "name": str},
    },
    "lvis": {
        "images": {
            "id": int,
            "coco_url": str,
            "height": int,
            "width": int,
            "neg_category_ids": list,
            "not_exhaustive_category_ids": list,
        },
        "annotations": BOX,
        "categories": {"id": int, "name": str, "frequency": str},
    },
}
LARGEST_SIDE = 1 << 16  # pixels of a picture
SLACK = 10  # how many times the picture's longer side a coordinate may be: real files have some beyond the edge
SEGMENTATION = "polygons [[x, y, ...], ...] or a run-length encoding {size, counts}"

Entry = dict[str, Any]


@dataclass(frozen=True)
class Annotations:
    """What a file says, and where the pictures are.

    A class's label is its place in `classes`, by rising category id.
    """

    path: Path
    folder: Path
    format: str
    categories: tuple[Entry, ...]
    images: tuple[Entry, ...]
    objects: tuple[list[Entry], ...]  # of each image

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(category["name"] for category in self.categories)

    @cached_property
    def labels(self) -> dict[int, int]:
        return {category["id"]: label for label, category in enumerate(self.categories)}

    def file(self, index: int) -> Path:
        return self.folder / _name(self.images[index], self.format)

    def mask(self, annotation: Entry, index: int) -> np.ndarray:
        """An object's pixels, uint8 [H, W] of the picture at `index`.

        Raises:
            LGDError for what can't be decoded, or is of another size.
        """
        image, segmentation = self.images[index], annotation["segmentation"]
        api = require("pycocotools.coco", extra="detect").COCO()
        api.imgs = {image["id"]: image}
        try:
            if isinstance(segmentation, list) and not all(
                len(part) >= 6 and len(part) % 2 == 0 for part in segmentation
            ):
                raise ValueError("a polygon without three corners, or of an odd count of numbers")  # pairs are no boxes
            if (
                isinstance(segmentation, dict)
                and isinstance(runs := segmentation["counts"], list)
                and sum(runs) != math.prod(segmentation["size"])
            ):
                raise ValueError("its runs do not fill its size")  # which pycocotools would not see
            mask: np.ndarray = api.annToMask(annotation)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise LGDError(
                f"{self.path}: annotation {annotation['id']} has no usable segmentation ({error}). Correct it."
            ) from error
        if mask.shape != (image["height"], image["width"]):
            raise LGDError(
                f"{self.path}: annotation {annotation['id']} has a mask of {mask.shape[::-1]} pixels for a picture of "
                f"{(image['width'], image['height'])}. Correct it."
            )
        return mask


def read_annotations(path: str | Path, *, folder: str | Path, format: str, masks: bool) -> Annotations:
    """Read a file of `format` coco or lvis, whose pictures are in `folder`; with `masks`, each object has to have one.

    Raises: LGDError for what is not of that layout, with the layout; MissingExtra.
    """
    path, folder = Path(path), Path(folder)
    content = _read(path, format)
    _check_entries(path, content, format)
    _check_objects(path, content, format, masks=masks)
    objects = defaultdict[int, list[Entry]](list)
    for annotation in content["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    images = tuple(content["images"])
    check_files(folder, [_name(image, format) for image in images], path)
    categories = tuple(sorted(content["categories"], key=lambda category: category["id"]))
    return Annotations(path, folder, format, categories, images, tuple(objects[image["id"]] for image in images))


def _name(image: Entry, format: str) -> str:
    """Of LVIS the last two parts of an address, as its pictures are COCO's, of both train2017 and val2017."""
    return "/".join(image["coco_url"].split("/")[-2:]) if format == "lvis" else image["file_name"]


def _wrong(path: Path, reason: str, format: str) -> LGDError:
    lists = ", ".join(f"{name}: [{{{', '.join(keys)}, ...}}, ...]" for name, keys in LAYOUTS[format].items())
    return LGDError(
        f"{path} {reason}. Expected with data.format {format}: "
        f"JSON {{{lists}}}, boxes as [x, y, width, height] in pixels."
    )


def _read(path: Path, format: str) -> Mapping[str, list[Entry]]:
    if not path.is_file():
        raise _wrong(path, "is no file", format)
    try:
        content: dict[str, Any] = read_json(path, dict, limit=LARGEST_ANNOTATIONS)
    except (OSError, JSONError) as error:
        raise _wrong(path, f"can't be read ({error})", format) from error
    for name in LAYOUTS[format]:
        if not isinstance(entries := content.get(name), list) or not entries:
            raise _wrong(path, f"has no list of {name}", format)
    return content


def _check_entries(path: Path, content: Mapping[str, list[Entry]], format: str) -> None:
    for name, keys in LAYOUTS[format].items():
        for place, entry in enumerate(content[name]):
            fields = entry if isinstance(entry, dict) else {}
            for key, kind in keys.items():
                if isinstance(value := fields.get(key), float) and kind is int and value.is_integer():
                    fields[key] = int(value)  # as pandas writes 96.0
                elif value is not None and not isinstance(value, kind):
                    wrong = f"{name}[{place}].{key} is {value!r:.50}, a {type(value).__name__}"
                    raise _wrong(path, f"has the wrong type: {wrong}, where {kind.__name__} is expected", format)
            if missing := [key for key in keys if fields.get(key) is None]:
                raise _wrong(
                    path,
                    f"has an entry without {', '.join(missing)}, {name}[{place}]{_other_format(fields, format)}",
                    format,
                )
        for place, entry in enumerate(content[name]):
            for key in ("id", "image_id", "category_id", "height", "width"):
                low, high = (1, LARGEST_SIDE) if key in ("height", "width") else (-(2**63), 2**63 - 1)
                if key in entry and key in keys and (isinstance(entry[key], bool) or not low <= entry[key] <= high):
                    raise _wrong(path, f"has {key} {entry[key]!r:.40} in {name}[{place}]", format)
        ids = {entry["id"] for entry in content[name]}
        if len(ids) != len(content[name]):
            raise _wrong(path, f"gives the same id to several {name}", format)
    if format == "coco":
        return
    if unknown := {category["frequency"] for category in content["categories"]} - {"r", "c", "f"}:
        raise _wrong(path, f"has a category of frequency {unknown.pop()!r}, which is none of r, c, f", format)


def _other_format(entry: Entry, format: str) -> str:
    other = "lvis" if format == "coco" else "coco"
    return (
        f"; it looks like {other}, so set data.format {other}"
        if LAYOUTS[other]["images"].keys() <= entry.keys()
        else ""
    )


def _check_objects(path: Path, content: Mapping[str, list[Entry]], format: str, *, masks: bool) -> None:
    images = {entry["id"]: entry for entry in content["images"]}
    categories = {entry["id"] for entry in content["categories"]}
    for annotation in content["annotations"]:
        name, box = f"has an annotation, id {annotation['id']},", annotation["bbox"]
        if annotation["image_id"] not in images:
            raise _wrong(path, f"{name} of the unknown image {annotation['image_id']}", format)
        if annotation["category_id"] not in categories:
            raise _wrong(path, f"{name} of the unknown category {annotation['category_id']}", format)
        image = images[annotation["image_id"]]
        bound = SLACK * max(image["height"], image["width"])
        if not (len(box) == 4 and _are_within(box, bound)):
            raise _wrong(path, f"{name} whose bbox is {ascii(box)[:100]}", format)
        if masks and not _is_segmentation(annotation.get("segmentation")):
            raise _wrong(
                path,
                f"{name} without segmentation, which is {SEGMENTATION}; boxes alone do for head.kind faster_rcnn",
                format,
            )
        if masks and not _fits(annotation["segmentation"], image, bound):
            raise LGDError(
                f"{path}: annotation {annotation['id']} has no usable segmentation (it does not fit its picture of "
                f"{image['width']} x {image['height']} pixels). Correct it."
            )


def _are_within(numbers: list[Any], bound: float) -> bool:
    """Whether all are numbers of at most `bound`: pycocotools takes memory by them, or crashes."""
    return all(
        isinstance(x, (int, float)) and not isinstance(x, bool) and -bound <= x <= bound for x in numbers
    )  # a NaN is not


def _fits(segmentation: Any, image: Entry, bound: float) -> bool:
    """Whether pycocotools can take a polygon's numbers or a run-length encoding for a picture of that size."""
    if isinstance(segmentation, list):
        return all(_are_within(polygon, bound) for polygon in segmentation)
    size, counts, pixels = segmentation["size"], segmentation["counts"], image["height"] * image["width"]
    if not isinstance(size, list) or len(size) != 2 or not _are_within(size, SLACK * LARGEST_SIDE):
        return False
    if math.prod(size) > LARGEST_SIDE**2 or any(not isinstance(side, int) or side < 0 for side in size):
        return False
    if isinstance(counts, str):
        return len(counts) <= SLACK * (pixels + 10) and _is_whole(counts, math.prod(size))
    return isinstance(counts, list) and all(
        isinstance(run, int) and not isinstance(run, bool) and 0 <= run <= LARGEST_SIDE**2 for run in counts
    )


def _is_whole(counts: str, pixels: int) -> bool:
    """Whether COCO's compressed run lengths are well formed and fill so many pixels; pycocotools does not check."""
    runs: list[int] = []
    value = shift = 0
    for letter in counts:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 30:
            return False
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            if runs[-1] < 0:
                return False
            value = shift = 0
    return shift == 0 and sum(runs) == pixels


def _is_segmentation(value: Any) -> bool:
    if isinstance(value, dict):
        return {"size", "counts"} <= value.keys()
    return isinstance(value, list) and bool(value) and all(isinstance(polygon, list) for polygon in value)


def check_files(folder: Path, names: Sequence[str], path: Path) -> None:
    """Check that all pictures are there. A folder is listed once, which is quicker than to ask for each file.

    Args:
        folder: in which the names begin.
        names: of the pictures.
        path: the file that names them, for messages.

    Raises:
        LGDError: some are missing; the message counts them and names the first.
    """
    there: dict[Path, set[str]] = {}
    missing = []
    for name in names:
        file = folder / name
        if file.parent not in there:
            there[file.parent] = set(os.listdir(file.parent)) if file.parent.is_dir() else set()
        if file.name not in there[file.parent]:
            missing.append(name)
    if missing:
        raise LGDError(
            f"{folder} lacks {len(missing)} of the {len(names)} pictures that {path} names, such as {missing[0]!r}. "
            "Give the folder in which these names begin."
        )
