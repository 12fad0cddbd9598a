"""Stored embeddings are found beside the shards that they are of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lgd_timm.data import Views
from lgd_timm.errors import TeacherError
from lgd_timm.teachers import Conse, OpenCLIP, Stored

LIGHT = Views(size=32, augmentation="light", count=3)


@pytest.fixture
def clip(tiny_clip: Path) -> OpenCLIP:
    return OpenCLIP(f"local-dir:{tiny_clip}")


def found(spec: Stored, folder: Path, *, split: str = "train", views: Views | None = None) -> str:
    embeddings = spec.found_beside(str(folder), split=split, views=views).embeddings
    assert embeddings is not None
    assert Path(embeddings).parent == folder
    return Path(embeddings).name


def test_the_one_that_fits_is_found(taught_folder: Path, clip: OpenCLIP) -> None:
    assert "-light-" in found(Stored(), taught_folder)
    assert "-light-" in found(Stored(taught_by=clip, dtype="float16"), taught_folder, views=LIGHT)
    assert "-none-" in found(Stored(), taught_folder, split="val")
    assert "-light-" in found(Stored(target="image", taught_on=LIGHT), taught_folder)
    assert "-light-" in found(Stored(str(taught_folder)), taught_folder)


def test_a_folder_that_is_named_is_taken_as_it_is() -> None:
    assert Stored("no/where").found_beside("nothing", split="train", views=None) == Stored("no/where")


@pytest.mark.parametrize(
    ("spec", "views", "reason"),
    [
        (Stored(taught_by=Conse("resnet18", "all-MiniLM-L6-v2")), None, "s0-k3-.*: of another teacher"),
        (Stored(dtype="int8"), None, "stored as float16"),
        (Stored(target="image", taught_on=Views(size=16, augmentation="none")), None, "taught on Views"),
        (Stored(), Views(size=16, augmentation="light"), "asked for Views"),
    ],
)
def test_where_none_fits_it_is_said_which_there_are_and_why(
    taught_folder: Path, spec: Stored, views: Views | None, reason: str
) -> None:
    with pytest.raises(TeacherError, match=f"fit the recipe .*{reason}.* Make them with: lgd-timm teach RECIPE"):
        spec.found_beside(str(taught_folder), split="train", views=views)


def test_shards_without_embeddings(shard_folder: Path) -> None:
    with pytest.raises(TeacherError, match="there are none"):
        Stored().found_beside(str(shard_folder), split="train", views=None)


def test_several_are_listed_and_two_types_of_numbers_are_not_several(taught_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(taught_folder, tmp_path / "colours"))
    first = next(folder.glob("*-light-*"))
    copy = Path(shutil.copytree(first, folder / "zz-other"))
    assert found(Stored(), folder) == first.name
    facts = json.loads((copy / "_teacher.json").read_text())
    (copy / "_teacher.json").write_text(json.dumps({**facts, "fingerprint": "0" * 16}))
    with pytest.raises(TeacherError, match=f"Several embeddings .*: {first.name}, zz-other. Name one"):
        Stored().found_beside(str(folder), split="train", views=None)


def test_a_damaged_folder_is_no_reason_to_miss_the_right_one(taught_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(taught_folder, tmp_path / "colours"))
    copy = Path(shutil.copytree(next(folder.glob("*-light-*")), folder / "aa-damaged"))
    (copy / "_teacher.json").write_text("{")
    assert "-light-" in found(Stored(), folder)


def test_an_address_lists_no_folders() -> None:
    with pytest.raises(TeacherError, match=r"lists no folders\. Name the folder"):
        Stored().found_beside("https://host/shards", split="train", views=None)
