"""Shards written again with smaller images: what stays, what the index says, and that a kill costs little."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lgd_timm import cli
from lgd_timm.data import Views, open_shards
from lgd_timm.data import resize_shards as module
from lgd_timm.data.dataset import ShardDataset
from lgd_timm.data.index import Resize, ShardSet
from lgd_timm.data.resize import ResizedSample
from lgd_timm.data.resize_shards import resize_shards
from lgd_timm.data.tar import IndexedTar
from lgd_timm.data.verify_shards import check_shards
from lgd_timm.data.writer import write_shards
from lgd_timm.errors import ShardError, TeacherError
from lgd_timm.utils.files import atomic_file
from tests.helpers.commands import say
from tests.helpers.folder_server import FolderServer
from tests.helpers.runs import run

HOW = Resize(short_side=20, quality=90)


def samples(shards: ShardSet) -> list[tuple[str, bytes, set[str]]]:
    """Key, label and fields of each sample, in order."""
    tars = [IndexedTar(shards.path(number)) for number in range(len(shards.filenames))]
    return [(key, tar.read(key, "cls"), set(tar.samples[key])) for tar in tars for key in tar.keys]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_keys_labels_and_names_stay(shard_folder: Path, train_shards: ShardSet, tmp_path: Path) -> None:
    train, val = resize_shards(shard_folder, tmp_path / "small", how=HOW, workers=2)
    assert (train.split, val.split) == ("train", "val")
    assert (train.filenames, train.lengths, train.class_names) == (
        train_shards.filenames,
        train_shards.lengths,
        train_shards.class_names,
    )
    assert [(key, label) for key, label, _ in samples(train)] == [(k, label) for k, label, _ in samples(train_shards)]
    assert all(fields == {"cls", "jpg"} for _, _, fields in samples(train))
    assert (train.resized, train.resized_from) == (HOW, train_shards.sha256)
    assert train.fingerprint != train_shards.fingerprint
    assert check_shards(tmp_path / "small", decode=True).problems == []
    batch = ShardDataset(train, views=Views(size=20, augmentation="none"))[(5, 0)]
    assert batch.images.shape == (1, 3, 20, 20)
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == sorted(
        ["_info.json", *train.filenames, *val.filenames]
    )


def test_the_same_shards_give_the_same_bytes_also_from_an_address(shard_folder: Path, tmp_path: Path) -> None:
    resize_shards(shard_folder, tmp_path / "near", how=HOW)
    with FolderServer(shard_folder.parent, tmp_path / "scratch") as server:
        resize_shards(f"{server.url}/{shard_folder.name}", tmp_path / "far", how=HOW)
    assert content(tmp_path / "near") == content(tmp_path / "far")


def test_writing_and_resizing_is_writing_small(image_folder: Path, shard_folder: Path, tmp_path: Path) -> None:
    (train,) = resize_shards(shard_folder, tmp_path / "a", how=HOW, split="train")
    written = write_shards(image_folder, tmp_path / "b", name="colours", samples_per_shard=16, resize=HOW, workers=2)
    assert (written.resized, written.resized_from) == (HOW, ())
    assert samples(written) == samples(train)
    views = Views(size=16, augmentation="none")
    a, b = (ShardDataset(shards, views=views).__getitems__([(i, 0) for i in range(48)]) for shards in (train, written))
    assert torch.equal(a.images, b.images)


def test_a_finished_folder_is_left_alone(shard_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    first = resize_shards(shard_folder, tmp_path / "small", how=HOW)
    before = content(tmp_path / "small")
    assert resize_shards(shard_folder, tmp_path / "small", how=HOW) == first
    assert content(tmp_path / "small") == before
    assert "is finished already" in caplog.text


@pytest.mark.parametrize("moment", [0, 1, 17, 30, 47])
def test_a_kill_leaves_whole_shards_and_it_goes_on(moment: int, shard_folder: Path, tmp_path: Path) -> None:
    """`moment`: samples that were written."""
    out, expected = tmp_path / "small", tmp_path / "expected"
    resize_shards(shard_folder, expected, how=HOW, split="train")

    def die() -> None:
        add, count = module.ResizeReport.add, 0

        def counted(self: object, done: ResizedSample) -> None:
            nonlocal count
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            add(self, done)  # type: ignore[arg-type]

        module.ResizeReport.add = counted  # type: ignore[method-assign]
        resize_shards(shard_folder, out, how=HOW, split="train")

    child = multiprocessing.get_context("fork").Process(target=die)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    whole = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar") if not path.name.startswith(".")}
    assert len(whole) == moment // 16
    assert all((out / name).read_bytes() == (expected / name).read_bytes() for name in whole)
    with pytest.raises(ShardError, match="not a finished shard folder"):
        open_shards(out, split="train")
    resize_shards(shard_folder, out, how=HOW, split="train")
    assert content(out) == content(expected)
    assert {name: (out / name).stat().st_mtime_ns for name in whole} == whole, "a whole shard was written again"


def test_other_settings_or_other_shards_are_refused(
    shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "small"
    resize_shards(shard_folder, out, how=HOW, split="val")
    with pytest.raises(ShardError, match=r"already has a split 'val', of other images or other settings"):
        resize_shards(shard_folder, out, how=Resize(24, 90))
    monkeypatch.setattr(module, "_write_index", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        resize_shards(shard_folder, out, how=HOW, split="train")
    with pytest.raises(ShardError, match=r"holds a part of other shards, or of the same in other sizes"):
        resize_shards(shard_folder, out, how=Resize(24, 90), split="train")
    with pytest.raises(ShardError, match="is the folder that is read"):
        resize_shards(shard_folder, shard_folder, how=HOW)
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "colours-train-00001.tar").write_bytes(b"mine")
    with pytest.raises(ShardError, match=r"already holds colours-train-00001\.tar"):
        resize_shards(shard_folder, tmp_path / "strange", how=HOW)
    assert (tmp_path / "strange" / "colours-train-00001.tar").read_bytes() == b"mine"


def test_a_second_run_waits_for_nobody(shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    out = tmp_path / "small"
    monkeypatch.setattr(module, "_write_index", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        resize_shards(shard_folder, out, how=HOW, split="val")
    holding, done = multiprocessing.get_context("fork").Event(), multiprocessing.get_context("fork").Event()

    def hold() -> None:
        with (out / "_resize-val.json").open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            holding.set()
            done.wait()

    child = multiprocessing.get_context("fork").Process(target=hold)
    child.start()
    holding.wait()
    try:
        with pytest.raises(ShardError, match="Another lgd-timm shards resize is writing"):
            resize_shards(shard_folder, out, how=HOW, split="val")
    finally:
        done.set()
        child.join()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_shard_is_one_clear_error(
    workers: int, shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(shard_folder, tmp_path / "source"))
    path = source / open_shards(source, split="train").filenames[1]
    path.write_bytes(path.read_bytes()[:9000])
    command = ["shards", "resize", str(source), str(tmp_path / "out"), "--short-side", "20"]
    assert cli.main([*command, "--workers", str(workers)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"lgd-timm: error: {path} is damaged (")
    assert not (tmp_path / "out" / "_info.json").exists()


def test_a_bad_image_stays_a_bad_sample(shard_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.effect_noise((40, 30), 50).convert("RGB").save(images / "good.jpg")
    Image.effect_noise((400, 300), 50).convert("RGB").save(images / "cut.png")
    (images / "cut.png").write_bytes((images / "cut.png").read_bytes()[:3000])
    shards = write_shards(images, tmp_path / "shards", resize=HOW)
    assert "cut can't be made smaller and keeps its bytes" in caplog.text
    dataset = ShardDataset(shards, views=Views(size=16, augmentation="none"))
    batch = dataset.__getitems__([(0, 0), (1, 0)])
    assert (batch.keys, [name.rpartition("/")[2] for name, _ in batch.bad]) == (["good"], ["cut"])
    (resized,) = resize_shards(tmp_path / "shards", tmp_path / "smaller", how=Resize(16, 90))
    assert len(resized) == 2
    assert "keeps its bytes" in caplog.text.splitlines()[-1]


def test_the_command_says_how_many_and_how_large(
    shard_folder: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small"
    sizes = ("--short-side", "20", "--quality", "90", "--workers", "0")
    said = say(capsys, "shards", "resize", shard_folder, out, "--split", "train", *sizes)
    size = sum(path.stat().st_size for path in out.glob("*.tar"))
    assert said == (
        f"{out}: 48 images in 3 shards, {size / 1e6:.1f} MB, split 'train' "
        "(short side of at most 20 pixels, JPEG quality 90)\n"
    )
    assert open_shards(out, split="train").resized == HOW
    said = say(capsys, "shards", "write", image_folder, tmp_path / "written", *sizes)
    assert "(short side of at most 20 pixels, JPEG quality 90)" in said
    assert open_shards(tmp_path / "written", split="train").resized == HOW


def test_embeddings_of_the_source_stand_for_images_and_not_for_views(taught_folder: Path, tmp_path: Path) -> None:
    from lgd_timm.data.stored_embeddings import open_stored

    stored = open_stored(next(taught_folder.glob("*-light-*")))
    (train,) = resize_shards(taught_folder, tmp_path / "small", how=HOW, split="train")
    with pytest.raises(TeacherError, match=r"before they were resized \(short side .*lgd-timm teach on the resized"):
        stored.check(train, stored.views)
    stored.per_image = True
    stored.check(train, stored.views)
    for filename, key in ((train.filenames[0], samples(train)[0][0]), (train.filenames[2], samples(train)[47][0])):
        assert stored.read(filename, key, 2).shape == (stored.embed_dim,)
    with pytest.raises(TeacherError, match="made from other shards"):
        open_stored(stored.root).check(ShardSet(**{**vars(train), "resized_from": ("0" * 64,)}), stored.views)


def test_what_was_resized_is_said_on_the_card(shard_folder: Path, recipe_dict: dict[str, Any], tmp_path: Path) -> None:
    from lgd_timm.publish.metrics import read_metrics

    resize_shards(shard_folder, tmp_path / "small", how=HOW, split="train")
    write_shards(shard_folder.parent / "val", tmp_path / "small", split="val")
    published = run(recipe_dict, tmp_path / "run", data={"shards": str(tmp_path / "small")}, schedule={"epochs": 1})
    assert read_metrics(published)["resized"] == {"train": {"short_side": 20, "quality": 90}}
    card = (published / "README.md").read_text()
    assert "split `train` were encoded anew, once: JPEG of quality 90, short side at most 20 pixels" in card


@pytest.mark.parametrize(
    "entry", [{"short_side": "x", "quality": 9}, {"quality": 9}, [1], {"short_side": 1, "quality": 9}]
)
def test_an_index_that_says_nonsense_is_refused(entry: object, shard_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shard_folder, tmp_path / "copy"))
    info = json.loads((folder / "_info.json").read_text())
    info["splits"]["train"]["resized"] = entry
    with atomic_file(folder / "_info.json") as temporary:
        temporary.write_text(json.dumps(info))
    with pytest.raises(ShardError, match=r"_info\.json(: split 'train'| can't be read .*splits\.train\.resized)"):
        open_shards(folder, split="train")
