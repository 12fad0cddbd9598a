#!/usr/bin/env python3
"""Write Caltech-101 (101 names, 8,677 photographs) as shards to evaluate on, from its archive or the extracted folder.

    python recipes/prepare/caltech101.py caltech-101.zip [data/caltech101]

    data/caltech101/            shards: split val, all images; BACKGROUND_Google is left out
    data/caltech101/names.txt   the names of the labels in their order (folders sorted), `car_side` as "car side"

Source: https://data.caltech.edu/records/mzrjq-6wc02 (caltech-101.zip, which holds 101_ObjectCategories.tar.gz), CC BY
4.0. A tar with the folder 101_ObjectCategories is read, too. Classes have 31 to 800 images (airplanes, motorbikes and
faces have most), so look at the mean over classes beside the accuracy; `Faces` and `Faces_easy` show the same people.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from archives import extracted

from lgd_timm.data.index import ShardSet
from lgd_timm.data.writer import write_shards
from lgd_timm.errors import LGDError, ShardError
from lgd_timm.utils.files import atomic_file

FOLDER = "101_ObjectCategories"
CLUTTER = "BACKGROUND_Google"
CLASSES = 101
# What a text encoder reads where the folder's name is a plural, misspelt, or no name
READ_AS = {
    "Faces": "face",
    "Faces_easy": "human face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
    "airplanes": "airplane",
    "water_lilly": "water lily",
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, help="caltech-101.zip, a tar with 101_ObjectCategories, or this folder")
    parser.add_argument("out", type=Path, nargs="?", default=Path("data/caltech101"))
    options = parser.parse_args(argv)
    try:
        with extracted(options.source, FOLDER) as folder:
            val = prepare(folder, options.out)
    except (LGDError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {len(val)} images to evaluate on, names in {options.out}/names.txt")
    return 0


def prepare(folder: Path, out: Path) -> ShardSet:
    """Write the split and the names. Raises: ShardError for a folder that is not Caltech-101, and as `write_shards`."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and path.name != CLUTTER)
    if len(classes) != CLASSES:
        raise ShardError(
            f"{folder} holds {len(classes)} classes, Caltech-101 has {CLASSES}. Extract the archive again."
        )
    with tempfile.TemporaryDirectory() as scratch:  # of links: nothing is copied
        for path in classes:
            Path(scratch, path.name).mkdir()
            for image in path.glob("image_*.jpg"):
                Path(scratch, path.name, image.name).symlink_to(image.resolve())
        val = write_shards(scratch, out, split="val", name="caltech101")
    with atomic_file(out / "names.txt") as temporary:
        temporary.write_text("".join(f"{class_name(path.name)}\n" for path in classes), encoding="utf-8")
    return val


def class_name(folder: str) -> str:
    """What a text encoder is to read: no underscores, singular, spelt right."""
    return READ_AS.get(folder, folder.replace("_", " "))


if __name__ == "__main__":
    sys.exit(main())
