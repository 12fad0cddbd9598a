"""COCO's and LVIS's files as training sees them: labels, boxes, masks, how often; and what each wrong file is told."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lgd_timm.errors import LGDError, RecipeError
from lgd_timm.transfer.detect.annotations import Annotations, read_annotations
from lgd_timm.transfer.detect.dataset import DetectionBatch, Pictures, read_picture, repeated
from lgd_timm.transfer.detect.recipe import DetectData
from tests.helpers.detect_data import COLOURS, IDS, SIZE, Dict, segmentation, write, write_coco, write_lvis

CLASSES = ("green", "blue", "red")  # by rising category id


def read(folder: Path, *, format: str = "coco", masks: bool = True) -> Annotations:
    if format == "lvis":
        return read_annotations(folder / "lvis.json", folder=folder, format=format, masks=masks)
    return read_annotations(folder / "instances.json", folder=folder / "images", format=format, masks=masks)


def pictures(annotations: Annotations, *, masks: bool = True, seed: int = 0, **data: Any) -> Pictures:
    settings = {"train_sizes": [64], "size": 64, "max_size": 200, "flip": 0.0, **data}
    return Pictures(annotations, DetectData("", "", **settings), masks=masks, seed=seed)


def inner_colour(image: torch.Tensor, mask: torch.Tensor) -> list[int]:
    """The most common colour within a mask."""
    values, counts = image[:, mask.bool()].T.unique(dim=0, return_counts=True)
    return [int(value) for value in values[counts.argmax()]]


@pytest.mark.parametrize("format", ["coco", "lvis"])
def test_labels_boxes_and_masks_are_those_of_the_objects(tmp_path: Path, format: str) -> None:
    """Whatever form a mask has: the pixels in it are of the label's colour, and its extent is the box."""
    (write_coco if format == "coco" else write_lvis)(tmp_path)
    annotations = read(tmp_path, format=format)
    assert annotations.classes == CLASSES
    found = pictures(annotations)
    assert len(found) == 6
    for index in range(6):
        _, image, target = found[index, 0]
        for box, label, mask in zip(target["boxes"], target["labels"], target["masks"], strict=True):
            assert inner_colour(image, mask) == list(COLOURS[CLASSES[label]])
            ys, xs = mask.nonzero(as_tuple=True)
            assert [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] == box.tolist()


def test_boxes_and_masks_survive_a_resize_and_a_flip_exactly(tmp_path: Path) -> None:
    write_coco(tmp_path)
    plain = pictures(read(tmp_path))
    doubled = pictures(read(tmp_path), train_sizes=[2 * SIZE[1]], flip=1.0)
    for index in range(len(plain)):
        _, image, before = plain.plain(index)
        _, shown, after = doubled[index, 0]
        assert shown.shape == (3, 2 * SIZE[1], 2 * SIZE[0])
        assert after["boxes"].tolist() == [
            [2 * (SIZE[0] - right), 2 * top, 2 * (SIZE[0] - left), 2 * bottom]
            for left, top, right, bottom in before["boxes"].tolist()
        ]
        assert torch.equal(after["masks"], before["masks"].flip(-1).repeat_interleave(2, -1).repeat_interleave(2, -2))
        assert torch.equal(after["labels"], before["labels"])
        assert not any(
            isinstance(part, torch.Tensor) and type(part) is not torch.Tensor for part in (shown, *after.values())
        )
        assert image.dtype == shown.dtype == torch.uint8


def test_the_long_side_stays_within_its_limit(tmp_path: Path) -> None:
    write_coco(tmp_path)
    _, image, target = pictures(read(tmp_path), train_sizes=[80], max_size=100)[0, 0]
    assert image.shape == (3, 66, 100) == (3, *target["masks"].shape[1:])


def test_draws_depend_on_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    write_coco(tmp_path)
    settings: Dict = {"train_sizes": [32, 48, 64, 80, 96], "flip": 0.5}
    first, again, other = (pictures(read(tmp_path), seed=seed, **settings) for seed in (0, 0, 1))
    items = [(index, epoch) for epoch in range(6) for index in range(6)]

    def drawn(found: Pictures, items: list[tuple[int, int]]) -> dict[tuple[int, int], Any]:
        torch.manual_seed(len(items))  # which is to change nothing
        return {item: (found[item].image.shape, found[item].target["boxes"].tolist()) for item in items}

    seen = drawn(first, items)
    assert seen == drawn(again, items[::-1])
    assert seen != drawn(other, items)
    assert len({shape for shape, _ in seen.values()}) == 5
    assert any(seen[0, epoch] != seen[0, 0] for epoch in range(6))


