"""Small copies of COCO's and LVIS v1's layouts, to the key.

Coloured rectangles on noise, in every form that masks come in.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

Dict = dict[str, Any]

COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}
IDS = {"red": 12, "green": 3, "blue": 7}  # with gaps, and in no order
SIZE = (96, 64)  # pixels, width and height
URL = "http://images.cocodataset.org"


def draw_pictures(folder: Path, *, count: int, seed: int = 0) -> list[list[tuple[str, list[int]]]]:
    """PNG files of two rectangles each; returns names and boxes (x, y, w, h) of each picture."""
    folder.mkdir(parents=True)
    draw, found = np.random.default_rng(seed), []
    for number in range(count):
        pixels = draw.integers(90, 160, (SIZE[1], SIZE[0], 3)).astype(np.uint8)
        objects = []
        for half in range(2):
            name = list(COLOURS)[draw.integers(3)]
            w, h = draw.integers(16, 40, 2).tolist()
            x, y = int(draw.integers(0, 48 - w + 1)) + 48 * half, int(draw.integers(0, SIZE[1] - h + 1))
            pixels[y : y + h, x : x + w] = COLOURS[name]
            objects.append((name, [x, y, w, h]))
        Image.fromarray(pixels).save(folder / f"{number + 1:012d}.png")
        found.append(objects)
    return found


def segmentation(box: list[int], form: str) -> Any:
    x, y, w, h = box
    if form == "polygon":
        return [[float(value) for value in (x, y, x + w, y, x + w, y + h, x, y + h)]]
    mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    mask[y : y + h, x : x + w] = 1
    if form == "compressed":
        encoded = rle.encode(np.asfortranarray(mask))
        return {"size": encoded["size"], "counts": encoded["counts"].decode()}
    runs, value = [], 0
    flat = mask.flatten(order="F").tolist()
    while flat:
        length = next((place for place, pixel in enumerate(flat) if pixel != value), len(flat))
        runs.append(length)
        flat, value = flat[length:], 1 - value
    return {"size": [SIZE[1], SIZE[0]], "counts": runs}


def content(pictures: list[list[tuple[str, list[int]]]]) -> Dict:
    """What COCO's file would say of these."""
    forms = ("polygon", "compressed", "uncompressed")
    images: list[Dict] = [
        {
            "license": 4,
            "file_name": f"{number:012d}.png",
            "coco_url": f"{URL}/val2017/{number:012d}.png",
            "height": SIZE[1],
            "width": SIZE[0],
            "date_captured": "2013-11-14 17:02:52",
            "flickr_url": "http://example.invalid/picture.jpg",
            "id": number,
        }
        for number in range(1, len(pictures) + 1)
    ]
    annotations: list[Dict] = []
    for number, objects in enumerate(pictures, start=1):
        for name, box in objects:
            form = forms[len(annotations) % 3]
            annotations.append(
                {
                    "segmentation": segmentation(box, form),
                    "area": float(box[2] * box[3]),
                    "iscrowd": 0,
                    "image_id": number,
                    "bbox": [float(value) for value in box],
                    "category_id": IDS[name],
                    "id": 900 + len(annotations),
                }
            )
    categories = [{"supercategory": "colour", "id": number, "name": name} for name, number in IDS.items()]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


def as_lvis(coco: Dict) -> Dict:
    """The same in LVIS v1's layout.

    Other keys, no crowds, and for each picture what is known to be absent and what was not finished.
    """
    images = [{key: value for key, value in image.items() if key != "file_name"} for image in coco["images"]]
    for image in images:
        held = {entry["category_id"] for entry in coco["annotations"] if entry["image_id"] == image["id"]}
        image |= {"neg_category_ids": sorted(set(IDS.values()) - held), "not_exhaustive_category_ids": []}
    annotations = [{key: value for key, value in entry.items() if key != "iscrowd"} for entry in coco["annotations"]]
    categories = [
        {
            "id": entry["id"],
            "name": entry["name"],
            "frequency": "rcf"[place],
            "synset": f"{entry['name']}.n.01",
            "synonyms": [],
            "def": "",
        }
        | {"image_count": 1, "instance_count": 1}
        for place, entry in enumerate(coco["categories"])
    ]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def write_coco(folder: Path, *, count: int = 6) -> Dict:
    """`folder/{images/,instances.json}`; returns the file's content."""
    coco = content(draw_pictures(folder / "images", count=count))
    write(folder / "instances.json", coco)
    return coco


def write_lvis(folder: Path, *, count: int = 6) -> Dict:
    """`folder/{val2017/,lvis.json}`; returns the file's content."""
    lvis = as_lvis(content(draw_pictures(folder / "val2017", count=count)))
    write(folder / "lvis.json", lvis)
    return lvis


def tiny_recipe(folder: Path, **data: Any) -> Dict:
    """A detector that trains in seconds, on `write_coco(folder)`: 2 epochs of 3 steps."""
    files = {"train": "instances.json", "train_images": "images", "val": "instances.json", "val_images": "images"}
    paths = {key: str(folder / name) for key, name in files.items()}
    return {
        "name": "tiny",
        "backbone": {"model": "test_efficientnet", "pretrained": False, "norms": "trained"},
        "schedule": {"epochs": 2, "milestones": [1], "warmup_steps": 2},
        "data": {**paths, "batch_size": 2, "train_sizes": [48, 64], "size": 64, "max_size": 128, **data},
        "head": {"channels": 16, "regions": 32},
        "run": {"device": "cpu", "workers": 0, "log_every": 1},
    }
