"""Small copies of the structure of Cityscapes and ADE20K, and a plain folder; a pixel's colour says its label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lgd_timm.transfer.segment import SegmentRecipe
from lgd_timm.utils.schema import build

Label = npt.NDArray[np.uint8]

COLOURS = np.array([[30, 30, 30], [220, 40, 40], [40, 40, 220]], dtype=np.uint8)
NAMES = ("ground", "red", "blue")

# The release's file, with the spaces that it has, shortened to four rows.
OBJECT_INFO = """Idx\tRatio\tTrain\tVal\tName
1\t0.1576\t11664\t1172\twall
2\t0.1072\t6046\t612\tbuilding, edifice
3\t0.0231\t1906\t199\tbed\x20
4 \t0.0074\t709\t75\twater
"""


def blocks(draw: np.random.Generator, height: int, width: int) -> Label:
    """Two rectangles on the ground: class indices [H, W]."""
    label = np.zeros((height, width), dtype=np.uint8)
    for index in (1, 2):
        top, left = int(draw.integers(0, height // 2)), int(draw.integers(0, width // 2))
        label[top : top + height // 2, left : left + width // 2] = index
    return label


def save(picture: Path, label: Path, values: Label, *, numbers: Label | None = None) -> None:
    """A picture whose colours are its labels', and these, as `numbers` writes them."""
    for file in (picture, label):
        file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(COLOURS[values]).save(picture)
    Image.fromarray(values if numbers is None else numbers[values]).save(label)


def make_folder(
    root: Path, *, count: int = 6, height: int = 48, width: int = 64, split: str = "", seed: int = 0
) -> Path:
    draw = np.random.default_rng(seed)
    for n in range(count):
        save(root / "images" / split / f"{n}.png", root / "labels" / split / f"{n}.png", blocks(draw, height, width))
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n")
    return root


def make_cityscapes(root: Path) -> Path:
    """road, car and (ignored) parking, as labelIds; with the other files that lie beside them."""
    draw = np.random.default_rng(0)
    for split, city in (("train", "aachen"), ("train", "zurich"), ("val", "lindau")):
        for n in range(2):
            stem = f"{city}_00000{n}_000019"
            folder = root / "gtFine" / split / city
            label = folder / f"{stem}_gtFine_labelIds.png"
            picture = root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
            save(picture, label, blocks(draw, 32, 64), numbers=np.array([7, 26, 9], dtype=np.uint8))
            for other in ("color", "instanceIds"):
                (folder / f"{stem}_gtFine_{other}.png").write_bytes(label.read_bytes())
            objects = [
                {"label": name, "polygon": [[0, 0], [1, 0], [1, 1]]} for name in ("road", "car", "cargroup", "parking")
            ]
            polygons = {"imgHeight": 32, "imgWidth": 64, "objects": objects}
            (folder / f"{stem}_gtFine_polygons.json").write_text(json.dumps(polygons))
    return root


def make_ade20k(root: Path) -> Path:
    """other (0), building (2) and water (4)."""
    draw = np.random.default_rng(0)
    for split, name in (("training", "train"), ("validation", "val")):
        for n in range(1, 4):
            stem = f"ADE_{name}_{n:08d}"
            label = root / "annotations" / split / f"{stem}.png"
            save(
                root / "images" / split / f"{stem}.jpg",
                label,
                blocks(draw, 48, 64),
                numbers=np.array([0, 2, 4], dtype=np.uint8),
            )
    (root / "objectInfo150.txt").write_text(OBJECT_INFO)
    (root / "sceneCategories.txt").write_text("ADE_train_00000001 airport_terminal\n")
    return root


def recipe_of(root: Path, **changed: Any) -> SegmentRecipe:
    """A recipe that runs in seconds: test_resnet from scratch, 2 epochs of 3 steps."""
    fields: dict[str, dict[str, Any]] = {
        "backbone": {"model": "test_resnet", "pretrained": False, "norms": "trained"},
        "data": {"root": str(root), "train_split": "all", "val_split": "all", "batch_size": 2, "crop": [32, 32]},
        "head": {"kind": "fpn"},
        "schedule": {"epochs": 2, "warmup_steps": 0, "name": "poly"},
        "run": {"device": "cpu", "workers": 0, "log_every": 1},
    }
    merged = {name: {**fields.get(name, {}), **values} for name, values in changed.items()}
    recipe: SegmentRecipe = build(SegmentRecipe, {"name": "tiny", **fields, **merged}, where="")
    return recipe
