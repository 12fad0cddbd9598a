"""recipes/prepare/samples.py on small copies of what the packages hold: one layout comes out, which training reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lgd_timm.transfer.detect.annotations import Annotations, read_annotations
from recipes.prepare import samples
from tests.helpers.detect_data import SIZE, content, draw_pictures, write


@pytest.fixture
def out(tmp_path: Path) -> Path:
    for part in ("images", "labels"):
        (tmp_path / "out" / part).mkdir(parents=True)
    return tmp_path / "out"


def prepared(prepare: Callable[[Path, Path], None], package: Path, out: Path, *, masks: bool = True) -> Annotations:
    prepare(package, out)
    return read_annotations(out / "instances.json", folder=out / "images", format="coco", masks=masks)


def labels(out: Path, stem: str) -> np.ndarray:
    return np.asarray(Image.open(out / "labels" / f"{stem}.png"))


def names(out: Path) -> list[str]:
    return (out / "classes.txt").read_text().splitlines()


def test_coco(tmp_path: Path, out: Path) -> None:
    """Both files become one; a segment's number is its own picture's, and of what has none the label is 255."""
    source = tmp_path / "labelbox-7.17.0" / "tests" / "data" / "assets" / "coco"
    whole = content(draw_pictures(source / "images", count=2))
    for number, name in enumerate(("instances.json", "rle.json")):
        kept = [entry for entry in whole["annotations"] if entry["image_id"] == number + 1]
        write(source / name, {**whole, "images": whole["images"][number : number + 1], "annotations": kept})
    (source / "masks").mkdir()
    segments = []
    for number in (1, 2):
        colours = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
        colours[:, 10:20], colours[:, 20:30] = (7, 0, 0), (1, 2, 0)  # segments 7 and 513
        Image.fromarray(colours).save(source / "masks" / f"{number:012d}.png")
        held = [{"id": 7, "category_id": 3 if number == 1 else 90}, {"id": 513, "category_id": 12}]
        segments.append({"file_name": f"{number:012d}.png", "segments_info": held})
    categories = [
        {"id": 3, "name": "green"},
        {"id": 7, "name": "blue"},
        {"id": 12, "name": "red"},
        {"id": 90, "name": "sky"},
    ]
    write(source / "panoptic.json", {"annotations": segments, "categories": categories})

    found = prepared(samples.prepare_coco, tmp_path, out)
    assert len(found.images) == 2
    assert [len(objects) for objects in found.objects] == [2, 2]
    assert names(out) == ["green", "red", "sky"]
    assert [labels(out, f"{number:012d}")[0, [0, 10, 20]].tolist() for number in (1, 2)] == [[255, 0, 1], [255, 2, 1]]


def test_pennfudan(tmp_path: Path, out: Path) -> None:
    source = tmp_path / "icedata" / "datasets" / "pennfudan" / "sample_data"
    for part in ("PNGImages", "PedMasks"):
        (source / part).mkdir(parents=True)
    Image.new("RGB", (30, 20)).save(source / "PNGImages" / "a.png")
    people = np.zeros((20, 30), np.uint8)
    people[2:10, 3:8], people[5:20, 10:14] = 1, 2
    Image.fromarray(people).save(source / "PedMasks" / "a_mask.png")

    found = prepared(samples.prepare_pennfudan, tmp_path, out)
    assert found.classes == ("pedestrian",)
    assert [entry["bbox"] for entry in found.objects[0]] == [[3, 2, 5, 8], [10, 5, 4, 15]]
    assert np.array_equal(found.mask(found.objects[0][1], 0), people == 2)
    assert names(out) == ["background", "pedestrian"]
    assert np.array_equal(labels(out, "a"), people > 0)


def test_pets(tmp_path: Path, out: Path) -> None:
    source = tmp_path / "icedata" / "datasets" / "pets" / "sample_data" / "annotations"
    for part in ("images", "xmls", "trimaps"):
        (source / part).mkdir(parents=True)
    Image.new("RGB", (30, 20)).save(source / "images" / "pug_1.jpg")
    trimap = np.full((20, 30), 2, np.uint8)
    trimap[4:9, 4:9], trimap[5:8, 5:8] = 3, 1
    Image.fromarray(trimap).save(source / "trimaps" / "pug_1.png")
    box = "<bndbox><xmin>6</xmin><ymin>7</ymin><xmax>8</xmax><ymax>8</ymax></bndbox>"
    (source / "xmls" / "pug_1.xml").write_text(f"<annotation><object><name>dog</name>{box}</object></annotation>")

    found = prepared(samples.prepare_pets, tmp_path, out, masks=False)
    assert found.classes == ("cat head", "dog head")
    assert [(entry["bbox"], entry["category_id"]) for entry in found.objects[0]] == [([5, 6, 3, 2], 2)]
    assert names(out) == ["background", "cat", "dog"]
    assert [labels(out, "pug_1")[row, row] for row in (0, 4, 6)] == [0, 255, 2]