def test_crowds_and_slivers_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    coco = write_coco(tmp_path)
    first, second, third, *_ = coco["annotations"]
    first["iscrowd"] = 1
    second["bbox"] = [95.5, 10, 40, 20]  # half a pixel of it is in the picture
    third["segmentation"] = [[1.0, 2.0, 30.0, 40.0]]  # no polygon, which pycocotools takes for a box
    write(tmp_path / "instances.json", coco)
    with caplog.at_level("INFO"):
        found = pictures(read(tmp_path))
    assert (
        "5 pictures; left out: 1 crowds, 1 objects of less than a pixel, 1 objects without a polygon of three corners, "
        "1 pictures without objects" in caplog.text
    )
    assert len(found) == 5
    assert len(found[0, 0].target["labels"]) == 1
    boxes = pictures(read(tmp_path, masks=False), masks=False)
    assert len(boxes[0, 0].target["labels"]) == 2  # its box is fine
    assert "masks" not in boxes[0, 0].target


def test_boxes_end_where_the_picture_ends(tmp_path: Path) -> None:
    coco = write_coco(tmp_path)
    coco["annotations"][0]["bbox"] = [-10, -20, 500, 50]
    write(tmp_path / "instances.json", coco)
    assert pictures(read(tmp_path))[0, 0].target["boxes"][0].tolist() == [0, 0, SIZE[0], 30]


def test_a_batch_moves_as_one(tmp_path: Path) -> None:
    write_coco(tmp_path)
    found = pictures(read(tmp_path))
    batch = DetectionBatch.of([found[0, 0], found[1, 0]]).to(torch.device("cpu"))
    assert batch.keys == ["000000000001.png", "000000000002.png"]
    assert batch.images[0].dtype == torch.float32
    assert torch.equal((batch.images[0] * 255).round().byte(), found[0, 0].image)


def test_repeats_are_those_of_the_rarest_class() -> None:
    """Ten pictures: class 0 in all, 1 in two, 2 in one.

    With a share of 0.9: sqrt(0.9 / 0.2) = 2.12, and sqrt(0.9 / 0.1) = 3 exactly.
    """
    held = [{0} for _ in range(7)] + [{0, 1}, {0, 1}, {0, 2}]
    indices = list(range(100, 110))
    assert repeated(indices, held, share=0.9) == [*range(100, 107), 107, 107, 107, 108, 108, 108, 109, 109, 109]
    assert repeated(indices, held, share=0.4) == [*range(100, 107), 107, 107, 108, 108, 109, 109]  # 1.41 and 2
    assert repeated(indices, held, share=0.1) == indices == repeated(indices, held, share=None)


def test_a_repeated_picture_is_drawn_anew(tmp_path: Path) -> None:
    write_lvis(tmp_path)
    found = pictures(read(tmp_path, format="lvis"), oversample=1.0, train_sizes=[32, 48, 64, 80, 96], flip=0.5)
    assert len(found) == len(found.order) > 6
    twice = next(place for place, index in enumerate(found.order) if found.order.count(index) > 1)
    assert found.order[twice] == found.order[twice + 1]
    assert any(found[twice, epoch].image.shape != found[twice + 1, epoch].image.shape for epoch in range(6))


Change = Callable[[Dict], Any]


def drop(*path: Any) -> Change:
    def change(value: Dict) -> Dict:
        place = value
        for step in path[:-1]:
            place = place[step]
        del place[path[-1]]
        return value

    return change


def put(value: Any, *path: Any) -> Change:
    def change(content: Dict) -> Dict:
        place = content
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        return content

    return change


