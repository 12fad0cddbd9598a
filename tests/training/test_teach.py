"""Teach once: what is stored is what the teacher says of the view, whatever happens on the way."""

from __future__ import annotations

import importlib
import io
import json
import logging
import multiprocessing
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset

from lgd_timm.config.recipe import TeachRecipe
from lgd_timm.data import sidecar
from lgd_timm.data.dataset import ShardDataset
from lgd_timm.data.decode import EncodedImage
from lgd_timm.data.index import ShardSet, open_shards
from lgd_timm.data.loader import loader
from lgd_timm.data.samplers import SequentialSampler
from lgd_timm.data.sidecar import RECORD
from lgd_timm.data.stored_embeddings import StoredEmbeddings, find_stored, open_stored
from lgd_timm.data.tar import IndexedTar
from lgd_timm.data.views import Views
from lgd_timm.errors import ShardError, TeacherError
from lgd_timm.teachers import ImageTeacher, OpenCLIP, spec_from_dict
from lgd_timm.training.teach import teach, teach_recipe
from lgd_timm.utils import files
from lgd_timm.utils.progress import progress_bar
from tests.helpers.tiny_teacher import Tiny

VIEWS = Views(size=16, augmentation="light", count=3)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def shards(shard_folder: Path, tmp_path: Path) -> ShardSet:
    """The train split (3 shards of 16) in a folder of its own."""
    return open_shards(shutil.copytree(shard_folder, tmp_path / "colours"), split="train")


def run(shards: ShardSet, teacher: ImageTeacher | None = None, **options: object) -> StoredEmbeddings:
    return teach(
        teacher or Tiny(),
        shards,
        **{"spec": {"kind": "tiny"}, "text_fingerprint": "t", "views": VIEWS, "batch_size": 12, **options},
    )


def images_of(shards: ShardSet) -> list[tuple[str, str, EncodedImage]]:
    """(file name, key, picture) of every readable sample."""
    found = []
    for shard, filename in enumerate(shards.filenames):
        tar = IndexedTar(shards.path(shard))
        for key, fields in tar.samples.items():
            field = next(field for field in fields if field != "cls")
            found.append((filename, key, EncodedImage(tar.read(key, field))))
    return found


def spoil(shards: ShardSet, shard: int, place: int) -> str:
    """Make one image unreadable, byte counts unchanged; returns its key."""
    tar = IndexedTar(shards.path(shard))
    key = tar.keys[place]
    offset, size = next(where for field, where in tar.samples[key].items() if field != "cls")
    with shards.path(shard).open("r+b") as file:
        file.seek(offset)
        file.write(b"x" * size)
    return key


def in_another_process(function: Callable[[], object]) -> int:
    """Its exit code; negative: the signal that ended it."""
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def entry(stored: StoredEmbeddings) -> dict[str, Any]:
    return json.loads((stored.root / "_info.json").read_text())["splits"]["train"]


def without_record(path: Path) -> None:
    """Take the record out of a sidecar; the samples stay."""
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar if member.name != RECORD]
    with tarfile.open(path, "w") as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.startswith(".")]


def says(teacher: ImageTeacher, views: Views, image: EncodedImage, key: str, index: int) -> np.ndarray:
    embedding = teacher(views.render(image, key, index)[None])[0]
    return (embedding / embedding.norm()).numpy()


@pytest.mark.parametrize(("batch_size", "workers"), [(12, 0), (1, 0), (1000, 2)])
def test_what_is_stored_is_what_the_teacher_says_of_the_view(shards: ShardSet, batch_size: int, workers: int) -> None:
    stored = run(shards, batch_size=batch_size, workers=workers)
    images = images_of(shards)
    assert len(images) == 48
    for filename, key, image in images:
        for index in range(3):
            embedding = stored.read(filename, key, index)
            assert embedding.dtype == np.float16
            np.testing.assert_allclose(embedding, says(Tiny(), VIEWS, image, key, index), atol=1e-3)
            assert abs(np.linalg.norm(embedding.astype(np.float64)) - 1) < 2e-3


