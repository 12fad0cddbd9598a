#!/usr/bin/env python3
"""Write Tiny-ImageNet (200 names, 64 px) as shards, from its archive, a tar of part of it, or the extracted folder.

    python recipes/prepare/tiny_imagenet.py tiny-imagenet-200.zip [data/tiny_imagenet] [--per-class 200]

    data/tiny_imagenet/            shards: split train (10 shards), split val (10,000 images less the repeated ones)
    data/tiny_imagenet/names.txt   the first synonym of each class, in the order of the labels (synsets sorted)

With --per-class N, images 0 to N - 1 of each class are learned from: 200 of the 500 for what our record measures.

Source: http://cs231n.stanford.edu/tiny-imagenet-200.zip (248 MB). The images are ImageNet's, whose terms allow research
only. Validation images whose bytes also stand in the training split are left out, and named. The complete training set
holds seven of them; of a tar with part of it, only those in this part can be found: of images 0 to 199 of each class
they are three, val_2157, val_5819 and val_9920.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from archives import extracted

from lgd_timm.data.index import ShardSet
from lgd_timm.data.writer import write_shards
from lgd_timm.errors import LGDError, ShardError
from lgd_timm.utils.files import atomic_file

FOLDER = "tiny-imagenet-200"
CLASSES = 200
SHARDS = 10  # of the training split: one is a tenth of the labels


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, help="tiny-imagenet-200.zip, a tar of the same layout, or the folder")
    parser.add_argument("out", type=Path, nargs="?", default=Path("data/tiny_imagenet"))
    parser.add_argument("--per-class", type=int, default=None, help="training images of each class; all if None")
    options = parser.parse_args(argv)
    try:
        with extracted(options.source, FOLDER) as folder:
            train, val, left_out = prepare(folder, options.out, per_class=options.per_class)
    except (LGDError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {len(train)} images to learn from, {len(val)} to evaluate on")
    print(f"Left out of the evaluation, as training images have the same bytes: {', '.join(left_out) or 'none'}")
    return 0


def prepare(folder: Path, out: Path, *, per_class: int | None = None) -> tuple[ShardSet, ShardSet, list[str]]:
    """Write both splits and the names. Returns the splits and the names of the validation images that were left out.

    Raises: ShardError for a folder that is not Tiny-ImageNet, and as `write_shards`.
    """
    synsets = sorted((folder / "wnids.txt").read_text(encoding="utf-8").split())
    training = {synset: training_images(folder / "train" / synset / "images", per_class) for synset in synsets}
    if len(synsets) != CLASSES or not all(training.values()):
        raise ShardError(f"{folder} lacks training images of some of the {CLASSES} classes. Extract the archive again.")
    labels = validation_labels(folder)
    seen = {digest(path) for paths in training.values() for path in paths}
    repeated = [name for name in labels if digest(folder / "val" / "images" / name) in seen]
    with tempfile.TemporaryDirectory() as scratch:  # of links: nothing is copied
        for synset, paths in training.items():
            link(paths, Path(scratch, "train", synset))
        for name in labels.keys() - set(repeated):
            link([folder / "val" / "images" / name], Path(scratch, "val", labels[name]))
        per_shard = -(-sum(len(paths) for paths in training.values()) // SHARDS)
        train = write_shards(
            Path(scratch, "train"), out, split="train", name="tiny_imagenet", samples_per_shard=per_shard
        )
        val = write_shards(Path(scratch, "val"), out, split="val", name="tiny_imagenet")
    with atomic_file(out / "names.txt") as temporary:
        temporary.write_text("".join(f"{name}\n" for name in class_names(folder, synsets)), encoding="utf-8")
    return train, val, repeated


def training_images(folder: Path, per_class: int | None) -> list[Path]:
    """A class's images n01443537_0.JPEG to n01443537_499.JPEG, or those of the first numbers."""
    return [
        path for path in sorted(folder.glob("*.JPEG")) if per_class is None or int(path.stem.split("_")[1]) < per_class
    ]


def validation_labels(folder: Path) -> dict[str, str]:
    """File name -> synset, in the order of val_annotations.txt."""
    lines = (folder / "val" / "val_annotations.txt").read_text(encoding="utf-8").splitlines()
    return {name: synset for name, synset, *_ in (line.split("\t") for line in lines)}


def class_names(folder: Path, synsets: Sequence[str]) -> list[str]:
    """The first of each synset's synonyms in words.txt."""
    lines = (folder / "words.txt").read_text(encoding="utf-8").splitlines()
    words = dict(re.split(r"\t", line, maxsplit=1) for line in lines)
    return [words[synset].partition(",")[0].strip() for synset in synsets]


def digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def link(paths: Sequence[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        (folder / path.name).symlink_to(path.resolve())


if __name__ == "__main__":
    sys.exit(main())
