"""The images of a split through a student: each once, in order, with what its teacher stored."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from lgd_timm.data import Views, open_shards
from lgd_timm.data.dataset import Batch, ShardDataset
from lgd_timm.data.stored_embeddings import find_stored
from lgd_timm.data.writer import write_shards
from lgd_timm.errors import LGDError
from lgd_timm.evaluate.report.encode import Encoded, encode
from lgd_timm.publish.folder import load


@pytest.fixture
def encoded(published_folder: Path, taught_folder: Path) -> Encoded:
    return encode(published_folder, data=taught_folder, split="val")


def whole(folder: Path) -> Batch:
    dataset = ShardDataset(open_shards(folder, split="val"), views=Views(size=32, augmentation="none"))
    return dataset.__getitems__([(i, 0) for i in range(len(dataset))])


def test_embeddings_are_those_of_a_plain_computation(
    encoded: Encoded, published_folder: Path, taught_folder: Path
) -> None:
    published, images = load(published_folder), whole(taught_folder)
    with torch.no_grad():
        rows = normalize(published.student(images.images), dim=1)
    torch.testing.assert_close(encoded.student, rows, rtol=0, atol=1e-5)
    torch.testing.assert_close(encoded.similarities, rows @ published.banks.text.T, rtol=0, atol=1e-5)
    assert encoded.labels is not None
    assert torch.equal(encoded.labels, images.labels)
    assert (encoded.names, encoded.temperature, encoded.bad) == (("blue", "green", "red"), 0.2, 0)
    accuracy = 100 * (encoded.answers == encoded.labels).float().mean().item()
    assert accuracy == pytest.approx(published.metrics["zero_shot"]["top1"], abs=1e-3)


def test_the_teachers_rows_are_those_that_it_stored(
    encoded: Encoded, published_folder: Path, taught_folder: Path
) -> None:
    shards = open_shards(taught_folder, split="val")
    metrics = load(published_folder).metrics
    stored = find_stored(shards, views=None, teacher=metrics["teacher"]["fingerprint"])
    assert stored is not None
    assert encoded.teacher is not None
    rows = [torch.tensor(stored.read(shards.filenames[0], key, 0)).float() for key in whole(taught_folder).keys]
    torch.testing.assert_close(encoded.teacher, normalize(torch.stack(rows), dim=1))
    answers = encoded.teacher_answers
    assert answers is not None
    assert encoded.labels is not None
    assert 100 * (answers == encoded.labels).float().mean().item() == pytest.approx(
        metrics["teacher_zero_shot"]["top1"], abs=1e-3
    )


def test_pictures_are_those_that_were_encoded_also_behind_bad_ones(
    published_folder: Path, taught_folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(taught_folder, tmp_path / "copy"))
    tar = copy / open_shards(copy, split="val").filenames[0]
    tar.write_bytes(tar.read_bytes().replace(b"\xff\xd8\xff", b"\0\0\0", 1))  # the beginning of the first JPEG
    found = encode(published_folder, data=copy, split="val", max_bad=0.1)
    images = whole(copy).images  # those that can be read
    assert (found.bad, len(found.student), len(images)) == (1, 11, 11)
    assert all(torch.equal(found.image(i), image) for i, image in enumerate(images))
    with pytest.raises(LGDError, match="1 of 12 samples can't be read"):
        encode(published_folder, data=copy, split="val", max_bad=0.0)


def test_without_labels_or_embeddings_it_says_so(published_folder: Path, image_folder: Path, tmp_path: Path) -> None:
    write_shards(image_folder, tmp_path / "shards", split="val", labels=False)
    found = encode(published_folder, data=tmp_path / "shards", split="val")
    assert (found.labels, found.teacher) == (None, None)
    assert "has images without a label" in found.label_fault
    assert "has stored no embeddings of" in found.teacher_fault
    assert len(found.student) == 48


def test_labels_of_other_classes_do_not_count(published_folder: Path, image_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "images"
    for i in range(2):
        shutil.copytree(image_folder / "red", other / f"class {i}")
    write_shards(other, tmp_path / "shards", split="val")
    found = encode(published_folder, data=tmp_path / "shards", split="val")
    assert found.labels is None
    assert "2 classes" in found.label_fault


@pytest.mark.parametrize(("split", "message"), [("test", "has no split 'test'"), ("", "has no split ''")])
def test_images_that_are_not_there_are_an_error(
    published_folder: Path, taught_folder: Path, split: str, message: str
) -> None:
    with pytest.raises(LGDError, match=message):
        encode(published_folder, data=taught_folder, split=split)
