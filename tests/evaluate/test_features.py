"""Features: each image once, and from the cache exactly when nothing that determines them has changed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lgd_timm.data import Views, open_shards
from lgd_timm.data.dataset import ShardDataset
from lgd_timm.data.stored_embeddings import find_stored
from lgd_timm.errors import LGDError, ShardError, WeightsError
from lgd_timm.evaluate import Model, extract, find_model
from lgd_timm.evaluate.features import _write, features_fingerprint, stored_features
from lgd_timm.publish.folder import load
from lgd_timm.settings import cache_folder


@pytest.fixture
def model() -> Model:
    return find_model("test_resnet", pretrained=False, image_size=32)


def images_of(folder: Path, split: str = "val", **views: object) -> ShardDataset:
    return ShardDataset(
        open_shards(folder, split=split), views=Views(**{"size": 32, "augmentation": "none", **views}), allow_empty=True
    )  # type: ignore[arg-type]


class Counter:
    """How many images a model was shown."""

    def __init__(self, model: Model) -> None:
        self.images = 0
        model.network.backbone.register_forward_hook(self._count)

    def _count(self, module: torch.nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        self.images += len(inputs[0])


@pytest.mark.parametrize("batch_size", [5, 256])
def test_they_are_what_the_model_says(model: Model, shard_folder: Path, batch_size: int) -> None:
    dataset = images_of(shard_folder)
    features = extract(model.network, dataset, batch_size=batch_size)
    whole = dataset.__getitems__([(i, 0) for i in range(len(dataset))])
    with torch.no_grad():
        expected = model.network.eval().features(whole.images)
    torch.testing.assert_close(features.features, expected)
    assert (features.features.dtype, features.labels.dtype) == (torch.float32, torch.int64)
    assert (list(features.keys), features.labels.tolist()) == (whole.keys, whole.labels.tolist())
    assert features.embeddings is None


def test_a_student_embeds_too(published_folder: Path, shard_folder: Path) -> None:
    student = load(published_folder).student
    dataset = images_of(shard_folder)
    features = extract(student, dataset)
    assert features.embeddings is not None
    with torch.no_grad():
        expected = student(dataset.__getitems__([(i, 0) for i in range(len(dataset))]).images)
    torch.testing.assert_close(features.embeddings, expected)


def test_the_second_call_reads_and_a_changed_weight_does_not(model: Model, shard_folder: Path) -> None:
    counter, dataset = Counter(model), images_of(shard_folder)
    first = extract(model.network, dataset)
    again = extract(model.network, images_of(shard_folder, seed=3))  # unaugmented views draw nothing
    assert counter.images == 12
    assert torch.equal(first.features, again.features)
    assert (first.keys, first.labels.tolist(), first.bad) == (again.keys, again.labels.tolist(), again.bad)
    with torch.no_grad():
        next(model.network.backbone.parameters())[0] += 1
    changed = extract(model.network, dataset)
    assert counter.images == 24
    assert not torch.equal(first.features, changed.features)
    extract(model.network, dataset, cache=False)
    assert counter.images == 36


def test_the_fingerprint_covers_what_decides_the_features(model: Model, shard_folder: Path) -> None:
    dataset, other = images_of(shard_folder), find_model("test_resnet", pretrained=False, image_size=24)
    names = {
        features_fingerprint(model.network, dataset),
        features_fingerprint(other.network, dataset),  # size
        features_fingerprint(model.network, images_of(shard_folder, split="train")),
        features_fingerprint(model.network, images_of(shard_folder, interpolation="bilinear")),
        features_fingerprint(model.network, images_of(shard_folder, crop=0.5)),
    }
    model.network.preprocess.mean.add_(0.1)
    names.add(features_fingerprint(model.network, dataset))
    model.network.preprocess.mean.sub_(0.1)
    model.network.backbone.act1 = torch.nn.GELU()  # the same weights, another function
    names.add(features_fingerprint(model.network, dataset))
    assert len(names) == 7


def test_bad_images_are_left_out_and_counted_from_the_cache_too(
    model: Model, shard_folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(shard_folder, tmp_path / "copy"))
    tar = copy / open_shards(copy, split="val").filenames[0]
    tar.write_bytes(tar.read_bytes().replace(b"\xff\xd8\xff", b"\0\0\0", 1))  # the beginning of the first JPEG
    for _ in range(2):
        features = extract(model.network, images_of(copy), max_bad=0.1)
        assert (len(features), len(features.bad), features.features.shape[0]) == (11, 1, 11)
    with pytest.raises(ShardError, match="1 of 12 samples can't be read"):
        extract(model.network, images_of(copy), max_bad=0.01)


def test_shards_without_sums_are_not_taken_from_the_cache(model: Model, shard_folder: Path) -> None:
    counter, dataset = Counter(model), images_of(shard_folder)
    dataset.shards = replace(dataset.shards, sha256=())
    extract(model.network, dataset)
    extract(model.network, dataset)
    assert counter.images == 24


def test_refusals(model: Model, shard_folder: Path) -> None:
    with pytest.raises(LGDError, match=r"unaugmented views, not of views\.augmentation 'light'"):
        extract(model.network, images_of(shard_folder, augmentation="light"))


@pytest.mark.parametrize("place", [None, 20, -1, -200])
def test_a_cache_that_is_damaged_is_made_again_which_is_said(
    model: Model, shard_folder: Path, caplog: pytest.LogCaptureFixture, place: int | None
) -> None:
    features = extract(model.network, images_of(shard_folder))
    (file,) = (cache_folder() / "features").iterdir()
    content = bytearray(file.read_bytes())
    if place is not None:
        content[place] ^= 4
    file.write_bytes(content if place is not None else b"")
    again = extract(model.network, images_of(shard_folder))
    assert "is damaged" in caplog.text
    assert torch.equal(again.features, features.features)
    caplog.clear()
    extract(model.network, images_of(shard_folder))
    assert "is damaged" not in caplog.text


def test_rows_are_taken_together(model: Model, shard_folder: Path) -> None:
    features = extract(model.network, images_of(shard_folder))
    some = features.only([features.keys[7], features.keys[2], "no such key"])
    assert some.keys == (features.keys[2], features.keys[7])
    assert torch.equal(some.features, features.features[[2, 7]])
    assert some.labels.tolist() == features.labels[[2, 7]].tolist()
    with pytest.raises(ShardError, match="images without a label"):
        replace(some, labels=torch.tensor([0, -1])).check_labels()


def test_the_teachers_embeddings_stand_beside(
    published_folder: Path, taught_folder: Path, shard_folder: Path, tmp_path: Path
) -> None:
    published, dataset = load(published_folder), images_of(taught_folder)
    features, teacher = extract(published.student, dataset), published.metrics["teacher"]["fingerprint"]
    reverse = features.at(torch.arange(11, -1, -1))
    found = stored_features(reverse, dataset, teacher=teacher)
    stored = find_stored(dataset.shards, views=None, teacher=teacher)
    assert found is not None
    assert stored is not None
    whole = ShardDataset(dataset.shards, views=stored.views, stored=stored).__getitems__([(i, 0) for i in range(12)])
    assert whole.embeddings is not None
    assert torch.equal(found.features, whole.embeddings.float().flip(0))
    assert found.keys == reverse.keys
    assert stored_features(features, dataset, teacher="another") is None
    assert stored_features(features, images_of(shard_folder), teacher=teacher) is None
    with pytest.raises(ShardError, match="holds no embedding of 1 images, first 'stranger'"):
        stored_features(replace(features.at(torch.tensor([0])), keys=("stranger",)), dataset, teacher=teacher)


def test_features_that_are_not_finite_are_refused_with_the_weights_that_are_not(
    model: Model, shard_folder: Path
) -> None:
    dataset = images_of(shard_folder)
    with torch.no_grad():
        next(model.network.backbone.parameters())[0] = float("nan")
    with pytest.raises(WeightsError, match=r"features are not finite .*weights hold .* in backbone\.conv1"):
        extract(model.network, dataset)
    with torch.no_grad():  # a cache that was written before this was looked at
        sound = find_model("test_resnet", pretrained=False, image_size=32)
        features = extract(sound.network, dataset)
        features.features[0, 0] = float("inf")
    path = cache_folder() / "features" / f"{features_fingerprint(sound.network, dataset)}.safetensors"
    _write(path, features)
    with pytest.raises(WeightsError, match=r"not finite .*they overflow"):
        extract(sound.network, dataset)


def test_a_cache_that_cant_be_written_costs_no_features(
    model: Model,
    shard_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LGD_TIMM_CACHE", str(tmp_path / "file" / "cache"))
    assert len(extract(model.network, images_of(shard_folder))) == 12
    assert "can't be written" in caplog.text
    assert "Set LGD_TIMM_CACHE" in caplog.text
