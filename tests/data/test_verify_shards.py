"""`lgd-timm shards verify`: whatever is wrong with a set is named, and nothing else; status 1 says so."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lgd_timm import cli
from lgd_timm.data import open_shards
from lgd_timm.data.tar import IndexedTar
from lgd_timm.data.verify_shards import check_shards
from lgd_timm.data.views import Views
from lgd_timm.training.teach import teach
from lgd_timm.utils.files import sha256_of
from tests.helpers.folder_server import FolderServer
from tests.helpers.tiny_teacher import Tiny

FIRST, SECOND = "colours-train-00000.tar", "colours-train-00001.tar"


@pytest.fixture(scope="module")
def taught(shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards with float16 embeddings of train beside them, in folder tiny. Read only."""
    folder = Path(shutil.copytree(shard_folder, tmp_path_factory.mktemp("verify") / "colours"))
    stored(folder, "tiny")
    return folder


def stored(folder: Path, name: str, *, dtype: str = "float16") -> None:
    shards = open_shards(folder, split="train")
    views = Views(size=16, augmentation="light", count=2)
    teach(Tiny(), shards, spec={"kind": "tiny"}, text_fingerprint="t", views=views, out=folder / name, dtype=dtype)


@pytest.fixture
def folder(taught: Path, tmp_path: Path) -> Path:
    """The same in a folder of its own, to be damaged."""
    return Path(shutil.copytree(taught, tmp_path / "colours"))


