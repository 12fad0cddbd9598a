#!/usr/bin/env python3
"""Write shards of Caltech-256 as the paper splits it: 60 images of each class for training, the rest for evaluation.

    python recipes/prepare/caltech256.py 256_ObjectCategories data/ct256 [--seed 0]

    data/ct256/            shards: split train (15,360 images), split val (the rest)
    data/ct256/names.txt   the names of the labels in their order: `001.ak47` is "ak47",
                           `063.electric-guitar-101` is "electric guitar"

Class 257, clutter, is left out. The paper's split is unseeded; this one is a pure function of the seed and the files'
names. The spelling of the names is ours, as the paper's list is not known: edit names.txt to try another.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lgd_timm.data.index import ShardSet
from lgd_timm.data.subset import draw
from lgd_timm.data.writer import write_shards
from lgd_timm.errors import LGDError, ShardError
from lgd_timm.utils.files import atomic_file

CLASSES = 256
PER_CLASS = 60
HYPHENATED = {"t-shirt", "yo-yo"}  # all other hyphens of the folders stand for spaces
SOURCE = "https://data.caltech.edu/records/nyy15-4j048 (256_ObjectCategories.tar, 1.2 GB)"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images", type=Path, help="256_ObjectCategories, as the archive has it")
    parser.add_argument("out", type=Path, nargs="?", default=Path("data/ct256"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    try:
        train, val = prepare(options.images, options.out, seed=options.seed)
    except (LGDError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    print(
        f"{options.out}: {len(train)} images to learn from, {len(val)} to evaluate on, names in {options.out}/names.txt"
    )
    return 0


def prepare(images: Path, out: Path, *, seed: int = 0) -> tuple[ShardSet, ShardSet]:
    """Write both splits and the names.

    Raises: ShardError for a folder that is not Caltech-256, and as `write_shards`.
    """
    folders = class_folders(images)
    with tempfile.TemporaryDirectory() as scratch:  # of links: nothing is copied
        for folder in folders:
            pictures = {path.name: path for path in folder.iterdir() if re.fullmatch(r"\d{3}_\d{4}\.jpg", path.name)}
            if len(pictures) <= PER_CLASS:
                raise ShardError(
                    f"{folder} holds {len(pictures)} images, not more than {PER_CLASS}. Extract the archive again."
                )
            chosen = set(draw(pictures, PER_CLASS, seed=seed))
            for name, path in pictures.items():
                link = Path(scratch, "train" if name in chosen else "val", folder.name, name)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.resolve())
        train, val = (write_shards(Path(scratch, split), out, split=split, name="ct256") for split in ("train", "val"))
    with atomic_file(out / "names.txt") as temporary:
        temporary.write_text("".join(f"{class_name(folder.name)}\n" for folder in folders), encoding="utf-8")
    return train, val


def class_folders(images: Path) -> list[Path]:
    """`001.ak47` to `256.toad`, in order. Raises: ShardError where one is missing."""
    folders = {path.name[:3]: path for path in images.glob("[0-9][0-9][0-9].*") if path.is_dir()}
    missing = [number for number in (f"{i:03d}" for i in range(1, CLASSES + 1)) if number not in folders]
    if missing:
        raise ShardError(
            f"{images} lacks {len(missing)} of Caltech-256's {CLASSES} class folders, the first is {missing[0]}.*. "
            f"Give the folder 256_ObjectCategories of the archive: {SOURCE}"
        )
    return [folders[f"{i:03d}"] for i in range(1, CLASSES + 1)]


def class_name(folder: str) -> str:
    """What a text encoder is to read: no number, no mark of the classes that Caltech-101 has too, spaces."""
    name = folder.partition(".")[2].removesuffix("-101")
    return name if name in HYPHENATED else name.replace("-", " ")


if __name__ == "__main__":
    sys.exit(main())
