"""What lies where: the same samples as webdataset's own reader, also in odd and damaged tars."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from lgd_timm.data import Views
from lgd_timm.data.dataset import ShardDataset
from lgd_timm.data.index import ShardSet, open_shards
from lgd_timm.data.subset import draw_labels, labelled_keys, positions, read_subset
from lgd_timm.data.tar import OPEN_FILES, IndexedTar, _handle
from lgd_timm.data.verify_shards import check_shards
from lgd_timm.data.writer import index_shards
from lgd_timm.errors import ShardError
from lgd_timm.utils.lfs import POINTER


def write_tar(path: Path, *files: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def by_webdataset(path: Path) -> dict[str, dict[str, bytes]]:
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
    return {s["__key__"]: {field: value for field, value in s.items() if not field.startswith("__")} for s in samples}


def by_us(path: Path) -> dict[str, dict[str, bytes]]:
    tar = IndexedTar(path)
    assert tar.damage is None
    return {key: {field: tar.read(key, field) for field in tar.samples[key]} for key in tar.keys}


def test_random_access_equals_webdatasets_reading(train_shards: ShardSet) -> None:
    for shard, length in enumerate(train_shards.lengths):
        ours, theirs = by_us(train_shards.path(shard)), by_webdataset(train_shards.path(shard))
        assert list(ours) == list(theirs)
        assert ours == theirs
        assert len(ours) == length


def test_tars_of_others_are_read_as_webdataset_does(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(
        path,
        ("README", b"no dot, no sample"),
        ("a.jpg", b"1"),
        ("a.cls", b"2"),
        ("sub/a.jpg", b"3"),
        ("./b.jpg", b"4"),
        (".hidden", b"no key, no sample"),
        ("sub/.hidden", b"nor here, where webdataset has a key 'sub/'"),
        ("sub/._a.jpg", b"of macOS's tar"),
        ("c.seg.PNG", b"5" * 2000),
        ("d.v2/e.txt", b""),
        ("ü" * 120 + ".jpg", b"6"),
    )
    with tarfile.open(path, "a") as tar:
        folder = tarfile.TarInfo("folder.d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    ours = by_us(path)
    theirs = by_webdataset(path)
    del theirs["sub/"]  # hidden files, of which it makes a sample without an image
    assert ours == theirs
    assert list(ours) == ["a", "sub/a", "./b", "c", "d.v2/e", "ü" * 120]
    assert ours["c"] == {"seg.png": b"5" * 2000}


def test_few_files_stay_open(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    _handle.cache_clear()
    before = len(os.listdir("/proc/self/fd"))
    tars = [IndexedTar(write_tar(tmp_path / f"{i}.tar", ("a.cls", str(i).encode()))) for i in range(OPEN_FILES + 40)]
    assert len(os.listdir("/proc/self/fd")) == before
    for _ in range(2):
        assert [int(tar.read("a", "cls")) for tar in tars] == list(range(len(tars)))
    assert len(os.listdir("/proc/self/fd")) == before + OPEN_FILES


def test_processes_that_share_a_tar_do_not_disturb_each_other(tmp_path: Path) -> None:
    """A forked process inherits open files with their position: each must open its own."""
    tar = IndexedTar(write_tar(tmp_path / "a.tar", *((f"{i}.cls", bytes([i]) * 3000) for i in range(20))))
    tar.read("0", "cls")

    def read_all() -> bool:
        return all(tar.read(str(i), "cls") == bytes([i]) * 3000 for _ in range(200) for i in range(20))

    children = [
        multiprocessing.get_context("fork").Process(target=lambda: sys.exit(0 if read_all() else 1)) for _ in range(2)
    ]
    for child in children:
        child.start()
    assert read_all()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("stem", ["a", "a" * 99, "b" * 150, "folder/" * 20 + "c", "ü" * 40, "é" * 60])
def test_any_tar_is_read_as_tarfile_reads_it(tmp_path: Path, format: int, stem: str) -> None:
    path = tmp_path / "a.tar"
    names = [f"{stem}{i}.jpg" for i in range(4)]
    try:
        with tarfile.open(path, "w", format=format) as tar:
            for i, name in enumerate(names):
                member = tarfile.TarInfo(name)
                member.size = 700 * i
                tar.addfile(member, io.BytesIO(bytes([i]) * member.size))
                tar.addfile(_directory(f"folder{i}"))
    except ValueError:
        pytest.skip("a name that this format can't hold")
    found = IndexedTar(path)
    assert found.damage is None
    assert [f"{key}.jpg" for key in found.keys] == names
    assert [found.read(key, "jpg") for key in found.keys] == [bytes([i]) * 700 * i for i in range(4)]


def _directory(name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = tarfile.DIRTYPE
    return member


def test_wherever_a_tar_is_cut_whole_samples_stay_and_the_damage_is_said(tmp_path: Path) -> None:
    files = [(f"{key}.{field}", data) for key in "abc" for field, data in (("cls", b"1"), ("jpg", key.encode() * 700))]
    whole = IndexedTar(write_tar(tmp_path / "whole.tar", *files))
    assert whole.damage is None
    ends = {key: max(offset + size for offset, size in fields.values()) for key, fields in whole.samples.items()}
    data = whole.path.read_bytes()
    content = -(-max(ends.values()) // 512) * 512
    for cut in {
        *range(0, content + 1024, 128),
        *ends.values(),
        *(end - 1 for end in ends.values()),
        content + 511,
        content + 512,
    }:
        path = tmp_path / "cut.tar"
        path.write_bytes(data[:cut])
        tar = IndexedTar(path)
        expected = [key for key, end in ends.items() if end <= cut]
        assert [key for key in tar.keys if tar.samples[key] == whole.samples[key]] == expected, cut
        assert (tar.damage is None) == (cut >= content + 512), (cut, tar.damage)
        assert all(tar.read(key, "jpg") == whole.read(key, "jpg") for key in expected)


def test_a_sample_that_is_cut_is_no_sample(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", ("a.jpg", b"1" * 600), ("b.jpg", b"2"), ("b.cls", b"3" * 600))
    places = IndexedTar(path).samples
    with path.open("r+b") as file:
        file.truncate(places["b"]["cls"][0] + 100)
    tar = IndexedTar(path)
    assert tar.keys == ("a",)
    assert tar.damage == "b.cls ends after the file's end"


def test_a_broken_header_is_damage(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", ("a.jpg", b"1"), ("b.jpg", b"2"), ("c.jpg", b"3"))
    data = bytearray(path.read_bytes())
    data[1024:1034] = b"xxxxxxxxxx"
    path.write_bytes(data)
    tar = IndexedTar(path)
    assert tar.keys == ("a",)
    assert tar.damage == "no header and no end mark at byte 1024"


@pytest.mark.parametrize("data", [b"", b"short", b"<html>" + b"x" * 2000])
def test_what_is_no_tar_has_no_samples(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    tar = IndexedTar(tmp_path / "a.tar")
    assert tar.keys == ()
    assert tar.damage


def test_open_shards_tells_what_was_written(shard_folder: Path) -> None:
    train, val = open_shards(shard_folder, split="train"), open_shards(str(shard_folder), split="val")
    assert (len(train), train.lengths, len(val)) == (48, (16, 16, 16), 12)
    assert train.class_names == ("blue", "green", "red")
    assert train.fingerprint == open_shards(shard_folder, split="train").fingerprint != val.fingerprint


def test_the_fingerprint_is_of_the_content_not_of_the_place(shard_folder: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(shard_folder, tmp_path / "moved")
    expected = open_shards(shard_folder, split="train").fingerprint
    assert open_shards(moved, split="train").fingerprint == expected
    info = json.loads((moved / "_info.json").read_text())
    info["splits"]["train"]["sha256"][1] = "0" * 64
    (moved / "_info.json").write_text(json.dumps(info))
    assert open_shards(moved, split="train").fingerprint != expected


def test_a_missing_split_names_those_that_are_there(shard_folder: Path) -> None:
    with pytest.raises(ShardError, match="no split 'test'; it has train, val"):
        open_shards(shard_folder, split="test")


def test_a_missing_shard_is_named(shard_folder: Path, tmp_path: Path) -> None:
    root = shutil.copytree(shard_folder, tmp_path / "copy")
    (root / "colours-train-00001.tar").unlink()
    with pytest.raises(ShardError, match=r"lacks 1 of 3 shards of 'train', first colours-train-00001\.tar"):
        open_shards(root, split="train")
    assert len(open_shards(root, split="val")) == 12


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_index_is_not_finished(tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "x").mkdir()
    with pytest.raises(
        ShardError, match=r"holds no _info\.json, so it is not a finished shard folder.*lgd-timm shards write"
    ):
        open_shards(tmp_path / "x", split="train")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"splits": ["train"]}', "\udcff"])
def test_a_malformed_index_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "_info.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ShardError, match=r"_info\.json can't be read as timm's shard index"):
        open_shards(tmp_path, split="train")


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {},
        {"filenames": ["a.tar"]},
        {"filenames": ["a.tar"], "shard_lengths": []},
        {"filenames": [], "shard_lengths": []},
    ],
)
def test_a_malformed_split_is_said(tmp_path: Path, entry: object) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"train": entry}}))
    with pytest.raises(ShardError, match=r"split.*train"):
        open_shards(tmp_path, split="train")


@pytest.mark.parametrize("name", ["../other.tar", "/etc/passwd", "sub/x.tar", "..", ""])
def test_shards_lie_in_their_folder(shard_folder: Path, tmp_path: Path, name: str) -> None:
    """An index comes with the shards of others.

    It may not lead out of the folder, to be read or, by `teach`, written.
    """
    folder = Path(shutil.copytree(shard_folder, tmp_path / "shards"))
    info = json.loads((folder / "_info.json").read_text())
    info["splits"]["train"]["filenames"][0] = name
    (folder / "_info.json").write_text(json.dumps(info))
    with pytest.raises(ShardError, match="which is not in this folder"):
        open_shards(folder, split="train")


@pytest.mark.parametrize("times", [2, 3])
def test_a_shard_that_is_listed_more_than_once_is_refused(shard_folder: Path, tmp_path: Path, times: int) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(shard_folder, folder)
    info = json.loads((folder / "_info.json").read_text())
    entry = info["splits"]["train"]
    for key in ("filenames", "shard_lengths", "sha256"):
        entry[key] += [entry[key][0]] * (times - 1)
    (folder / "_info.json").write_text(json.dumps(info))
    for read in (lambda: open_shards(folder, split="train"), lambda: check_shards(folder)):
        with pytest.raises(ShardError, match="more than once"):
            read()


def test_a_length_that_its_tar_cant_have_is_refused(shard_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(shard_folder, folder)
    info = json.loads((folder / "_info.json").read_text())
    info["splits"]["train"]["shard_lengths"][0] = 90_000_000
    (folder / "_info.json").write_text(json.dumps(info))
    with pytest.raises(ShardError, match="too few for the 90000000 samples"):
        open_shards(folder, split="train")


def test_a_shard_that_git_lfs_did_not_fetch_is_said(shard_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(shard_folder, folder)
    next(folder.glob("*train*.tar")).write_bytes(POINTER + b"v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ShardError, match="git lfs pull"):
        open_shards(folder, split="train")


def test_keys_that_are_no_utf8_are_read_drawn_and_verified(tmp_path: Path) -> None:
    """As zip files of old systems leave them; `shards write` refuses such names, and tars of others may have them."""
    picture = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(picture, "PNG")
    key = os.fsdecode(b"p\xe8re")
    write_tar(tmp_path / "a.tar", (f"{key}.png", picture.getvalue()), (f"{key}.cls", b"0"))
    shards = index_shards(tmp_path)
    batch = ShardDataset(shards, views=Views(size=4, augmentation="light")).__getitems__([(0, 0)])
    assert (batch.bad, batch.images[0, :, 0, 0].tolist()) == ((), [255, 0, 0])
    assert check_shards(tmp_path).problems == []
    draw_labels(*labelled_keys(shards), per_class=1).write(tmp_path / "subset.json")
    assert positions(shards, read_subset(tmp_path / "subset.json")) == [0]
