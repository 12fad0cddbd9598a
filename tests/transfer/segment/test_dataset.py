"""What is drawn for training: picture and label stay one, and nothing but (seed, index, epoch) decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lgd_timm.transfer.segment.dataset import DrawnPictures, WholePictures, collate
from lgd_timm.transfer.segment.folders import open_split
from lgd_timm.transfer.segment.recipe import SegmentData
from tests.helpers.segment_data import COLOURS, make_folder

FILL = (0.9, 0.8, 0.1)
FILL_PIXEL = torch.tensor([230, 204, 26], dtype=torch.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("segment"), height=60, width=100)


def drawn(root: Path, *, seed: int = 0, **fields: Any) -> DrawnPictures:
    data = SegmentData(str(root), train_split="all", **{"crop": (64, 64), "distort": False, **fields})
    return DrawnPictures(open_split(data, "all"), data=data, seed=seed, fill=FILL)


def labels_by_colour(image: Tensor) -> Tensor:
    """What the colours of [3, H, W] say, 255 for the fill, and 254 where two colours were mixed."""
    found = torch.full(image.shape[1:], 254, dtype=torch.uint8)
    for index, colour in enumerate(torch.from_numpy(COLOURS)):
        found[(image == colour.view(3, 1, 1)).all(0)] = index
    found[(image == FILL_PIXEL.view(3, 1, 1)).all(0)] = 255
    return found


@pytest.mark.parametrize(
    "fields", [{}, {"short_side": 40}, {"scale": (1.0, 1.0)}, {"scale": (0.3, 0.5)}, {"crop": (96, 160)}]
)
def test_labels_stay_with_their_pixels_through_scale_crop_and_flip(root: Path, fields: dict[str, Any]) -> None:
    pictures = drawn(root, **fields)
    for index in range(len(pictures)):
        for epoch in range(5):
            image, label, key = pictures[index, epoch]
            assert (image.dtype, label.dtype, key) == (torch.uint8, torch.uint8, f"{index}.png")
            assert image.shape[1:] == label.shape == fields.get("crop", (64, 64))
            seen = labels_by_colour(image)
            pure = seen != 254
            assert (seen[pure] == label[pure]).float().mean() > 0.99  # a resized edge may fall between two pixels
            assert pure.float().mean() > 0.7


def test_the_identity_draws_the_picture_itself(root: Path) -> None:
    pictures = drawn(root, crop=(64, 128), scale=(1.0, 1.0), flip=False)
    image, label, _ = pictures[2, 7]
    whole, numbers, _ = WholePictures(open_split(SegmentData(str(root)), "all"))[2]
    assert torch.equal(image[:, :60, :100], whole)
    assert torch.equal(label[:60, :100], numbers)
    assert (label[60:] == 255).all()
    assert (label[:, 100:] == 255).all()
    assert (image[:, 60:] == FILL_PIXEL.view(3, 1, 1)).all()


def test_half_of_the_pictures_are_flipped(root: Path) -> None:
    pictures = drawn(root, crop=(64, 128), scale=(1.0, 1.0))
    whole = drawn(root, crop=(64, 128), scale=(1.0, 1.0), flip=False)
    flipped = [not torch.equal(pictures[0, epoch].label, whole[0, epoch].label) for epoch in range(40)]
    assert 10 < sum(flipped) < 30
    epoch = flipped.index(True)
    assert torch.equal(pictures[0, epoch].label[:60, :100].flip(-1), whole[0, epoch].label[:60, :100])
    assert torch.equal(pictures[0, epoch].image[:, :60, :100].flip(-1), whole[0, epoch].image[:, :60, :100])


def test_only_seed_index_and_epoch_decide(root: Path) -> None:
    pictures = drawn(root, distort=True)
    torch.manual_seed(1)
    one = [pictures[index, epoch] for index in (0, 3) for epoch in (0, 1)]
    torch.manual_seed(2)
    np.random.seed(2)  # a state that must not matter
    again = drawn(root, distort=True)
    other = [again[index, epoch] for index in (3, 0) for epoch in (1, 0)][::-1]
    assert all(torch.equal(a.image, b.image) and torch.equal(a.label, b.label) for a, b in zip(one, other, strict=True))
    images = [sample.image for sample in [*one, drawn(root, distort=True, seed=1)[0, 0]]]
    assert all(not torch.equal(images[i], images[j]) for i in range(5) for j in range(i))


def test_colours_change_and_labels_do_not(root: Path) -> None:
    plain, changed = drawn(root), drawn(root, distort=True)
    differ = [not torch.equal(plain[0, epoch].image, changed[0, epoch].image) for epoch in range(20)]
    assert 12 < sum(differ) <= 20  # each of four changes is made in half of the pictures
    assert all(torch.equal(plain[0, epoch].label, changed[0, epoch].label) for epoch in range(20))
    outside = [changed[0, epoch].image[:, -1, -1] for epoch in range(20) if changed[0, epoch].label[-1].min() == 255]
    assert outside
    assert all(torch.equal(pixel, FILL_PIXEL) for pixel in outside)  # which the model sees as nothing


def test_scales_cover_their_range(root: Path) -> None:
    """At scale s a crop of 64 shows 64 / s pixels of the picture, of which there are 60 in height."""
    pictures = drawn(root, scale=(0.25, 1.0), flip=False)
    heights = [int((pictures[0, epoch].label[:, 0] != 255).sum()) for epoch in range(100)]
    assert 15 <= min(heights) < 20
    assert 55 < max(heights) <= 60


def test_a_batch_has_all_of_them(root: Path) -> None:
    batch = collate([drawn(root)[index, 0] for index in range(3)]).to(torch.device("cpu"))
    assert batch.images.shape == (3, 3, 64, 64)
    assert batch.labels.shape == (3, 64, 64)
    assert batch.keys == ["0.png", "1.png", "2.png"]
