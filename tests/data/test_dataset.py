"""Reading: an order that ranks, workers and restarts share, each sample once, bad samples counted and named."""

from __future__ import annotations

import io
import pickle
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lgd_timm.data.dataset import BadSamples, Batch, ShardDataset
from lgd_timm.data.decode import EncodedImage
from lgd_timm.data.index import ShardSet, open_shards
from lgd_timm.data.loader import loader, on_device
from lgd_timm.data.samplers import EpochSampler, SequentialSampler
from lgd_timm.data.stored_embeddings import StoredEmbeddings
from lgd_timm.data.tar import IndexedTar
from lgd_timm.data.views import Views
from lgd_timm.errors import ShardError

LENGTHS = (7, 5, 9, 11, 1)  # 33: one batch of 8 is left over, and one sample
VIEWS = Views(size=16, augmentation="light", count=3)


def walk(**options: int) -> list[list[tuple[int, int]]]:
    return list(EpochSampler(LENGTHS, **{"batch_size": 8, "stop": 12, "views": 3, "seed": 5, **options}))


def positions(batches: list[list[tuple[int, int]]]) -> list[int]:
    return [position for batch in batches for position, _ in batch]


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def same(first: Batch, second: Batch) -> bool:
    return (
        first.keys == second.keys
        and first.bad == second.bad
        and torch.equal(first.images, second.images)
        and torch.equal(first.labels, second.labels)
    )


@pytest.fixture
def copied(shard_folder: Path, tmp_path: Path) -> ShardSet:
    """The train split in a folder of its own, to be damaged."""
    return open_shards(shutil.copytree(shard_folder, tmp_path / "copied"), split="train")


def change(shards: ShardSet, shard: int, place: int, field: str | None, data: bytes) -> str:
    """Put other bytes into one sample (field None: its image); returns its key."""
    path = shards.path(shard)
    with tarfile.open(path) as tar:
        files = [(member, tar.extractfile(member).read()) for member in tar]
    key = IndexedTar(path).keys[place]
    with tarfile.open(path, "w") as tar:
        for member, old in files:
            stem, _, suffix = member.name.partition(".")
            hit = stem == key and (suffix == field if field else suffix != "cls")
            member.size = len(data) if hit else len(old)
            tar.addfile(member, io.BytesIO(data if hit else old))
    return key


# The order


def test_each_epoch_is_a_permutation_of_its_own() -> None:
    plan = EpochSampler(LENGTHS, batch_size=8, window=2)
    orders = [plan.order(epoch).tolist() for epoch in range(5)]
    assert all(sorted(order) == list(range(33)) for order in orders)
    assert len({tuple(order) for order in orders}) == 5
    assert plan.order(3).tolist() == orders[3]  # whatever was asked before


def test_seeds_give_other_orders() -> None:
    assert len({tuple(EpochSampler(LENGTHS, batch_size=8, seed=seed).order(0).tolist()) for seed in range(5)}) == 5


def test_an_epoch_shows_no_sample_twice() -> None:
    batches = walk()
    for epoch in range(3):
        shown = positions(batches[4 * epoch : 4 * epoch + 4])
        assert len(set(shown)) == 32
    assert set(positions(walk(stop=80))) == set(range(33))  # what one epoch leaves out, another shows


