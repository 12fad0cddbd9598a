#!/usr/bin/env python3
"""Write shards of ImageNet-1k (ILSVRC 2012) and draw the paper's subsets of 13 and 128 images a class, with a seed.

    python recipes/prepare/imagenet.py TRAIN VAL data/in1k [--devkit ILSVRC2012_devkit_t12] [--seed 0]

    TRAIN     n01440764/, ...: one folder for each of the 1,000 synsets
    VAL       the same; or the 50,000 images as the archive has them, flat, and then --devkit says which is what
              (needs scipy)

    data/in1k/                    shards: split train (1,281,167 images), split val (50,000)
    data/in1k/subset_13.json      "1 %": the keys of 13 images of each class, for
                                  `lgd-timm evaluate linear-probe --subset`
    data/in1k/subset_128.json     "10 %"

Labels are the synsets in sorted order, in which timm and open_clip have ImageNet's names too. Images are not changed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from timm.data import ImageNetInfo

from lgd_timm.data import open_shards
from lgd_timm.data.index import INFO, read_info
from lgd_timm.data.subset import draw_labels, labelled_keys
from lgd_timm.data.writer import write_shards
from lgd_timm.errors import LGDError, ShardError, require

SUBSETS = (13, 128)  # images a class; what the paper calls 1 % and 10 %
SOURCE = "https://www.image-net.org/download.php (ILSVRC2012, an account is needed)"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("train", type=Path, help="folder of the training images' synset folders")
    parser.add_argument("val", type=Path, help="folder of the validation images, in synset folders or flat")
    parser.add_argument("out", type=Path, nargs="?", default=Path("data/in1k"))
    parser.add_argument("--devkit", type=Path, help="ILSVRC2012_devkit_t12, for a flat folder of validation images")
    parser.add_argument("--seed", type=int, default=0, help="of the subsets")
    options = parser.parse_args(argv)
    try:
        prepare(options.train, options.val, options.out, devkit=options.devkit, seed=options.seed)
    except (LGDError, ImportError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0


def prepare(train: Path, val: Path, out: Path, *, devkit: Path | None = None, seed: int = 0) -> None:
    """Write what is not there yet. Raises: ShardError for folders that are not ImageNet, and as `write_shards`."""
    there = read_info(out)["splits"] if (out / INFO).exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        if "val" not in there:  # first, as it is soon known to be wrong
            check_synsets(train)
            folder = val if any(path.is_dir() for path in _entries(val)) else sort_flat(val, devkit, Path(scratch))
            check_synsets(folder)
            write_shards(folder, out, split="val", name="in1k")
        if "train" not in there:
            check_synsets(train)
            write_shards(train, out, split="train", name="in1k", samples_per_shard=10_000)
    shards = open_shards(out, split="train")
    keys, labels = labelled_keys(shards)
    for per_class in SUBSETS:
        subset = draw_labels(keys, labels, per_class=per_class, seed=seed, class_names=shards.class_names)
        subset.write(out / f"subset_{per_class}.json")
        print(f"{out}/subset_{per_class}.json: {len(subset)} images")
    for split in ("train", "val"):
        print(f"{out}: {len(open_shards(out, split=split))} images, split {split!r}")


def check_synsets(folder: Path) -> None:
    """Raises: ShardError unless a folder holds one folder for each synset and no other."""
    wanted, found = (
        set(ImageNetInfo("imagenet-1k").label_names()),
        {path.name for path in _entries(folder) if path.is_dir()},
    )
    if missing := sorted(wanted - found):
        raise ShardError(
            f"{folder} lacks {len(missing)} of ImageNet's {len(wanted)} synset folders, the first is {missing[0]}. "
            f"Extract the archives, each synset's own too: {SOURCE}"
        )
    if astray := sorted(found - wanted):
        raise ShardError(
            f"{folder} has a folder {astray[0]!r}, which is none of ImageNet's synsets. Move it elsewhere."
        )


def sort_flat(folder: Path, devkit: Path | None, scratch: Path) -> Path:
    """Links to flat validation images in synset folders.

    Raises: ShardError where images or the devkit's files are missing.
    """
    if devkit is None:
        raise ShardError(
            f"{folder} has no synset folders. Say which image is what: --devkit ILSVRC2012_devkit_t12, from {SOURCE}"
        )
    truth = devkit / "data" / "ILSVRC2012_validation_ground_truth.txt"
    if not truth.is_file():
        raise ShardError(f"{truth} is missing. Give the extracted devkit, from {SOURCE}")
    synsets, images = _synset_of_number(devkit / "data" / "meta.mat"), {path.stem: path for path in _entries(folder)}
    for position, number in enumerate(truth.read_text().split(), start=1):
        name = f"ILSVRC2012_val_{position:08d}"
        if name not in images:
            raise ShardError(f"{folder} lacks {name}.JPEG. Extract ILSVRC2012_img_val.tar again, from {SOURCE}")
        link = scratch / synsets[int(number)] / images[name].name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(images[name].resolve())
    return scratch


def _synset_of_number(meta: Path) -> dict[int, str]:
    """The devkit's own numbers, which are not in the order of the synsets.

    Of its synsets only the leaves are classes.
    """
    rows = require("scipy.io", extra="bench").loadmat(str(meta), squeeze_me=True)["synsets"]
    return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows if int(row["num_children"]) == 0}


def _entries(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ShardError(f"{folder} is not a folder. Give the extracted archive: {SOURCE}")
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


if __name__ == "__main__":
    sys.exit(main())