def test_the_batch_brings_the_embedding_of_its_own_pixels(shards: ShardSet) -> None:
    dataset = ShardDataset(shards, views=VIEWS, stored=run(shards))
    for batch in loader(dataset, SequentialSampler(range(48), 4, views=3), workers=1):
        again = torch.nn.functional.normalize(Tiny()(batch.images), dim=1)
        torch.testing.assert_close(batch.embeddings.float(), again, atol=1e-3, rtol=0)


def test_sidecars_hold_the_same_keys_and_teaching_again_gives_the_same_bytes(shards: ShardSet, tmp_path: Path) -> None:
    first, second = run(shards, out=tmp_path / "1"), run(shards, out=tmp_path / "2")
    assert first.metadata == second.metadata
    for shard, filename in enumerate(shards.filenames):
        assert IndexedTar(first.root / filename).keys == IndexedTar(shards.path(shard)).keys
        assert (first.root / filename).read_bytes() == (second.root / filename).read_bytes()
    assert (first.root / "_info.json").read_text() == (second.root / "_info.json").read_text()


def test_views_do_not_depend_on_how_many_there_are(shards: ShardSet, tmp_path: Path) -> None:
    few, many = (
        run(shards, out=tmp_path / str(k), views=Views(size=16, augmentation="light", count=k)) for k in (1, 3)
    )
    for filename, key, _ in images_of(shards):
        np.testing.assert_allclose(few.read(filename, key, 0), many.read(filename, key, 0), atol=1e-3)


def test_a_stopped_run_goes_on_where_it_was(shards: ShardSet, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(shards, Tiny(fail_at=6), out=out)  # 4 batches of 4 samples a shard: in the middle of the second
    assert hidden(out) == []
    assert sorted(path.name for path in out.iterdir()) == ["_teacher.json", shards.filenames[0]]
    with pytest.raises(TeacherError, match="no finished teacher embeddings"):
        open_stored(out)
    finished = (out / shards.filenames[0]).stat().st_mtime_ns

    teacher = Tiny()
    stored = run(shards, teacher, out=out)
    assert teacher.calls == 8  # two shards, not three
    assert (out / shards.filenames[0]).stat().st_mtime_ns == finished
    whole = run(shards, out=tmp_path / "whole")
    assert all((out / name).read_bytes() == (whole.root / name).read_bytes() for name in shards.filenames)
    stored.check(shards, VIEWS)

    teacher = Tiny()
    run(shards, teacher, out=out)
    assert teacher.calls == 0


@pytest.mark.parametrize("damage", ["cut", "other keys"])
def test_a_sidecar_that_is_not_whole_is_taught_again(shards: ShardSet, damage: str) -> None:
    stored = run(shards)
    path = stored.root / shards.filenames[1]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else (stored.root / shards.filenames[2]).read_bytes())
    teacher = Tiny()
    run(shards, teacher)
    assert path.read_bytes() == whole
    assert teacher.calls == 4