WRONG: dict[str, tuple[Change, str]] = {
    "a list": (lambda _: [1], "holds a list"),
    "a caption file": (
        put([{"id": 1, "image_id": 1, "caption": "x"}], "annotations"),
        r"without category_id, bbox, annotations\[0\]",
    ),
    "image info": (drop("annotations"), "has no list of annotations"),
    "no boxes": (put([], "annotations"), "has no list of annotations"),
    "no categories": (drop("categories"), "has no list of categories"),
    "no sizes": (drop("images", 2, "width"), r"without width, images\[2\]"),
    "a size in words": (put("96", "images", 2, "width"), r"images\[2\].width is '96', a str"),
    "an id in words": (put(["1"], "annotations", 2, "image_id"), r"annotations\[2\].image_id is \['1'\], a list"),
    "an unknown image": (put(77, "annotations", 1, "image_id"), "id 901, of the unknown image 77"),
    "an unknown category": (put(5, "annotations", 1, "category_id"), "id 901, of the unknown category 5"),
    "a strange box": (put([1, 2, 3], "annotations", 0, "bbox"), r"whose bbox is \[1, 2, 3\]"),
    "a box of names": (put(["1", 2, 3, 4], "annotations", 0, "bbox"), "whose bbox is"),
    "equal ids": (put(1, "images", 1, "id"), "same id to several images"),
    "no masks": (drop("annotations", 3, "segmentation"), "id 903, without segmentation, .* head.kind faster_rcnn"),
    "empty masks": (put([], "annotations", 3, "segmentation"), "id 903, without segmentation"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_told_the_layout(tmp_path: Path, name: str) -> None:
    change, message = WRONG[name]
    write(tmp_path / "instances.json", change(write_coco(tmp_path)))
    with pytest.raises(LGDError, match=message) as raised:
        read(tmp_path)
    assert "Expected with data.format coco: JSON {images: [{id, file_name, height, width, ...}" in str(raised.value)


def test_no_file_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(LGDError, match=r"instances\.json is no file\. Expected"):
        read(tmp_path)
    (tmp_path / "instances.json").write_bytes(b"\xff\xd8\xff\xe0 a picture")
    with pytest.raises(LGDError, match=r"can't be read \(no JSON.* Expected"):
        read(tmp_path)


def test_one_format_is_not_taken_for_the_other(tmp_path: Path) -> None:
    write_lvis(tmp_path)
    with pytest.raises(LGDError, match=r"without file_name, images\[0\]; it looks like lvis, so set data.format lvis"):
        read_annotations(tmp_path / "lvis.json", folder=tmp_path, format="coco", masks=True)
    write_coco(tmp_path)
    with pytest.raises(LGDError, match=r"without neg_category_ids, .*; it looks like coco, so set data.format coco"):
        read_annotations(tmp_path / "instances.json", folder=tmp_path / "images", format="lvis", masks=True)


def test_an_unknown_frequency(tmp_path: Path) -> None:
    write(tmp_path / "lvis.json", put("rare", "categories", 0, "frequency")(write_lvis(tmp_path)))
    with pytest.raises(LGDError, match="frequency 'rare', which is none of r, c, f"):
        read(tmp_path, format="lvis")


def test_pictures_that_are_not_there(tmp_path: Path) -> None:
    write_coco(tmp_path)
    (tmp_path / "images" / "000000000002.png").unlink()
    with pytest.raises(LGDError, match=r"images lacks 1 of the 6 pictures that .* names, such as '000000000002\.png'"):
        read(tmp_path)
    write_lvis(tmp_path)
    with pytest.raises(
        LGDError,
        match=r"lacks 6 of the 6 pictures .* such as 'val2017/000000000001\.png'\. Give the folder in which these",
    ):
        read_annotations(tmp_path / "lvis.json", folder=tmp_path / "val2017", format="lvis", masks=True)


def test_a_picture_that_is_none_or_another(tmp_path: Path) -> None:
    write_coco(tmp_path)
    found, file = pictures(read(tmp_path)), tmp_path / "images" / "000000000003.png"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LGDError, match=r"000000000003\.png can't be read as a picture"):
        found[2, 0]
    Image.new("RGB", (30, 40)).save(file)
    with pytest.raises(LGDError, match=r"000000000003\.png has 30 x 40 pixels, and 96 x 64 in .*instances\.json"):
        found[2, 0]


def test_a_photo_that_its_camera_turned_stands_upright_as_it_was_annotated(tmp_path: Path) -> None:
    write_coco(tmp_path)
    file = tmp_path / "images" / "000000000003.png"
    red = Image.new("RGB", (96, 64), "black")
    red.paste("red", (0, 0, 10, 10))
    for orientation, lies in ((3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        red.transpose(lies).save(file, exif=exif)
        pixels = read_picture(read(tmp_path), 2)
        assert pixels.shape == (3, 64, 96)
        assert pixels[:, 5, 5].tolist() == [255, 0, 0]


def test_sixteen_bits_of_grey_are_not_white(tmp_path: Path) -> None:
    write_coco(tmp_path)
    grey = np.arange(64 * 96, dtype=np.uint16).reshape(64, 96) * 10
    Image.fromarray(grey).save(tmp_path / "images" / "000000000003.png")
    assert read_picture(read(tmp_path), 2)[0].numpy().tolist() == (grey // 256).tolist()


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("images", "id", "7", r"images\[0\]\.id is '7', a str, where int is expected"),
        ("annotations", "image_id", "1", r"annotations\[0\]\.image_id is '1', a str"),
        ("annotations", "category_id", 1.5, r"annotations\[0\]\.category_id is 1\.5, a float"),
        ("images", "width", "96", r"images\[0\]\.width is '96', a str"),
        ("images", "file_name", 3, r"images\[0\]\.file_name is 3, a int, where str is expected"),
        ("categories", "name", ["red"], r"categories\[0\]\.name is \['red'\], a list"),
    ],
)
def test_a_value_of_another_type_is_named(tmp_path: Path, name: str, key: str, value: object, message: str) -> None:
    coco = write_coco(tmp_path)
    coco[name][0][key] = value
    write(tmp_path / "instances.json", coco)
    with pytest.raises(LGDError, match=message):
        read(tmp_path)


def test_whole_floats_are_numbers(tmp_path: Path) -> None:
    coco = write_coco(tmp_path)
    expected = read(tmp_path)
    for image in coco["images"]:
        image.update(width=float(image["width"]), height=float(image["height"]), id=float(image["id"]))
    for entry in coco["annotations"]:
        entry.update(image_id=float(entry["image_id"]))
    write(tmp_path / "instances.json", coco)
    assert read(tmp_path) == expected


def test_masks_that_can_not_be_decoded(tmp_path: Path) -> None:
    coco = write_coco(tmp_path)
    for value, message in (
        ({"size": [64, 96], "counts": [5, 5]}, "no usable segmentation"),
        ({"size": [10, 10], "counts": [50, 50]}, r"a mask of \(10, 10\) pixels for a picture of \(96, 64\)"),
        ([["a", "b", 1, 2, 3, 4]], "no usable segmentation"),
    ):
        changed = copy.deepcopy(coco)
        changed["annotations"][0]["segmentation"] = value
        write(tmp_path / "instances.json", changed)
        with pytest.raises(LGDError, match=f"annotation 900 has {message}"):
            pictures(read(tmp_path))[0, 0]


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    coco = write_coco(tmp_path)
    for entry in coco["annotations"]:
        entry["iscrowd"] = 1
    write(tmp_path / "instances.json", coco)
    with pytest.raises(LGDError, match="has no boxes to learn from"):
        pictures(read(tmp_path))


def test_settings_that_make_no_sense() -> None:
    for wrong, message in (
        ({"train_sizes": []}, "data.train_sizes"),
        ({"size": 1400}, "below|between"),
        ({"flip": 1.5}, "data.flip = 1.5"),
        ({"oversample": 0.0}, "data.oversample = 0.0"),
        ({"val": "x"}, "data.val and data.val_images"),
    ):
        with pytest.raises(RecipeError, match=message):
            DetectData("a", "b", **wrong)  # type: ignore[arg-type]


def test_the_forms_of_a_mask_agree() -> None:
    """Of the helper: three forms, one mask; or the tests above prove less than they say."""
    box = [10, 5, 20, 30]
    annotations = Annotations(
        Path("x"), Path("x"), "coco", (), ({"id": 1, "height": SIZE[1], "width": SIZE[0]},), ([],)
    )
    masks = [
        annotations.mask({"id": 1, "image_id": 1, "segmentation": segmentation(box, form)}, 0)
        for form in ("polygon", "compressed", "")
    ]
    assert all(np.array_equal(mask, masks[0]) for mask in masks)
    assert masks[0].sum() == 600
    assert sorted(IDS.values()) == [IDS[name] for name in CLASSES]


WILD = (1e308, 10**12, 2**31, float("nan"), float("inf"), None, -1e308, True, "1")


@pytest.mark.parametrize("value", WILD, ids=str)
@pytest.mark.parametrize("where", ["polygon", "bbox", "size", "counts"])
def test_no_wild_number_reaches_pycocotools(tmp_path: Path, where: str, value: object) -> None:
    coco = write_coco(tmp_path)
    entry = coco["annotations"][0]
    if where == "bbox":
        entry["bbox"][2] = value
    else:
        entry["segmentation"] = {
            "polygon": [[1, value, 9, 1, 9, 9, 1, 9]],
            "size": {"size": [64, value], "counts": [1]},
            "counts": {"size": [64, 96], "counts": [value, 64 * 96]},
        }[where]
    write(tmp_path / "instances.json", coco)
    with pytest.raises(LGDError, match="annotation"):
        pictures(read(tmp_path))[0, 0]


@pytest.mark.parametrize("counts", ["", "0", "z" * 100, "\ud800", "P" * 10_000_000, b"1", None, {}, [-1, 6145]])
def test_no_strange_run_lengths_reach_pycocotools(tmp_path: Path, counts: object) -> None:
    coco = write_coco(tmp_path)
    counts = counts.decode() if isinstance(counts, bytes) else counts
    coco["annotations"][0]["segmentation"] = {"size": [64, 96], "counts": counts}
    write(tmp_path / "instances.json", coco)
    with pytest.raises(LGDError, match="annotation 900 has no usable segmentation"):
        pictures(read(tmp_path))[0, 0]


@pytest.mark.parametrize("value", [0, -1, 2**31, True])
def test_the_size_of_a_picture_is_bounded(tmp_path: Path, value: int) -> None:
    coco = write_coco(tmp_path)
    coco["images"][0]["height"] = value
    write(tmp_path / "instances.json", coco)
    with pytest.raises(LGDError, match="has height"):
        read(tmp_path)
