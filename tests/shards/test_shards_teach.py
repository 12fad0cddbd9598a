"""Teach once: what is stored is what the teacher says of the view, whatever happens on the way."""

from __future__ import annotations

import io
import json
import logging
import shutil
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lgd_timm import files
from lgd_timm.errors import ShardError, TeacherError
from lgd_timm.preprocess import Preprocess
from lgd_timm.recipe import TeachRecipe
from lgd_timm.shards.index import IndexedTar, ShardSet, open_shards
from lgd_timm.shards.read import InOrder, ShardDataset, loader
from lgd_timm.shards.stored import StoredEmbeddings, find_stored, open_stored
from lgd_timm.shards.teach import teach, teach_recipe
from lgd_timm.shards.views import Views, decode
from lgd_timm.teachers import ImageTeacher, OpenCLIP, spec_from_dict

VIEWS = Views(size=16, augmentation="light", count=3)


class Tiny(ImageTeacher):
    """A fixed random projection. Fails at call `fail_at`."""

    def __init__(self, *, seed: int = 0, fail_at: int | None = None) -> None:
        super().__init__(Preprocess(size=8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)))
        self.name, self.embed_dim, self.fingerprint = "tiny", 5, f"{seed:02x}" * 8
        weight = torch.randn(5, 3 * 8 * 8, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("weight", weight)
        self.calls, self.fail_at = 0, fail_at

    def encode(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        return inputs.flatten(1) @ self.weight.T


@pytest.fixture
def shards(shard_folder: Path, tmp_path: Path) -> ShardSet:
    """The train split (3 shards of 16) in a folder of its own."""
    return open_shards(shutil.copytree(shard_folder, tmp_path / "colours"), split="train")


def run(shards: ShardSet, teacher: ImageTeacher | None = None, **options: object) -> StoredEmbeddings:
    return teach(
        teacher or Tiny(), shards, **{"spec": {"kind": "tiny"}, "text_fingerprint": "t", "views": VIEWS, "batch_size": 12, **options}
    )


def images_of(shards: ShardSet) -> list[tuple[str, str, Tensor]]:
    """(file name, key, image) of every readable sample."""
    found = []
    for shard, filename in enumerate(shards.filenames):
        tar = IndexedTar(shards.path(shard))
        for key, fields in tar.samples.items():
            field = next(field for field in fields if field != "cls")
            found.append((filename, key, decode(tar.read(key, field))))
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


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.startswith(".")]


def says(teacher: ImageTeacher, views: Views, image: Tensor, key: str, index: int) -> np.ndarray:
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
    for batch in loader(dataset, InOrder(range(48), 4, views=3), workers=1):
        again = torch.nn.functional.normalize(Tiny()(batch.images), dim=1)
        torch.testing.assert_close(batch.embeddings.float(), again, atol=1e-3, rtol=0)


def test_sidecars_hold_the_same_keys_and_teaching_again_gives_the_same_bytes(shards: ShardSet, tmp_path: Path) -> None:
    first, second = run(shards, out=tmp_path / "1"), run(shards, out=tmp_path / "2")
    assert first.facts == second.facts
    for shard, filename in enumerate(shards.filenames):
        assert IndexedTar(first.root / filename).keys == IndexedTar(shards.path(shard)).keys
        assert (first.root / filename).read_bytes() == (second.root / filename).read_bytes()
    assert (first.root / "_info.json").read_text() == (second.root / "_info.json").read_text()


def test_views_do_not_depend_on_how_many_there_are(shards: ShardSet, tmp_path: Path) -> None:
    few, many = (run(shards, out=tmp_path / str(k), views=Views(size=16, augmentation="light", count=k)) for k in (1, 3))
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
def test_the_end_of_a_temporary_name_does_not_matter(shards: ShardSet, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    make = tempfile.mkstemp
    monkeypatch.setattr(files.tempfile, "mkstemp", lambda **options: make(suffix=end, **options))
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
def test_embeddings_of_another_origin_do_not_mix(shards: ShardSet, tmp_path: Path, options: dict, differing: str) -> None:
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
def test_a_bad_image_is_left_out_and_counted(shards: ShardSet, tmp_path: Path, batch_size: int, caplog: pytest.LogCaptureFixture) -> None:
    key = spoil(shards, 1, 5)
    with pytest.raises(ShardError, match=rf"1 of 48 samples can't be read.*{shards.filenames[1]}/{key}"):
        run(shards, out=tmp_path / "none", max_bad=0.0, batch_size=batch_size)
    assert hidden(tmp_path / "none") == []
    with caplog.at_level(logging.WARNING):
        stored = run(shards, out=tmp_path / "some", max_bad=0.03, batch_size=batch_size)
    assert len([record for record in caplog.records if f"skipped {shards.filenames[1]}/{key}" in record.getMessage()]) == 1
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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_teacher_that_says_nan_is_refused(shards: ShardSet, tmp_path: Path, value: float) -> None:
    teacher = Tiny()
    teacher.weight[2, 7] = value
    with pytest.raises(TeacherError, match="teacher tiny gave embeddings that are not finite"):
        run(shards, teacher, out=tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["_teacher.json"]


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


def test_a_stored_array_of_another_shape_or_kind_is_refused(shards: ShardSet) -> None:
    stored = run(shards)
    path = stored.root / shards.filenames[0]
    for array, message in (
        (np.zeros((2, 5), np.float16), r"shape \(2, 5\), expected \(3, 5\)"),
        (np.array([{}], object), "allow_pickle=False"),
    ):
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=True)
        with tarfile.open(path, "w") as tar:
            member = tarfile.TarInfo("key.npy")
            member.size = len(buffer.getvalue())
            tar.addfile(member, io.BytesIO(buffer.getvalue()))
        with pytest.raises(ValueError, match=message):
            open_stored(stored.root).read(shards.filenames[0], "key", 0)


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


# A real teacher


def test_teach_recipe(shards: ShardSet, tiny_clip: Path) -> None:
    spec = OpenCLIP(model=f"local-dir:{tiny_clip}")
    views = Views(size=32, augmentation="light", count=2)
    recipe = TeachRecipe(teacher=spec, views=views, shards=str(shards.root), split="val", device="cpu", batch_size=8)
    stored = teach_recipe(recipe)
    val = open_shards(shards.root, split="val")
    teacher = spec.image()
    for filename, key, image in images_of(val):
        for index in range(2):
            np.testing.assert_allclose(stored.read(filename, key, index), says(teacher, views, image, key, index), atol=1e-3)
    assert find_stored(val, views=views, teacher=teacher.fingerprint).root == stored.root
    assert spec_from_dict(stored.facts["teacher"]) == spec
    assert stored.facts["text_fingerprint"] == spec.text().fingerprint
    assert (stored.embed_dim, stored.views) == (16, views)