@pytest.mark.parametrize("end", ["gz", "bz2", "xz"])
def test_the_end_of_a_temporary_name_does_not_matter(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    draw = secrets.token_hex
    monkeypatch.setattr(files.secrets, "token_hex", lambda count: f"{draw(count)}.{end}")
    stored = run(shards)
    filename, key, image = images_of(shards)[20]
    np.testing.assert_allclose(stored.read(filename, key, 1), says(Tiny(), VIEWS, image, key, 1), atol=1e-3)


@pytest.mark.parametrize(
    ("options", "differing"),
    [
        ({"teacher": Tiny(seed=1)}, "fingerprint"),
        ({"views": Views(size=16, augmentation="flip", count=3)}, "views, views_fingerprint"),
        ({"views": Views(size=16, augmentation="light", count=4)}, "views"),
        ({"views": Views(size=16, augmentation="light", count=3, seed=1)}, "views, views_fingerprint"),
        ({"text_fingerprint": "u"}, "text_fingerprint"),
    ],
)
def test_embeddings_of_another_origin_do_not_mix(
    shards: ShardSet, tmp_path: Path, options: dict, differing: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(shards, Tiny(fail_at=6), out=out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(TeacherError, match=rf"embeddings of another origin \({differing} differ\)"):
        run(shards, out=out, **options)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_by_default_each_origin_has_its_folder(shards: ShardSet) -> None:
    roots = [
        run(shards, teacher, views=views).root
        for teacher, views in (
            (Tiny(), VIEWS),
            (Tiny(seed=1), VIEWS),
            (Tiny(), Views(size=17, augmentation="light", count=3)),
            (Tiny(), Views(size=16, augmentation="light", count=2)),
        )
    ]
    assert len(set(roots)) == 4
    assert {root.parent for root in roots} == {shards.root}


def test_a_folder_that_names_the_teacher_by_an_earlier_fingerprint_goes_on(shards: ShardSet) -> None:
    """Fingerprints were of the computed class embeddings once, whose last digits differ between machines."""
    before, teacher = Tiny(), Tiny()
    before.fingerprint = "0123456789abcdef"
    teacher.earlier_fingerprints = (before.fingerprint,)
    stored = run(shards, before)
    calls = teacher.calls
    assert run(shards, teacher, out=stored.root).root == stored.root
    assert teacher.calls == calls
    with pytest.raises(TeacherError, match="of another origin"):
        run(shards, Tiny(), out=stored.root)


def test_embeddings_are_found_by_any_fingerprint_of_their_teacher(shards: ShardSet) -> None:
    teacher = Tiny()
    teacher.earlier_fingerprints = ("0123456789abcdef",)
    stored = run(shards, teacher)
    for name in (teacher.fingerprint, "0123456789abcdef"):
        found = find_stored(shards, views=VIEWS, teacher=name)
        assert found is not None
        assert found.root == stored.root
    assert find_stored(shards, views=VIEWS, teacher="feed0123beef4567") is None


def test_all_embeddings_are_read_a_shard_at_a_time(shards: ShardSet) -> None:
    stored = run(shards)
    whole = list(stored.batches(shards, views=2))
    assert [rows.shape for rows in whole] == [(2 * length, stored.embed_dim) for length in shards.lengths]
    key = next(iter(stored.tar(shards.filenames[1]).samples))
    np.testing.assert_array_equal(whole[1][1], stored.read(shards.filenames[1], key, 1))
    (second,) = stored.batches(shards, views=2, numbers=[1])
    np.testing.assert_array_equal(second, whole[1])


def test_embeddings_of_other_shards_are_refused(shards: ShardSet, shard_folder: Path, tmp_path: Path) -> None:
    stored = run(shards, out=tmp_path / "out")
    stored.check(open_shards(shard_folder, split="train"), VIEWS)  # a copy elsewhere is the same
    info = json.loads((shards.root / "_info.json").read_text())
    info["splits"]["train"]["sha256"][2] = "0" * 64
    (shards.root / "_info.json").write_text(json.dumps(info))
    other = open_shards(shards.root, split="train")
    with pytest.raises(TeacherError, match="was made from other shards than"):
        stored.check(other, VIEWS)
    with pytest.raises(TeacherError, match=r"was made from other shards than .* Choose another --out"):
        run(other, out=tmp_path / "out")
    with pytest.raises(TeacherError, match="was made from other shards than"):
        open_stored(tmp_path / "out").check(other, VIEWS)  # teaching did not adopt them


def test_two_splits_share_a_folder(shards: ShardSet, tmp_path: Path) -> None:
    val = open_shards(shards.root, split="val")
    stored = run(shards, out=tmp_path / "out")
    with pytest.raises(TeacherError, match="no embeddings of split 'val'"):
        stored.check(val, VIEWS)
    stored = run(val, out=tmp_path / "out")
    stored.check(val, VIEWS)
    stored.check(shards, VIEWS)


@pytest.mark.parametrize("batch_size", [12, 1])  # 1: the bad sample is a batch of its own
def test_a_bad_image_is_left_out_and_counted(
    shards: ShardSet, tmp_path: Path, batch_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    key = spoil(shards, 1, 5)
    with pytest.raises(ShardError, match=rf"1 of 48 samples can't be read.*{shards.filenames[1]}/{key}"):
        run(shards, out=tmp_path / "none", max_bad=0.0, batch_size=batch_size)
    assert hidden(tmp_path / "none") == []
    with caplog.at_level(logging.WARNING):
        stored = run(shards, out=tmp_path / "some", max_bad=0.03, batch_size=batch_size)
    assert (
        len([record for record in caplog.records if f"skipped {shards.filenames[1]}/{key}" in record.getMessage()]) == 1
    )
    assert [len(IndexedTar(stored.root / name).keys) for name in shards.filenames] == [16, 15, 16]
    info = json.loads((stored.root / "_info.json").read_text())["splits"]["train"]
    assert (info["num_samples"], info["shard_lengths"]) == (47, [16, 15, 16])
    with pytest.raises(ShardError, match=f"no stored embedding for '{key}'"):
        stored.read(shards.filenames[1], key, 0)


def test_a_sample_without_embedding_is_a_bad_sample(shards: ShardSet, shard_folder: Path) -> None:
    key = spoil(shards, 0, 2)
    stored = run(shards, max_bad=0.03)
    whole = open_shards(shard_folder, split="train")
    batch = ShardDataset(whole, views=VIEWS, stored=stored).__getitems__([(position, 0) for position in range(6)])
    assert len(batch.keys) == len(batch.embeddings) == 5
    ((name, reason),) = batch.bad
    assert name == f"{whole.filenames[0]}/{key}"
    assert "no stored embedding" in reason


def test_what_was_left_out_is_known_to_the_next_run(
    shards: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = [spoil(shards, shard, 5) for shard in (0, 2)]
    names = [f"{shards.filenames[shard]}/{key}" for shard, key in zip((0, 2), keys, strict=True)]
    with pytest.raises(KeyboardInterrupt):
        run(shards, Tiny(fail_at=6), out=tmp_path / "out", max_bad=0.05)
    teacher = Tiny()
    stored = run(shards, teacher, out=tmp_path / "out", max_bad=0.05)
    assert teacher.calls == 8  # the first shard, with its hole, is done
    assert list(entry(stored)["left_out"]) == names
    before = contents(stored.root)

    caplog.clear()
    teacher = Tiny()
    run(shards, teacher, out=tmp_path / "out", max_bad=0.05)
    assert teacher.calls == 0
    assert contents(stored.root) == before
    for name in names:
        assert any(f"skipped {name}" in line and "as before" in line for line in caplog.messages)
    with pytest.raises(ShardError, match=r"2 of 48 samples can't be read"):
        run(shards, out=tmp_path / "out", max_bad=0.03)


def test_the_record_is_no_sample(shards: ShardSet) -> None:
    stored = run(shards)
    for filename in shards.filenames:
        path = stored.root / filename
        with tarfile.open(path) as tar:
            assert tar.getnames()[-1] == RECORD
        assert all(set(fields) == {"npy"} for fields in IndexedTar(path).samples.values())
        read = list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False).decode())
        assert [(sample["__key__"], sample["npy"].shape) for sample in read] == [
            (key, (3, 5)) for key in IndexedTar(path).keys
        ]


def test_a_sidecar_without_its_record_is_not_finished(shards: ShardSet) -> None:
    stored = run(shards)
    before = {filename: (stored.root / filename).read_bytes() for filename in shards.filenames}
    without_record(stored.root / shards.filenames[1])
    teacher = Tiny()
    run(shards, teacher)
    assert teacher.calls > 0
    assert {filename: (stored.root / filename).read_bytes() for filename in shards.filenames} == before


def test_a_shard_that_changed_before_the_folder_was_finished_is_taught_again(shards: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(shards, Tiny(fail_at=6), out=tmp_path / "out")
    teacher = Tiny()
    run(replace(shards, sha256=("0" * 64, *shards.sha256[1:])), teacher, out=tmp_path / "out")
    assert teacher.calls == 12


def test_a_killed_run_goes_on_and_gives_the_same_bytes(shards: ShardSet, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert in_another_process(lambda: run(shards, Tiny(fail_at=7, fail=kill), out=out)) == -signal.SIGKILL
    assert len(hidden(out)) == 1  # nobody could clear up
    assert sorted(path.name for path in out.iterdir() if path.name not in hidden(out)) == [
        "_teacher.json",
        shards.filenames[0],
    ]
    (out / ".mine").touch()
    teacher = Tiny()
    stored = run(shards, teacher, out=out)
    assert teacher.calls == 8
    assert hidden(out) == [".mine"]
    (out / ".mine").unlink()
    assert contents(out) == contents(run(shards, out=tmp_path / "whole").root)
    assert entry(stored)["fidelity"]["least_cosine"] > 0.99999


def test_two_runs_do_not_write_to_one_folder(shards: ShardSet) -> None:
    def rival() -> None:
        try:
            run(shards)
        except TeacherError as error:
            sys.exit(7 if "Another lgd-timm teach is writing" in str(error) else 1)

    codes = []
    stored = run(shards, Tiny(fail_at=6, fail=lambda: codes.append(in_another_process(rival))))
    assert codes == [7]
    assert in_another_process(rival) == 0  # the lock is gone with the run
    stored.check(shards, VIEWS)


def test_a_shard_without_a_good_image_has_an_empty_sidecar(shards: ShardSet, tmp_path: Path) -> None:
    keys = [spoil(shards, 1, place) for place in range(16)]
    with pytest.raises(ShardError, match="can't be read"):
        run(shards, out=tmp_path / "none", max_bad=0.3)
    stored = run(shards, out=tmp_path / "some", max_bad=0.34)
    assert entry(stored)["shard_lengths"] == [16, 0, 16]
    assert list(entry(stored)["left_out"]) == [f"{shards.filenames[1]}/{key}" for key in keys]
    teacher = Tiny()
    run(shards, teacher, out=tmp_path / "some", max_bad=0.34)
    assert teacher.calls == 0


def test_a_shard_that_is_empty(shards: ShardSet, tmp_path: Path) -> None:
    with tarfile.open(shards.root / "empty.tar", "w"):
        pass
    shards = replace(
        shards, filenames=("empty.tar", *shards.filenames), lengths=(0, *shards.lengths), sha256=("e", *shards.sha256)
    )
    stored = run(shards, out=tmp_path / "out")
    assert entry(stored)["shard_lengths"] == [0, 16, 16, 16]
    assert stored.read(shards.filenames[1], IndexedTar(shards.path(1)).keys[0], 0).shape == (5,)


def test_a_sidecar_that_lost_samples_on_the_way_is_not_called_finished(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = sidecar.SidecarWriter.add
    monkeypatch.setattr(
        sidecar.SidecarWriter, "add", lambda self, keys, rows, bad: add(self, keys[:-3], rows[:-3], bad=bad)
    )
    with pytest.raises(ShardError, match=rf"{shards.filenames[0]} .*does not hold the 16 samples.*start again"):
        run(shards, out=tmp_path / "out")
    assert not (tmp_path / "out" / "_info.json").exists()
    monkeypatch.undo()
    run(shards, out=tmp_path / "out").check(shards, VIEWS)


def test_no_forward_is_of_more_images_than_the_batch_size(shards: ShardSet, tmp_path: Path) -> None:
    teacher = Tiny()
    many = run(shards, teacher, batch_size=2, out=tmp_path / "2")  # 3 views
    assert teacher.sizes == {2, 1}
    one = run(shards, batch_size=1000, out=tmp_path / "1000")
    for filename, key, _ in images_of(shards):
        np.testing.assert_allclose(many.read(filename, key, 2), one.read(filename, key, 2), atol=1e-3)


def test_a_compiled_teacher_sees_one_batch_size(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[ImageTeacher] = []

    def compile_encoder(teacher: ImageTeacher) -> None:  # a function, as methods are: it is bound to its teacher
        compiled.append(teacher)

    monkeypatch.setattr(Tiny, "compile_encoder", compile_encoder)
    spoil(shards, 0, 3)
    teacher = Tiny()
    stored = run(shards, teacher, batch_size=22, compile=True, max_bad=0.1, out=tmp_path / "c")
    assert compiled == [teacher]
    assert teacher.sizes == {21}
    other = run(shards, batch_size=22, max_bad=0.1, out=tmp_path / "e")
    for filename in shards.filenames:
        for key in IndexedTar(stored.root / filename).keys:
            np.testing.assert_allclose(stored.read(filename, key, 1), other.read(filename, key, 1), atol=1e-3)


def test_one_loader_walks_all_shards(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    walks = []
    monkeypatch.setattr(
        importlib.import_module("lgd_timm.training.teach"),
        "loader",
        lambda *args, **options: walks.append(loader(*args, **options)) or walks[-1],
    )
    run(shards, workers=1)
    assert [len(walk) for walk in walks] == [12]


def test_rate_and_time_left_count_what_is_done_now(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bars: list[dict[str, Any]] = []
    monkeypatch.setattr(
        importlib.import_module("lgd_timm.training.teach"),
        "progress_bar",
        lambda **options: bars.append(options) or progress_bar(**options),
    )
    spoil(shards, 0, 0)
    with pytest.raises(KeyboardInterrupt):
        run(shards, Tiny(fail_at=7), out=tmp_path / "out", max_bad=0.03)
    with caplog.at_level(logging.INFO):
        run(shards, out=tmp_path / "out", max_bad=0.03)
    assert [(bar["initial"], bar["total"]) for bar in bars] == [(0, 144), (45, 144)]
    assert any("teach train: 96 views of 32 images in " in line and " images/s" in line for line in caplog.messages)
    assert any(line.startswith("fidelity of float16: mean cosine 1.000000, least ") for line in caplog.messages)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_teacher_that_says_nan_is_refused(shards: ShardSet, tmp_path: Path, value: float) -> None:
    teacher = Tiny()
    teacher.weight[2, 7] = value
    with pytest.raises(TeacherError, match="teacher tiny gave embeddings that are not finite"):
        run(shards, teacher, out=tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["_teacher.json"]
    run(shards, out=tmp_path / "out").check(shards, VIEWS)


def test_a_teacher_that_says_nothing_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    teacher = Tiny()
    teacher.weight.zero_()
    with pytest.raises(TeacherError, match="not finite, or zero: 12 of 12 in a batch"):
        run(shards, teacher, out=tmp_path / "out")


# Stored embeddings


def test_more_or_other_views_than_stored_are_refused(shards: ShardSet) -> None:
    stored = run(shards)
    stored.check(shards, VIEWS)
    stored.check(shards, Views(size=16, augmentation="light", count=1))
    for views in (
        Views(size=16, augmentation="light", count=4),
        Views(size=16, augmentation="mocov2", count=3),
        Views(size=32, augmentation="light", count=3),
        Views(size=16, augmentation="light", count=3, seed=1),
    ):
        with pytest.raises(TeacherError, match=r"holds Views\(.*count=3.* asked for Views\("):
            stored.check(shards, views)


def test_views_of_another_version_are_refused(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = run(shards)
    monkeypatch.setattr("lgd_timm.data.views.VERSION", "another")
    with pytest.raises(
        TeacherError, match=r"was taught with another version of the views \(.*other pixels now.*teach again"
    ):
        stored.check(shards, VIEWS)
    with pytest.raises(TeacherError, match=r"holds Views\("):
        stored.check(shards, replace(VIEWS, seed=1))
    assert find_stored(shards, views=VIEWS, teacher=Tiny().fingerprint) is None
    assert run(shards).root != stored.root


def test_find_stored_goes_by_teacher_views_and_shards(shards: ShardSet, shard_folder: Path) -> None:
    none = Views(size=16, augmentation="none")
    other = run(shards, Tiny(seed=1), views=none)
    plain, light = run(shards, views=none), run(shards)
    ours = Tiny().fingerprint
    assert find_stored(shards, views=VIEWS, teacher=ours).root == light.root
    assert find_stored(shards, views=none, teacher=ours).root == plain.root
    assert find_stored(shards, views=None, teacher=ours).root == plain.root
    assert find_stored(shards, views=None, teacher=Tiny(seed=1).fingerprint).root == other.root
    assert find_stored(shards, views=VIEWS, teacher=Tiny(seed=1).fingerprint) is None
    assert find_stored(shards, views=VIEWS, teacher="nobody") is None
    assert find_stored(open_shards(shards.root, split="val"), views=VIEWS, teacher=ours) is None
    assert find_stored(open_shards(shard_folder, split="train"), views=VIEWS, teacher=ours) is None
    (light.root / "_info.json").unlink()
    assert find_stored(shards, views=VIEWS, teacher=ours) is None


def test_a_folder_that_teach_did_not_finish_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", shards.root):
        with pytest.raises(TeacherError, match=r"no finished teacher embeddings.*lgd-timm teach"):
            open_stored(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", ""])
def test_a_malformed_teacher_file_is_said(shards: ShardSet, text: str) -> None:
    stored = run(shards)
    (stored.root / "_teacher.json").write_text(text)
    with pytest.raises(TeacherError, match=r"_teacher\.json can't be read"):
        open_stored(stored.root)
    with pytest.raises(TeacherError, match=r"_teacher\.json can't be read"):
        run(shards)


def test_a_cut_sidecar_says_its_damage(shards: ShardSet) -> None:
    stored = run(shards)
    path = stored.root / shards.filenames[0]
    keys = IndexedTar(path).keys
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    reader = open_stored(stored.root)
    assert reader.read(path.name, keys[0], 2).shape == (5,)
    with pytest.raises(ShardError, match=rf"no stored embedding for '{keys[-1]}' in .* \(.+\)"):
        reader.read(path.name, keys[-1], 0)


# int8


def test_int8_keeps_the_direction(shards: ShardSet) -> None:
    whole, small = run(shards), run(shards, dtype="int8")
    assert small.root.name == f"{whole.root.name}-int8"
    cosines = []
    for filename, key, image in images_of(shards):
        stored = np.load(io.BytesIO(IndexedTar(small.root / filename).read(key, "npy")), allow_pickle=False)
        assert (stored.shape, stored.dtype) == ((3, 5), np.int8)
        for index in range(3):
            said = says(Tiny(), VIEWS, image, key, index)
            np.testing.assert_allclose(stored[index], 127 * said / np.abs(said).max(), atol=0.501)
            again = small.read(filename, key, index)
            assert again.dtype == np.float16
            assert abs(np.linalg.norm(again.astype(np.float64)) - 1) < 2e-3
            cosines.append(float(said @ again.astype(np.float32)) / np.linalg.norm(again.astype(np.float32)))
    assert np.isclose(entry(small)["fidelity"]["mean_cosine"], np.mean(cosines), atol=1e-6)
    assert np.isclose(entry(small)["fidelity"]["least_cosine"], np.min(cosines), atol=1e-6)
    assert entry(whole)["fidelity"]["least_cosine"] > entry(small)["fidelity"]["least_cosine"] > 0.999
    assert find_stored(shards, views=VIEWS, teacher=Tiny().fingerprint).root == whole.root


def test_forms_do_not_mix(shards: ShardSet, tmp_path: Path) -> None:
    run(shards, out=tmp_path / "out")
    with pytest.raises(TeacherError, match=r"another origin \(dtype differ"):
        run(shards, out=tmp_path / "out", dtype="int8")


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_fidelity_is_of_all_shards_after_a_restart(shards: ShardSet, tmp_path: Path, dtype: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(shards, Tiny(fail_at=11), out=tmp_path / "out", dtype=dtype)
    run(shards, out=tmp_path / "out", dtype=dtype)
    assert contents(tmp_path / "out") == contents(run(shards, out=tmp_path / "whole", dtype=dtype).root)


# A real teacher, and real processes


def test_teach_recipe(shards: ShardSet, tiny_clip: Path) -> None:
    spec = OpenCLIP(model=f"local-dir:{tiny_clip}")
    views = Views(size=32, augmentation="light", count=2)
    recipe = TeachRecipe(teacher=spec, views=views, shards=str(shards.root), split="val", device="cpu", batch_size=8)
    stored = teach_recipe(recipe)
    val = open_shards(shards.root, split="val")
    teacher = spec.image()
    for filename, key, image in images_of(val):
        for index in range(2):
            np.testing.assert_allclose(
                stored.read(filename, key, index), says(teacher, views, image, key, index), atol=1e-3
            )
    assert find_stored(val, views=views, teacher=teacher.fingerprint).root == stored.root
    assert spec_from_dict(stored.metadata["teacher"]) == spec
    assert stored.metadata["text_fingerprint"] == spec.text().fingerprint
    assert (stored.embed_dim, stored.views) == (16, views)


@pytest.fixture
def recipe(shards: ShardSet, tiny_clip: Path, tmp_path: Path) -> TeachRecipe:
    """The tiny CLIP on the three train shards; written as a file, too."""
    views = Views(size=32, augmentation="light", count=2)
    recipe = TeachRecipe(
        OpenCLIP(f"local-dir:{tiny_clip}"), views, str(shards.root), device="cpu", batch_size=8, max_bad=0.05
    )
    (tmp_path / "teach.yaml").write_text(recipe.to_yaml())
    return recipe


def torchrun(*words: object) -> subprocess.CompletedProcess[str]:
    ranks = (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "lgd_timm.cli",
        "teach",
    )
    return subprocess.run([*ranks, *map(str, words)], capture_output=True, text=True, timeout=120, check=False)


def test_two_processes_share_the_shards_out_and_give_the_same_bytes(
    recipe: TeachRecipe, shards: ShardSet, tmp_path: Path
) -> None:
    key = spoil(shards, 1, 5)  # that is in rank 1's part
    alone = teach_recipe(replace(recipe, dtype="int8"), out=tmp_path / "alone")
    done = torchrun(tmp_path / "teach.yaml", "--dtype", "int8", "--out", tmp_path / "both")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"embeddings: {tmp_path / 'both'}\n"
    assert done.stderr.count("teach train: 94 views of 47 images in ") == 1
    assert done.stderr.count("fidelity of int8: mean cosine 0.9999") == 1
    assert done.stderr.count(f"skipped {shards.filenames[1]}/{key}") == 1
    assert contents(tmp_path / "both") == contents(alone.root)


def test_a_rank_that_fails_ends_all(recipe: TeachRecipe, shards: ShardSet, tmp_path: Path) -> None:
    spoil(shards, 1, 5)
    done = torchrun(tmp_path / "teach.yaml", "--max_bad", "0", "--out", tmp_path / "out")
    assert done.returncode != 0
    assert "lgd-timm: error: 1 of 48 samples can't be read" in done.stderr
    assert not (tmp_path / "out" / "_info.json").exists()
    stored = teach_recipe(recipe, out=tmp_path / "out")
    assert entry(stored)["shard_lengths"] == [16, 15, 16]
    assert hidden(stored.root) == []