def rewrite(path: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """Each file of a tar as `change` gives it; None leaves it out. The index knows of it."""
    with tarfile.open(path) as tar:
        files = [(member, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w") as tar:
        for member, data in files:
            new = change(member.name, data)
            if new is not None:
                member.size = len(new)
                tar.addfile(member, io.BytesIO(new))
    resum(path)


def resum(path: Path) -> None:
    """Let the indexes say that this is what they mean."""
    edit_info(
        path.parent, lambda entry: entry["sha256"].__setitem__(entry["filenames"].index(path.name), sha256_of(path))
    )
    if (path.parent / "tiny").is_dir():
        taught = json.loads((path.parent / "_info.json").read_text())["splits"]["train"]["sha256"]
        edit_info(path.parent / "tiny", lambda entry: entry.update(taught=taught))


def edit_info(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    info = json.loads((folder / "_info.json").read_text())
    change(info["splits"]["train"])
    (folder / "_info.json").write_text(json.dumps(info))


def first_key(path: Path, *, field: str = "") -> str:
    tar = IndexedTar(path)
    return next(key for key in tar.keys if field in (*tar.samples[key], ""))


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def unit(dtype: str = "float16") -> np.ndarray:
    return np.eye(2, 5).astype(dtype)


def test_what_is_right_is_all_right(taught: Path) -> None:
    found = check_shards(taught, decode=True)
    assert str(found) == "60 images in 4 shards, 1 folder of embeddings: all right."
    assert found.problems == []
    assert str(check_shards(taught, split="val")) == "12 images in 1 shard, 1 folder of embeddings: all right."


def flip(folder: Path) -> None:
    """In a place that is no header, so that only the sum tells."""
    path = folder / FIRST
    tar = IndexedTar(path)
    offset, size = tar.samples[tar.keys[3]]["cls"]
    content = bytearray(path.read_bytes())
    content[offset + size] ^= 1
    path.write_bytes(content)


def cut(folder: Path) -> None:
    content = (folder / FIRST).read_bytes()
    (folder / FIRST).write_bytes(content[: len(content) // 2])
    resum(folder / FIRST)


def empty_image(folder: Path) -> None:
    key = first_key(folder / FIRST, field="jpg")
    rewrite(folder / FIRST, lambda name, data: b"gone" if name == f"{key}.jpg" else data)


def no_image(folder: Path) -> None:
    key = first_key(folder / FIRST, field="jpg")
    rewrite(folder / FIRST, lambda name, data: None if name == f"{key}.jpg" else data)


def strange_label(folder: Path, label: bytes) -> None:
    key = first_key(folder / FIRST)
    rewrite(folder / FIRST, lambda name, data: label if name == f"{key}.cls" else data)


def twice(folder: Path) -> None:
    shutil.copyfile(folder / FIRST, folder / SECOND)
    shutil.rmtree(folder / "tiny")
    resum(folder / SECOND)


def embedding(folder: Path, data: bytes | None) -> None:
    key = first_key(folder / FIRST)
    rewrite(folder / "tiny" / FIRST, lambda name, old: data if name == f"{key}.npy" else old)


def of_others(folder: Path) -> None:
    edit_info(folder / "tiny", lambda entry: entry.update(taught=["0" * 64] * 3))


WRONG: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "flip": (flip, [rf"{FIRST}: should have sha256 [0-9a-f]+, but has [0-9a-f]+\. Copy it again"]),
    "cut": (
        cut,
        [
            rf"{FIRST}: the tar is damaged \(.*\) and holds \d+ of 16 samples\. "
            r"Copy it again, or write the shards anew\.",
            rf"tiny/{FIRST}: has other keys than its shard",
        ],
    ),
    "gone": (lambda folder: (folder / SECOND).unlink(), [rf"{SECOND}: can't be read \(.*No such file.*Copy it here"]),
    "more": (
        lambda folder: edit_info(folder, lambda entry: entry.update(shard_lengths=[16, 17, 16])),
        [rf"{SECOND}: holds 16 samples, its index says 17\. Copy it again"],
    ),
    "no bytes of an image": (
        empty_image,
        [rf"{FIRST}/.*: 4 bytes that are no image\. Write the shards anew without it"],
    ),
    "no image": (no_image, [rf"{FIRST}/.*: no image among its fields \(cls\)"]),
    "no number for a label": (lambda folder: strange_label(folder, b"cat"), [rf"{FIRST}/.*: invalid literal.*cat"]),
    "no class of that number": (
        lambda folder: strange_label(folder, b"3"),
        [rf"{FIRST}/.*: label 3, where there are 3 classes"],
    ),
    "the same keys": (
        twice,
        [rf"{SECOND}/.*: {FIRST} has that key too, and it names one sample\. Write the shards anew"] * 16,
    ),
    "no embeddings file": (lambda folder: (folder / "tiny" / SECOND).unlink(), [rf"tiny/{SECOND}: can't be read"]),
    "an embedding that is missing": (
        lambda folder: embedding(folder, None),
        [
            rf"tiny/{FIRST}: holds 15 samples, its index says 16\. Remove it and run",
            rf"tiny/{FIRST}: has other keys.*, 1 differ, first ",
        ],
    ),
    "another shape": (
        lambda folder: embedding(folder, npy(unit()[:1])),
        [rf"tiny/{FIRST}/.*has shape \(1, 5\), expected \(2, 5\)"],
    ),
    "another type": (
        lambda folder: embedding(folder, npy(unit("float32"))),
        [rf"tiny/{FIRST}/.*type float32, expected float16"],
    ),
    "no array": (lambda folder: embedding(folder, b"x" * 99), [rf"tiny/{FIRST}/.*can't be read"]),
    "nan": (
        lambda folder: embedding(folder, npy(unit() * np.float16(np.nan))),
        ["not finite in 2 of 2 views. Remove it and run"],
    ),
    "long rows": (
        lambda folder: embedding(folder, npy(unit() * np.float16(1.5))),
        ["no unit row in 2 of 2 views, one has length 1.5"],
    ),
    "zeros": (lambda folder: embedding(folder, npy(0 * unit())), ["no unit row in 2 of 2 views, one has length 0"]),
    "embeddings of others": (
        of_others,
        ["tiny: was made from other shards of 'train' than these. Remove it and run lgd-timm teach"],
    ),
    "embeddings that are not finished": (
        lambda folder: (folder / "tiny" / "_info.json").unlink(),
        ["tiny holds no finished teacher emb"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_and_nothing_else(name: str, folder: Path) -> None:
    harm, expected = WRONG[name]
    harm(folder)
    problems = check_shards(folder).problems
    assert len(problems) == len(expected), problems
    for line, pattern in zip(problems, expected, strict=True):
        assert re.search(pattern, line), line
        assert line.startswith(str(folder))
        assert "\n" not in line


def test_pixels_are_read_where_that_is_asked_for(folder: Path) -> None:
    key = first_key(folder / FIRST, field="jpg")
    rewrite(folder / FIRST, lambda name, data: data[:-100] if name == f"{key}.jpg" else data)
    assert check_shards(folder).problems == []
    (problem,) = check_shards(folder, decode=True).problems
    assert f"{FIRST}/{key}: can't be read as an image" in problem


def test_int8_rows_of_zeros_are_seen(folder: Path) -> None:
    stored(folder, "small", dtype="int8")
    assert check_shards(folder).problems == []
    key = first_key(folder / FIRST)
    rewrite(
        folder / "small" / FIRST, lambda name, data: npy(np.zeros((2, 5), np.int8)) if name == f"{key}.npy" else data
    )
    (problem,) = check_shards(folder).problems
    assert "not finite in 2 of 2 views" in problem


def test_a_sample_that_teaching_left_out_is_no_problem(folder: Path) -> None:
    shutil.rmtree(folder / "tiny")
    empty_image(folder)
    shards = open_shards(folder, split="train")
    options: dict[str, Any] = {
        "spec": {"kind": "tiny"},
        "text_fingerprint": "t",
        "views": Views(size=16, augmentation="light"),
    }
    teach(Tiny(), shards, out=folder / "tiny", max_bad=0.1, **options)
    (problem,) = check_shards(folder).problems
    assert "4 bytes that are no image" in problem


def test_without_sums_bytes_are_not_compared_which_is_said(folder: Path) -> None:
    shutil.rmtree(folder / "tiny")
    edit_info(folder, lambda entry: entry.pop("sha256"))
    flip(folder)
    found = check_shards(folder, split="train")
    assert str(found) == "48 images in 3 shards: all right. Bytes were not compared: the index has no sha256 sums."


def test_an_address_is_verified_as_well(taught: Path, tmp_path: Path) -> None:
    with FolderServer(taught.parent, tmp_path / "scratch") as server:
        found = check_shards(f"{server.url}/colours", embeddings=[f"{server.url}/colours/tiny"])
        assert str(found) == "60 images in 4 shards, 1 folder of embeddings: all right."
        server.faults.add("status", f"/colours/{SECOND}", value=404)
        cached = tmp_path / "cache/shards" / f"{sha256_of(taught / SECOND)}.tar"
        assert check_shards(f"{server.url}/colours").problems == [], "what is in the cache was asked for"
        cached.write_bytes(cached.read_bytes()[:-1] + b"?")
        (problem,) = check_shards(f"{server.url}/colours").problems
        assert problem.startswith(f"{server.url}/colours/{SECOND} can't be had: the server says 404")


# The command


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["shards", "verify", str(folder), "--decode"]) == 0
    assert capsys.readouterr().out == f"{folder}: 60 images in 4 shards, 1 folder of embeddings: all right.\n"
    flip(folder)
    with (folder / "colours-val-00000.tar").open("ab") as file:
        file.write(b"and more")
    assert cli.main(["shards", "verify", str(folder)]) == 1
    *problems, summary = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in problems] == [f"{folder}/{FIRST}", f"{folder}/colours-val-00000.tar"]
    assert summary == f"{folder}: 60 images in 4 shards, 1 folder of embeddings: 2 problems."
    assert cli.main(["shards", "verify", str(folder), "--split", "val"]) == 1
    assert capsys.readouterr().out.endswith(": 1 problem.\n")


def test_where_there_is_nothing_to_verify(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["shards", "verify", str(tmp_path / "none")]) == 2
    assert "holds no _info.json" in capsys.readouterr().err
    assert cli.main(["shards", "verify", str(folder), "--split", "test"]) == 2
    assert "has no split 'test'; it has train, val" in capsys.readouterr().err
    assert cli.main(["shards", "verify", str(folder / "tiny")]) == 2
    assert "holds a teacher's embeddings, and no images" in capsys.readouterr().err


def test_an_image_folder_of_that_name_is_reached(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(image_folder, "verify")
    assert cli.main(["shards", "write", "verify", "out"]) == 0
    assert cli.main(["shards", "verify", "out"]) == 0
    assert capsys.readouterr().out.endswith("out: 48 images in 1 shard: all right.\n")
    with pytest.raises(SystemExit):
        cli.main(["shards", "--help"])
    assert "verify    check shards and the embeddings beside them" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["shards", "verify", "--help"])
    assert "usage: lgd-timm shards verify [-h] [--split SPLIT] [--decode]" in capsys.readouterr().out
