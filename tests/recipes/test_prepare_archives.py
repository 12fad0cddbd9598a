"""The archives of Caltech-101 and Tiny-ImageNet, in small, become shards; what is no such archive is one line."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from lgd_timm.data import open_shards

Script = Callable[[str], ModuleType]
SYNSETS = [f"n{number:08d}" for number in range(200)]


def write_jpeg(path: Path, shade: int, *, size: int = 8) -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), shade, np.uint8)).save(file, "JPEG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.getvalue())


@pytest.fixture(scope="module")
def caltech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip with the tar with the folder, as it is published: an image of each class, and clutter."""
    root = tmp_path_factory.mktemp("caltech")
    folder = root / "101_ObjectCategories"
    for name in ("Faces_easy", "car_side", *(f"thing_{number}" for number in range(99)), "BACKGROUND_Google"):
        write_jpeg(folder / name / "image_0001.jpg", 100)
    (folder / "thing_0" / "notes.txt").touch()
    tar = shutil.make_archive(str(root / "101_ObjectCategories"), "gztar", root, folder.name)
    with zipfile.ZipFile(root / "caltech-101.zip", "w") as archive:
        archive.write(tar, "caltech-101/101_ObjectCategories.tar.gz")
    return root / "caltech-101.zip"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder: an image of each class to learn from, one to evaluate on, and a training image that is both."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny-imagenet-200"
    for number, synset in enumerate(SYNSETS):
        write_jpeg(folder / "train" / synset / "images" / f"{synset}_0.JPEG", number)
        write_jpeg(folder / "val" / "images" / f"val_{number}.JPEG", number, size=9)
    write_jpeg(folder / "val" / "images" / "val_200.JPEG", 120)
    lines = [f"val_{number}.JPEG\t{synset}\t0\n" for number, synset in enumerate([*SYNSETS, SYNSETS[120]])]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("\n".join(reversed(SYNSETS)))
    (folder / "words.txt").write_text("".join(f"{synset}\tname {synset}, another\n" for synset in SYNSETS))
    return folder


def test_caltech101_is_its_classes_without_clutter(script: Script, caltech: Path, tmp_path: Path) -> None:
    assert script("caltech101").main([str(caltech), str(tmp_path / "out")]) == 0
    val = open_shards(tmp_path / "out", split="val")
    names = (tmp_path / "out" / "names.txt").read_text().splitlines()
    assert len(val) == len(val.class_names) == len(names) == 101
    assert {"human face", "car side"} < set(names)
    assert not any("Google" in name for name in val.class_names)


@pytest.mark.parametrize("form", ["", "zip", "tar"])
def test_tiny_imagenet_is_read_from_any_archive_without_what_is_learned_from(
    form: str, script: Script, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shutil.make_archive(str(tmp_path / "tiny"), form, tiny.parent) if form else tiny
    assert script("tiny_imagenet").main([str(source), str(tmp_path / "out")]) == 0
    train, val = (open_shards(tmp_path / "out", split=split) for split in ("train", "val"))
    assert (len(train), len(train.filenames), list(train.class_names)) == (200, 10, SYNSETS)
    assert (len(val), list(val.class_names)) == (200, SYNSETS)
    assert "the same bytes: val_200.JPEG" in capsys.readouterr().out
    assert (tmp_path / "out" / "names.txt").read_text().startswith(f"name {SYNSETS[0]}\nname {SYNSETS[1]}\n")


def test_tiny_imagenet_of_the_first_images_of_each_class(script: Script, tiny: Path, tmp_path: Path) -> None:
    more = shutil.copytree(tiny, tmp_path / tiny.name)
    for number in (1, 2, 10):
        write_jpeg(more / "train" / SYNSETS[0] / "images" / f"{SYNSETS[0]}_{number}.JPEG", 240 + number)
    for count, found in ((1, 200), (3, 202), (11, 203)):
        out = tmp_path / str(count)
        assert script("tiny_imagenet").main([str(more), str(out), "--per-class", str(count)]) == 0
        assert len(open_shards(out, split="train")) == found
    assert script("tiny_imagenet").main([str(more), str(tmp_path / "none"), "--per-class", "0"]) == 2


@pytest.mark.parametrize("name", ["caltech101", "tiny_imagenet"])
def test_what_is_no_such_archive_is_one_line(
    name: str, script: Script, caltech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, cut, other = (tmp_path / file for file in ("text.zip", "cut.tar.gz", "other.zip"))
    text.write_text("not found")
    whole = caltech.with_name("101_ObjectCategories.tar.gz").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme.txt", "")
    for source, message in (
        (text, "is no whole zip or tar"),
        (cut, "is no whole zip or tar"),
        (other, "holds no folder"),
        (tmp_path / "none.zip", "No such file"),
    ):
        assert script(name).main([str(source), str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert (said.count("\n"), message in said) == (1, True), said
    assert not (tmp_path / "out").exists()