def test_windows_keep_reads_near_each_other() -> None:
    shards = np.repeat(np.arange(len(LENGTHS)), LENGTHS)[EpochSampler(LENGTHS, batch_size=8, window=2).order(0)]
    spans = [np.flatnonzero(shards == shard)[[0, -1]] for shard in range(len(LENGTHS))]
    open_at_once = [sum(first <= place <= last for first, last in spans) for place in range(len(shards))]
    assert max(open_at_once) == 2


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_ranks_share_the_batches_of_one_process(world_size: int) -> None:
    ranks = [walk(batch_size=8 // world_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [[item for part in parts for item in part] for parts in zip(*ranks, strict=True)] == walk()


@pytest.mark.parametrize("start", [1, 4, 7, 12])
def test_a_restart_goes_on_where_it_was(start: int) -> None:
    assert walk(start=start) == walk()[start:]
    assert len(EpochSampler(LENGTHS, batch_size=8, start=start, stop=12)) == 12 - start


def test_the_view_is_the_epoch_modulo_views() -> None:
    shown = [{view for _, view in batch} for batch in walk(stop=20)]
    assert shown == [{0}] * 4 + [{1}] * 4 + [{2}] * 4 + [{0}] * 4 + [{1}] * 4


def test_too_few_samples_for_one_global_batch() -> None:
    with pytest.raises(
        ShardError, match=r"33 samples are too few for one global batch of 17 x 2 ranks.*data\.batch_size"
    ):
        EpochSampler(LENGTHS, batch_size=17, world_size=2)
    assert EpochSampler(LENGTHS, batch_size=33).steps_per_epoch == 1


@pytest.mark.parametrize("batch_size", [1, 4, 10, 100])
def test_in_order_gives_every_sample_once_with_all_its_views(batch_size: int) -> None:
    sampler = SequentialSampler(range(3, 13), batch_size, views=2)
    batches = list(sampler)
    assert [item for batch in batches for item in batch] == [
        (position, view) for position in range(3, 13) for view in range(2)
    ]
    assert len(batches) == len(sampler)
    assert max(len(batch) for batch in batches) == 2 * min(batch_size, 10)


# Batches


def test_batches_hold_the_views_labels_and_keys_of_their_samples(train_shards: ShardSet) -> None:
    read = []
    for batch in loader(ShardDataset(train_shards, views=VIEWS), SequentialSampler(range(48), 10)):
        assert (batch.bad, batch.embeddings) == ((), None)
        read += list(zip(batch.keys, batch.images, batch.labels.tolist(), strict=True))
    expected = []
    for shard in range(3):
        tar = IndexedTar(train_shards.path(shard))
        for key in tar.keys:
            field = next(field for field in tar.samples[key] if field != "cls")
            image = VIEWS.render(EncodedImage(tar.read(key, field)), key, 0)
            expected.append((key, image, train_shards.class_names.index(key.partition("_-")[0])))
    assert [(key, label) for key, _, label in read] == [(key, label) for key, _, label in expected]
    assert all(torch.equal(a[1], b[1]) for a, b in zip(read, expected, strict=True))
    assert Counter(label for _, _, label in read) == {0: 16, 1: 16, 2: 16}


def test_workers_change_nothing(train_shards: ShardSet) -> None:
    plan = EpochSampler(train_shards.lengths, batch_size=16, views=3, start=1, stop=7)
    alone, helped = (list(loader(ShardDataset(train_shards, views=VIEWS), plan, workers=workers)) for workers in (0, 2))
    assert len(alone) == 6
    assert all(same(a, b) for a, b in zip(alone, helped, strict=True))


def test_a_used_dataset_can_be_pickled(train_shards: ShardSet) -> None:
    dataset = ShardDataset(train_shards, views=VIEWS)
    items = [(40, 1), (3, 0), (17, 2)]
    expected = dataset.__getitems__(items)
    state = pickle.dumps(dataset)  # as for a spawned worker
    assert state == pickle.dumps(ShardDataset(train_shards, views=VIEWS))  # the index of a tar is each worker's own
    assert same(pickle.loads(state).__getitems__(items), expected)
    assert same(dataset[40, 1], dataset.__getitems__([(40, 1)]))


def test_samples_without_label_have_minus_one(tmp_path: Path, image_folder: Path) -> None:
    from lgd_timm.data.writer import write_shards

    shards = write_shards(image_folder, tmp_path / "out", labels=False)
    assert ShardDataset(shards, views=VIEWS).__getitems__([(0, 0), (1, 0)]).labels.tolist() == [-1, -1]


def test_embeddings_are_those_of_the_sample_and_the_view(train_shards: ShardSet) -> None:
    class Known(StoredEmbeddings):
        def read(self, filename: str, key: str, view: int) -> np.ndarray:
            return np.array([train_shards.filenames.index(filename), len(key), view], np.float16)

    batch = ShardDataset(train_shards, views=VIEWS, stored=Known(Path(), {})).__getitems__([(20, 1), (0, 2), (47, 0)])
    assert batch.embeddings.dtype == torch.float16
    assert batch.embeddings.tolist() == [
        [1, len(batch.keys[0]), 1],
        [0, len(batch.keys[1]), 2],
        [2, len(batch.keys[2]), 0],
    ]
    moved = batch.to(torch.device("cpu"))
    assert torch.equal(moved.embeddings, batch.embeddings)
    assert moved.keys == batch.keys


# Colours and devices

MOCO = Views(size=24, augmentation="mocov2", count=3)


@pytest.mark.parametrize("workers", [0, 1])
def test_colours_changed_on_the_device_are_the_workers_to_one_255th(train_shards: ShardSet, workers: int) -> None:
    plan = SequentialSampler(range(48), 8, views=3)
    mine, left = (
        list(loader(ShardDataset(train_shards, views=MOCO, photometry=place), plan, workers=workers))
        for place in ("worker", "device")
    )
    assert all(not batch.color_ops for batch in mine)
    assert any(not torch.equal(a.images, b.images) for a, b in zip(mine, left, strict=True))
    for expected, batch in zip(mine, on_device(left, torch.device("cpu")), strict=True):
        assert (batch.images.int() - expected.images.int()).abs().max() <= 1
        assert batch.keys == expected.keys
        assert not batch.color_ops


def test_views_of_one_sample_that_stand_together_share_its_decoding(
    train_shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    class Counted(EncodedImage):
        def __init__(self, data: bytes) -> None:
            opened.append(data)
            super().__init__(data)

    monkeypatch.setattr("lgd_timm.data.dataset.EncodedImage", Counted)
    dataset = ShardDataset(train_shards, views=MOCO)
    together = dataset.__getitems__([(5, 0), (5, 1), (5, 2), (6, 0)])
    assert len(opened) == 2
    apart = [dataset.__getitems__([item]) for item in ((5, 0), (6, 0), (5, 1))]
    assert len(opened) == 5
    assert torch.equal(together.images[[0, 3, 1]], torch.cat([batch.images for batch in apart]))


# Bad samples

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
BAD = {
    "truncated jpeg": (None, encode(NOISE, "JPEG")[:-2000], "truncated"),
    "truncated png": (None, encode(NOISE, "PNG")[:-2000], "can't be read as an image"),
    "empty": (None, b"", "0 bytes that are no image"),
    "text": (None, b"<html>gone</html>", "17 bytes that are no image"),
    "broken png": (None, encode(NOISE, "PNG")[:33] + b"\0\0\0\0\x92\xfa\0Y" + bytes(50), "bytes that are no image"),
    "label": ("cls", b"cat", "invalid literal"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_sample_is_named_and_left_out(copied: ShardSet, case: str) -> None:
    field, data, reason = BAD[case]
    items = [(p, 0) for p in range(14, 20)]
    whole = ShardDataset(copied, views=VIEWS).__getitems__(items)
    key = change(copied, 1, 1, field, data)  # position 17
    batch = ShardDataset(copied, views=VIEWS).__getitems__(items)
    assert batch.keys == [k for k in whole.keys if k != key]
    assert torch.equal(batch.images, whole.images[[0, 1, 2, 4, 5]])
    assert torch.equal(batch.labels, whole.labels[[0, 1, 2, 4, 5]])
    ((name, said),) = batch.bad
    assert name == f"{copied.filenames[1]}/{key}"
    assert reason in said


def test_bad_samples_come_through_workers(copied: ShardSet) -> None:
    key = change(copied, 0, 3, None, b"")
    alone, helped = (
        list(loader(ShardDataset(copied, views=VIEWS), SequentialSampler(range(48), 12), workers=workers))
        for workers in (0, 2)
    )
    assert all(same(a, b) for a, b in zip(alone, helped, strict=True))
    assert [name for batch in helped for name, _ in batch.bad] == [f"{copied.filenames[0]}/{key}"]


def test_a_sample_without_image_is_bad(copied: ShardSet) -> None:
    path = copied.path(0)
    with tarfile.open(path, "w") as tar:
        for name, data in (("a.cls", b"0"), ("a.txt", b"x"), ("b.jpg", encode(NOISE, "JPEG"))):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    batch = ShardDataset(copied, views=VIEWS).__getitems__([(0, 0), (1, 0), (2, 0)])
    assert batch.keys == ["b"]
    assert dict(batch.bad) == {
        f"{path.name}/a": "ShardError: no image among its fields (cls, txt)",
        f"{path.name}/sample 2": "ShardError: the tar holds 2 samples, its index says 16",
    }


def test_a_truncated_tar_costs_only_what_it_lost(copied: ShardSet) -> None:
    tar = IndexedTar(copied.path(1))
    image_field = next(field for field in tar.samples[tar.keys[10]] if field != "cls")
    with copied.path(1).open("r+b") as file:
        file.truncate(tar.samples[tar.keys[10]][image_field][0] + 7)
    batches = list(loader(ShardDataset(copied, views=VIEWS), SequentialSampler(range(48), 16)))
    assert [len(batch.keys) for batch in batches] == [16, 10, 16]
    assert batches[1].keys == list(tar.keys[:10])
    assert [name for name, _ in batches[1].bad] == [f"{copied.filenames[1]}/sample {i}" for i in range(10, 16)]
    assert all("ends after the file's end" in reason for _, reason in batches[1].bad)


def test_a_shard_that_went_away_is_said(copied: ShardSet) -> None:
    copied.path(1).unlink()
    batch = ShardDataset(copied, views=VIEWS).__getitems__([(15, 0), (16, 0)])
    ((name, reason),) = batch.bad
    assert name == f"{copied.filenames[1]}/sample 0"
    assert "FileNotFoundError" in reason


def test_a_batch_of_bad_samples_only_is_an_error(copied: ShardSet) -> None:
    keys = [change(copied, 0, place, None, b"x") for place in (0, 1)]
    with pytest.raises(
        ShardError,
        match=rf"All 2 samples of a batch are bad, first {copied.filenames[0]}/{keys[0]}: .*1 bytes that are no image",
    ):
        ShardDataset(copied, views=VIEWS).__getitems__([(0, 0), (1, 0)])
    batch = ShardDataset(copied, views=VIEWS, allow_empty=True).__getitems__([(0, 0), (1, 0)])
    assert (batch.images.shape, batch.images.dtype) == ((0, 3, 16, 16), torch.uint8)
    assert (batch.labels.shape, batch.keys, len(batch.bad)) == ((0,), [], 2)


def test_bad_samples_are_counted_once_and_named_once() -> None:
    bad = BadSamples(0.02, size=100)
    assert bad.add([("a", "x"), ("a", "x"), ("b", "y")]) == ["skipped a: x", "skipped b: y"]
    assert bad.add([("a", "x"), ("b", "z")]) == []
    with pytest.raises(
        ShardError, match=r"3 of 100 samples can't be read; data\.max_bad = 0\.02 allows 2\. First: a: x; b: y; c: z"
    ):
        bad.add([("c", "z")])


def test_no_bad_sample_is_allowed_at_zero() -> None:
    bad = BadSamples(0.0, size=10**6)
    assert bad.add([]) == []
    with pytest.raises(ShardError, match="allows 0"):
        bad.add([("a", "x")])
