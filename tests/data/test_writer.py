"""Image folders become shards: the same bytes, keys that stay apart, all or nothing."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image, PngImagePlugin
from timm.data import create_dataset

from lgd_timm.data import Views, open_shards
from lgd_timm.data.dataset import ShardDataset
from lgd_timm.data.vocabulary import load_vocabulary
from lgd_timm.data.writer import index_shards, write_shards
from lgd_timm.errors import ShardError
from lgd_timm.utils import files

ODD_NAMES = [
    "a.b.jpg",
    "a_b.jpg",
    "a__b.jpg",
    "a_ob.jpg",
    "a_o.b.jpg",
    "a b.JPG",
    "a/b.jpg",
    "a-b.jpg",
    "a_-b.jpg",
    "a/b/c.d/e.png",
    "a/b/c/d.e.jpeg",
    "_x_.jpg",
    "__x__.webp",
    "Grün 漢字 🙂.png",
    "%2e%2f?#&:;'.jpg",
    "x" * 160 + ".jpg",
    "y" * 90 + "/" + "z" * 90 + "/ü.jpg",
]


def save(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def folder_of(root: Path, *names: str) -> Path:
    root.mkdir(parents=True)
    for i, name in enumerate(names):
        save(root / name, i)
    return root


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def read_all(root: Path, split: str) -> dict[str, dict[str, bytes]]:
    """{key: {field: bytes}} of a split, as webdataset reads it."""
    shards = open_shards(root, split=split)
    urls = [str(root / name) for name in shards.filenames]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    read = {s["__key__"]: {field: value for field, value in s.items() if not field.startswith("__")} for s in samples}
    assert len(read) == len(samples) == len(shards)
    return read


def snapshot(root: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in sorted(root.rglob("*"))}


def test_bytes_pass_through_with_the_label_of_their_folder(image_folder: Path, shard_folder: Path) -> None:
    classes = sorted(path.name for path in image_folder.iterdir())
    expected = Counter(
        (p.suffix[1:], p.read_bytes(), str(classes.index(p.parent.name)).encode()) for p in image_folder.glob("*/*")
    )
    read = Counter(
        (field, sample[field], sample["cls"])
        for sample in read_all(shard_folder, "train").values()
        for field in sample
        if field != "cls"
    )
    assert read == expected
    assert open_shards(shard_folder, split="train").class_names == tuple(classes)


def test_odd_file_names_give_keys_that_stay_apart(tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images", *ODD_NAMES)
    write_shards(images, tmp_path / "out", labels=False)
    read = read_all(tmp_path / "out", "train")
    assert len(read) == len(ODD_NAMES)
    assert not [key for key in read if "." in key or "/" in key]
    assert Counter(value for sample in read.values() for value in sample.values()) == Counter(
        (images / name).read_bytes() for name in ODD_NAMES
    )


def test_the_label_is_the_first_folder_at_any_depth(tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images", "b/1.png", "a/deep/er/2.png", "a/3.png", "c.d/4.png")
    write_shards(images, tmp_path / "out")
    labels = {sample["png"]: int(sample["cls"]) for sample in read_all(tmp_path / "out", "train").values()}
    assert labels == {
        (images / name).read_bytes(): label
        for name, label in {"b/1.png": 1, "a/deep/er/2.png": 0, "a/3.png": 0, "c.d/4.png": 2}.items()
    }


@pytest.mark.parametrize(
    ("names", "labels"), [(["1.png", "2.png"], True), (["a/1.png", "b/2.png"], False), (["1.png", "a/2.png"], False)]
)
def test_flat_folders_and_no_labels_have_no_cls(tmp_path: Path, names: list[str], labels: bool) -> None:
    shards = write_shards(folder_of(tmp_path / "images", *names), tmp_path / "out", labels=labels)
    assert [list(sample) for sample in read_all(tmp_path / "out", "train").values()] == [["png"]] * 2
    assert shards.class_names == ()


def test_the_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    names = ["a/1.jpg", "a/2.png", "b/ü.jpg", "b/" + "x" * 150 + ".jpg", "b/c/3.jpg"]
    first = folder_of(tmp_path / "first", *names)
    second = folder_of(tmp_path / "second", *reversed(names))
    for i, name in enumerate(names):
        shutil.copyfile(first / name, second / name)
        os.utime(second / name, (i * 1000, i * 1000))
    write_shards(first, tmp_path / "1" / "set", samples_per_shard=2)
    write_shards(second, tmp_path / "2" / "set", samples_per_shard=2)
    assert snapshot(tmp_path / "1") == snapshot(tmp_path / "2")


def test_images_are_shuffled_by_seed(image_folder: Path, tmp_path: Path) -> None:
    orders = [[p for name in write_shards(image_folder, tmp_path / str(seed), seed=seed).filenames
               for p in members(tmp_path / str(seed) / name)] for seed in (0, 1)]  # fmt: skip
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


def test_a_second_split_leaves_the_first_alone(tmp_path: Path, image_folder: Path) -> None:
    out = tmp_path / "out"
    write_shards(image_folder, out, split="train", samples_per_shard=20)
    before, times = snapshot(out), {p.name: p.stat().st_mtime_ns for p in out.glob("*.tar")}
    entry = json.loads((out / "_info.json").read_text())["splits"]["train"]
    write_shards(image_folder, out, split="val", samples_per_shard=20)
    after = snapshot(out)
    assert {name: after[name] for name in times} == {name: before[name] for name in times}
    assert {name: (out / name).stat().st_mtime_ns for name in times} == times
    info = json.loads((out / "_info.json").read_text())
    assert info["splits"]["train"] == entry
    assert sorted(info["splits"]) == ["train", "val"]
    assert not set(info["splits"]["train"]["filenames"]) & set(info["splits"]["val"]["filenames"])


def test_shards_are_named_after_the_folder_or_the_name(tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images", "1.png")
    assert write_shards(images, tmp_path / "my set.v2").filenames == ("my_set_v2-train-00000.tar",)
    assert write_shards(images, tmp_path / "out", name="a/b", split="val").filenames == ("a_b-val-00000.tar",)


@pytest.mark.parametrize(
    ("count", "per_shard", "min_shards"), [(9, 100, 4), (6, 100, 4), (7, 2, 3), (5, 100, 5), (8, 3, 1)]
)
def test_shards_are_neither_too_few_nor_too_large(tmp_path: Path, count: int, per_shard: int, min_shards: int) -> None:
    images = folder_of(tmp_path / "images", *(f"{i}.png" for i in range(count)))
    shards = write_shards(images, tmp_path / "out", samples_per_shard=per_shard, min_shards=min_shards)
    assert sum(shards.lengths) == count
    assert len(shards.lengths) >= min_shards
    assert max(shards.lengths) <= per_shard
    assert [len(members(shards.path(i))) for i in range(len(shards.lengths))] == list(shards.lengths)


def test_timm_reads_them_unmodified(shard_folder: Path) -> None:
    dataset = create_dataset("wds/x", root=str(shard_folder), split="train", is_training=False, batch_size=8)
    labels = []
    for image, label in dataset:
        channel = int(np.asarray(image).reshape(-1, 3).mean(0).argmax())
        assert label == 2 - channel  # blue, green, red: the classes in sorted order
        labels.append(label)
    assert len(dataset) == 48
    assert Counter(labels) == {0: 16, 1: 16, 2: 16}


def mixed(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "images", "a/1.png", "loose.png")


def not_an_image(tmp_path: Path) -> Path:
    images = folder_of(tmp_path / "images", *(f"a/{i}.jpg" for i in range(9)))
    (images / "a" / "4.jpg").write_text("<html>not found</html>")
    return images


def empty(tmp_path: Path) -> Path:
    images = folder_of(tmp_path / "images")
    (images / "readme.txt").write_text("no images here")
    return images


def several_bad(tmp_path: Path) -> Path:
    images = folder_of(tmp_path / "images", "a/3.jpg", "a/4.jpg")
    for i in range(3):
        (images / "a" / f"{i}.jpg").write_bytes(b"")
    return images


def latin_1(tmp_path: Path) -> Path:
    images = folder_of(tmp_path / "images", "a/1.jpg")
    shutil.copyfile(images / "a" / "1.jpg", os.fsencode(images / "a") + b"/p\xe8re.jpg")
    return images


def broken_link(tmp_path: Path) -> Path:
    images = folder_of(tmp_path / "images", "a/1.jpg")
    (images / "a" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    return images


FAILURES: dict[str, tuple[Callable[[Path], Path], dict, str]] = {
    "no image": (not_an_image, {"samples_per_shard": 3}, r"4\.jpg can't be opened as an image"),
    "several": (several_bad, {}, r"3 of 5 images can't be used: .*0\.jpg.*1\.jpg.*2\.jpg can't be opened.*--skip-bad"),
    "no UTF-8": (latin_1, {}, r"1 of 2 images can't be used: .*name that is not UTF-8"),
    "control characters": (lambda tmp: folder_of(tmp / "images", "a\nb.png"), {}, "name with control characters"),
    "a broken link": (broken_link, {}, r"gone\.jpg can't be opened as an image \(there is no such file"),
    "empty folder": (empty, {}, r"images holds no images \(\.jpg"),
    "missing folder": (lambda tmp: tmp / "nowhere", {}, "nowhere is not a folder"),
    "a file": (lambda tmp: save(tmp / "a.png"), {}, r"a\.png is not a folder"),
    "twins": (
        lambda tmp: folder_of(tmp / "images", "a/1.jpg", "a/1.png"),
        {},
        r"1\.jpg and 1\.png differ only in their suffix",
    ),
    "twins in case": (lambda tmp: folder_of(tmp / "images", "1.JPG", "1.jpg"), {}, "differ only in their suffix"),
    "loose images": (mixed, {}, r"mixes class folders with loose images such as loose\.png"),
    "too few": (
        lambda tmp: folder_of(tmp / "images", "1.png", "2.png"),
        {"min_shards": 3},
        "2 images, too few for 3 shards",
    ),
    "split": (
        lambda tmp: folder_of(tmp / "images", "1.png"),
        {"split": "../val"},
        r"split '\.\./val' becomes part of file names",
    ),
    "no size": (
        lambda tmp: folder_of(tmp / "images", "1.png"),
        {"samples_per_shard": 0},
        r"samples_per_shard \(0\).*at least 1",
    ),
    "negative size": (
        lambda tmp: folder_of(tmp / "images", "1.png"),
        {"samples_per_shard": -1},
        r"samples_per_shard \(-1\)",
    ),
    "no shards": (
        lambda tmp: folder_of(tmp / "images", "1.png"),
        {"min_shards": 0},
        r"min_shards \(0\) must be at least 1",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_leaves_nothing_behind(tmp_path: Path, case: str) -> None:
    make, options, message = FAILURES[case]
    images = make(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(ShardError, match=message):
        write_shards(images, tmp_path / "out", **options)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        (["a/1.png", "b/2.png"], "train", "already has a split 'train'"),
        (["a/1.png", "c/2.png"], "val", "class folders of .* differ"),
        (["a/1.png"], "val", "class folders of .* differ"),
    ],
)
def test_a_failure_leaves_earlier_splits_alone(tmp_path: Path, names: list[str], split: str, message: str) -> None:
    write_shards(folder_of(tmp_path / "old", "a/1.png", "b/2.png"), tmp_path / "out", split="train")
    images = folder_of(tmp_path / "new", *names)
    before = snapshot(tmp_path)
    with pytest.raises(ShardError, match=message):
        write_shards(images, tmp_path / "out", split=split)
    assert snapshot(tmp_path) == before


def test_a_kill_between_moves_is_no_finished_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = folder_of(tmp_path / "images", "1.png", "2.png")
    (tmp_path / "out").mkdir()
    move = os.replace

    def stop(source: Path, target: Path) -> None:
        if Path(target).name == "out-train-00001.tar":
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(files.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_shards(images, tmp_path / "out", samples_per_shard=1)
    monkeypatch.setattr(files.os, "replace", move)
    with pytest.raises(ShardError, match="not a finished shard folder"):
        open_shards(tmp_path / "out", split="train")
    assert len(write_shards(images, tmp_path / "out", samples_per_shard=1)) == 2


def test_bad_images_are_left_out_and_listed_where_that_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    shards = write_shards(several_bad(tmp_path), tmp_path / "out", skip_bad=True)
    assert len(shards) == 2
    assert [line for line in caplog.messages if line.startswith("left out: ")] == [
        f"left out: {tmp_path}/images/a/{i}.jpg can't be opened as an image (0 bytes that are no image)"
        for i in range(3)
    ]
    assert "2 of 5 images; 3 skipped: 3 that can't be used" in caplog.messages


def test_a_class_whose_images_are_all_bad_keeps_its_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = folder_of(tmp_path / "images", "a/1.png", "b/1.png", "c/1.png")
    (images / "b" / "1.png").write_bytes(b"")
    shards = write_shards(images, tmp_path / "out", skip_bad=True)
    assert shards.class_names == ("a", "b", "c") == load_vocabulary(f"folder:{images}").names
    assert sorted(int(sample["cls"]) for sample in read_all(tmp_path / "out", "train").values()) == [0, 2]
    assert "classes of which no image can be used: b" in caplog.messages


def test_only_bad_images_are_refused(tmp_path: Path) -> None:
    (images := tmp_path / "images").mkdir()
    (images / "a.png").write_bytes(b"")
    with pytest.raises(ShardError, match="holds no image that can be used"):
        write_shards(images, tmp_path / "out", skip_bad=True)


def test_what_is_passed_over_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    images = folder_of(tmp_path / "images", "a/1.jpg", "a/2.bmp", "a/3.gif", "a/4.tif", "b/5.jpg", "b/6.webp")
    save(images / "b" / "7.png").rename(images / "b" / "7.jfif")
    for name in ("a/._1.jpg", "a/notes.txt", "a/Thumbs.db", "b/noending"):
        (images / name).write_bytes(b"")
    for hidden in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
        save(images / hidden / "1.jpg")
        save(images / "a" / hidden / "1.jpg")
    (images / "empty").mkdir()
    (images / "c").mkdir()
    save(images / "c" / "1.png")
    shards = write_shards(images, tmp_path / "out")
    assert shards.class_names == ("a", "b", "c")
    fields = Counter(field for sample in read_all(tmp_path / "out", "train").values() for field in sample)
    assert fields == {"jpg": 3, "bmp": 1, "gif": 1, "tiff": 1, "webp": 1, "png": 1, "cls": 8}
    assert "8 of 12 images; 4 skipped: 2 hidden, 1 .txt, 1 without an ending" in caplog.messages
    assert any(line.startswith("images by their endings: 2 .jpg, 1 .bmp") for line in caplog.messages)
    assert "folders without images, which are no classes: empty" in caplog.messages
    assert "classes of one image: c" in caplog.messages
    read = ShardDataset(shards, views=Views(size=4, augmentation="none")).__getitems__([(i, 0) for i in range(8)])
    assert (len(read.keys), read.bad) == (8, ())


def test_nothing_is_said_of_an_ordinary_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    write_shards(folder_of(tmp_path / "images", "a/1.jpg", "a/2.png", "b/3.jpg", "b/4.png"), tmp_path / "out")
    assert caplog.messages == []


def test_huge_images_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # images of 16 pixels: more than it, and less than twice as many
    write_shards(folder_of(tmp_path / "images", "1.png", "2.png"), tmp_path / "out")
    assert any(line.startswith("2 images have more than") and "1.png" in line for line in caplog.messages)


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images", "cat/1.png", "cat/2.png")
    folder_of(tmp_path / "disk2" / "dog", "1.png", "deep/2.png")
    (images / "dog").symlink_to(tmp_path / "disk2" / "dog")
    (images / "cat" / "again").symlink_to(images)
    (tmp_path / "disk2" / "dog" / "up").symlink_to(tmp_path / "disk2")
    (images / "cat" / "3.png").symlink_to(images / "cat" / "1.png")
    assert load_vocabulary(f"folder:{images}").names == ("cat", "dog")
    shards = write_shards(images, tmp_path / "out")
    assert shards.class_names == ("cat", "dog")
    labels = Counter(int(sample["cls"]) for sample in read_all(tmp_path / "out", "train").values())
    assert labels == {0: 3, 1: 2}


def test_a_png_with_much_text_is_an_image_like_others(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("XML:com.adobe.xmp", "A" * 3_000_000, zip=True)
    (images := tmp_path / "images").mkdir()
    Image.new("RGB", (4, 4), "red").save(images / "a.png", pnginfo=text)
    shards = write_shards(images, tmp_path / "out")
    batch = ShardDataset(shards, views=Views(size=4, augmentation="none")).__getitems__([(0, 0)])
    assert batch.images[0, :, 0, 0].tolist() == [255, 0, 0]


def test_ready_tars_are_indexed_where_they_lie(tmp_path: Path, shard_folder: Path) -> None:
    for path in shard_folder.glob("*train*.tar"):
        shutil.copy(path, tmp_path)
    with pytest.raises(ShardError, match=r"holds 3 tars, first .*not a finished shard folder.*shards index"):
        open_shards(tmp_path, split="train")
    assert index_shards(tmp_path) == replace(open_shards(shard_folder, split="train"), root=tmp_path, class_names=())
    with pytest.raises(ShardError, match="already has a split"):
        index_shards(tmp_path)
    with pytest.raises(ShardError, match="no tars that are not indexed yet"):
        index_shards(tmp_path, split="val")
    (tmp_path / "cut.tar").write_bytes(b"x" * 700)
    with pytest.raises(ShardError, match=r"cut\.tar can't be used"):
        index_shards(tmp_path, split="val")
