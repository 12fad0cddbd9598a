"""Pictures and labels as data sets lay them out: what is read, and the one error where they lie otherwise."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lgd_timm.errors import LGDError, RecipeError
from lgd_timm.transfer.segment.dataset import WholePictures
from lgd_timm.transfer.segment.folders import CHECKED, LAYOUTS, open_split, read_label
from lgd_timm.transfer.segment.recipe import SegmentData
from tests.helpers.segment_data import NAMES, make_ade20k, make_cityscapes, make_folder

MAKERS = {"cityscapes": make_cityscapes, "ade20k": make_ade20k, "folder": make_folder}
SPLITS = {"cityscapes": "train", "ade20k": "training", "folder": "all"}


def test_cityscapes_label_ids_become_the_nineteen_evaluated_classes(tmp_path: Path) -> None:
    data = SegmentData(str(make_cityscapes(tmp_path)), layout="cityscapes")
    split = open_split(data, "train")
    assert [pair.picture.name[:6] for pair in split.pairs] == ["aachen", "aachen", "zurich", "zurich"]
    assert len(split.classes) == 19
    assert (split.classes[0], split.classes[13], split.classes[-1]) == ("road", "car", "bicycle")
    raw = np.asarray(Image.open(split.pairs[0].label))
    indices = read_label(split, 0)
    for number, index in ((7, 0), (26, 13), (9, 255)):  # road, car, parking
        assert set(indices[raw == number]) == {index}
    assert [split.numbers[number] for number in (0, 3, 8, 11, 33)] == [255, 255, 1, 2, 18]
    assert len(open_split(data, "val").pairs) == 2


def test_ade20k_names_come_from_its_table_and_other_objects_are_ignored(tmp_path: Path) -> None:
    split = open_split(SegmentData(str(make_ade20k(tmp_path)), layout="ade20k"), "validation")
    assert split.classes == ("wall", "building, edifice", "bed", "water")
    assert [pair.picture.name for pair in split.pairs] == [f"ADE_val_0000000{n}.jpg" for n in (1, 2, 3)]
    raw = np.asarray(Image.open(split.pairs[0].label))
    indices = read_label(split, 0)
    for number, index in ((0, 255), (2, 1), (4, 3)):
        assert set(indices[raw == number]) == {index}


def test_the_plain_layout_has_splits_or_none(tmp_path: Path) -> None:
    make_folder(tmp_path, count=3)
    make_folder(tmp_path, count=2, split="val", seed=1)
    data = SegmentData(str(tmp_path))
    whole, val = open_split(data, "all"), open_split(data, "val")
    assert whole.classes == val.classes == NAMES
    assert (len(whole.pairs), len(val.pairs)) == (3, 2)
    label = np.asarray(Image.open(val.pairs[1].label))
    assert (read_label(val, 1) == label).all()


def test_palette_pngs_are_read_by_number_and_255_is_ignored(tmp_path: Path) -> None:
    make_folder(tmp_path, count=1)
    file = tmp_path / "labels" / "0.png"
    values = np.array(Image.open(file))
    values[:10] = 255
    image = Image.fromarray(values).convert("P")
    image.putdata(values.flatten().tolist())
    image.save(file)
    assert Image.open(file).mode == "P"
    assert (read_label(open_split(SegmentData(str(tmp_path)), "all"), 0) == values).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_of_something_else_is_answered_with_the_layout(tmp_path: Path, layout: str) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(LGDError) as caught:
        open_split(SegmentData(str(tmp_path), layout=layout), SPLITS[layout])  # type: ignore[arg-type]
    assert f"data.layout {layout} expects {LAYOUTS[layout].expected}" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def first(root: Path, pattern: str) -> Path:
    return sorted(root.rglob(pattern))[0]


def rewrite(file: Path, change: Callable[[Image.Image], Image.Image]) -> None:
    changed = change(Image.open(file))
    changed.save(file)


def set_number(number: int) -> Callable[[Image.Image], Image.Image]:
    def change(image: Image.Image) -> Image.Image:
        values = np.array(image)
        values[3, 4] = number
        return Image.fromarray(values)

    return change


def remove(root: Path, pattern: str) -> None:
    for file in root.rglob(pattern):
        file.unlink()


FAULTS: list[tuple[str, Callable[[Path], object], str]] = [
    (
        "folder",
        lambda root: (root / "labels" / "3.png").unlink(),
        r"3\.png has no labels: .*labels/3\.png is not there",
    ),
    ("folder", lambda root: remove(root / "images", "*.png"), r"holds no pictures of split 'all'"),
    ("folder", lambda root: (root / "classes.txt").unlink(), r"classes\.txt, the names of the classes, can't be read"),
    (
        "folder",
        lambda root: (root / "classes.txt").write_text("\n"),
        r"classes\.txt, the names of the classes, is empty",
    ),
    (
        "folder",
        lambda root: (root / "classes.txt").write_text("one\n"),
        r"a list of 1 classes, where 2 to 255 make sense",
    ),
    ("folder", lambda root: (root / "classes.txt").write_text("a\nb\na\n"), r"classes\.txt has a name twice"),
    (
        "folder",
        lambda root: (root / "classes.txt").write_text("\n".join(map(str, range(256)))),
        r"a list of 256 classes",
    ),
    (
        "folder",
        lambda root: rewrite(root / "labels/2.png", lambda i: i.resize((20, 10))),
        r"64 x 48 pixels and .*2\.png have 20 x 10",
    ),
    (
        "folder",
        lambda root: rewrite(root / "labels/2.png", lambda i: i.convert("RGB")),
        r"2\.png holds pixels of kind 'RGB'",
    ),
    (
        "folder",
        lambda root: rewrite(root / "labels/5.png", set_number(3)),
        r"5\.png has the number 3, which is none of the 3 classes'",
    ),
    ("folder", lambda root: (root / "labels/4.png").write_bytes(b"no picture"), r"4\.png can't be read as a picture"),
    ("folder", lambda root: (root / "images/4.png").write_bytes(b"no picture"), r"4\.png can't be read as a picture"),
    (
        "ade20k",
        lambda root: first(root, "ADE_train*2.png").unlink(),
        r"2\.jpg has no labels: .*ADE_train_00000002\.png is not there",
    ),
    (
        "ade20k",
        lambda root: (root / "objectInfo150.txt").unlink(),
        r"objectInfo150\.txt, the names of the classes, can't be read",
    ),
    (
        "ade20k",
        lambda root: (root / "objectInfo150.txt").write_text("wall\nsky\n"),
        r"objectInfo150\.txt is no table of classes",
    ),
    (
        "ade20k",
        lambda root: rewrite(first(root, "ADE_train*.png"), set_number(5)),
        r"has the number 5, which is none of the 4 classes'",
    ),
    (
        "cityscapes",
        lambda root: remove(root / "gtFine", "*labelIds.png"),
        r"has no labels: .*_gtFine_labelIds\.png is not there",
    ),
    (
        "cityscapes",
        lambda root: rewrite(first(root, "*labelIds.png"), set_number(34)),
        r"has the number 34, which is none of the 19",
    ),
    (
        "cityscapes",
        lambda root: first(root, "*polygons.json").write_text(json.dumps({"objects": [{"label": "tractor"}]})),
        r"polygons\.json has names that are not Cityscapes' \(tractor\)",
    ),
    (
        "cityscapes",
        lambda root: first(root, "*polygons.json").write_text("[]"),
        r"polygons\.json is no polygon file of Cityscapes",
    ),
]


@pytest.mark.parametrize(("layout", "break_it", "message"), FAULTS)
def test_each_fault_has_one_error_that_names_the_file_and_the_layout(
    tmp_path: Path, layout: str, break_it: Callable[[Path], object], message: str
) -> None:
    root, data = MAKERS[layout](tmp_path), SegmentData(str(tmp_path), layout=layout)  # type: ignore[arg-type]
    open_split(data, SPLITS[layout])
    break_it(root)
    with pytest.raises(LGDError) as caught:
        open_split(data, SPLITS[layout])
    assert re.search(message, str(caught.value))
    assert f". data.layout {layout} expects ROOT/" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_label_that_only_training_looks_at_has_the_same_error(tmp_path: Path) -> None:
    root = make_folder(tmp_path, count=2 * CHECKED + 1, height=4, width=4)
    data = SegmentData(str(root))
    second = open_split(data, "all").pairs[1].label
    Image.fromarray(np.full((4, 4), 9, dtype=np.uint8)).save(second)
    split = open_split(data, "all")  # which looks at every second one
    with pytest.raises(LGDError, match=rf"{second.name} has the number 9, .* data\.layout folder expects ROOT/images"):
        read_label(split, 1)


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    data = SegmentData(str(make_ade20k(tmp_path)), layout="ade20k")
    with pytest.raises(LGDError, match=r"images/train is not there\. .* of splits training and validation"):
        open_split(data, "train")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop": (512, 500)}, "multiple of 32"),
        ({"crop": (0, 512)}, "multiple of 32"),
        ({"scale": (0.0, 1.0)}, "the least must be positive"),
        ({"scale": (2.0, 1.0)}, "the least must be positive and not above the greatest"),
        ({"short_side": 0}, "below 1"),
    ],
)
def test_nonsense_in_a_recipe_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        SegmentData("somewhere", **fields)  # type: ignore[arg-type]


def test_masks_of_0_and_255_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_folder(tmp_path)
    (tmp_path / "classes.txt").write_text("background\nthing\n")
    for file in (tmp_path / "labels").glob("*.png"):
        with Image.open(file) as image:
            mask = np.zeros((image.height, image.width), np.uint8)
        mask[:5] = 255
        Image.fromarray(mask).save(file)
    open_split(SegmentData(str(tmp_path), layout="folder"), "all")
    assert "all: no pixel of thing in" in caplog.text
    assert "255, which they have, means no class" in caplog.text
    caplog.clear()
    mask[:5] = 1
    Image.fromarray(mask).save(file)
    open_split(SegmentData(str(tmp_path), layout="folder"), "all")
    assert not caplog.records


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    make_folder(tmp_path)
    file = tmp_path / "classes.txt"
    names = open_split(SegmentData(str(tmp_path), layout="folder"), "all").classes
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert open_split(SegmentData(str(tmp_path), layout="folder"), "all").classes == names


def test_a_photo_that_its_camera_turned_is_compared_and_read_upright(tmp_path: Path) -> None:
    make_folder(tmp_path, height=48, width=64)
    pictures = sorted((tmp_path / "images").glob("*"))
    exif = Image.Exif()
    exif[0x0112] = 6
    for file in pictures:
        with Image.open(file) as image:
            image.convert("RGB").transpose(Image.Transpose.ROTATE_90).save(file.with_suffix(".jpg"), exif=exif)
        file.unlink()
    split = open_split(SegmentData(str(tmp_path), layout="folder"), "all")
    assert WholePictures(split)[0].image.shape == (3, 48, 64)
    with Image.open(pictures[0].with_suffix(".jpg")) as image:
        image.save(pictures[0].with_suffix(".jpg"))  # without the orientation it lies on its side
    with pytest.raises(LGDError, match=r"48 x 64 pixels and its labels .* have 64 x 48"):
        open_split(SegmentData(str(tmp_path), layout="folder"), "all")
