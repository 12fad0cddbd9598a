"""Pixels to a model's own input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lgd_timm.data.preprocess import Preprocess

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def preprocess(size: int = 16, **options) -> Preprocess:
    return Preprocess(size=size, mean=MEAN, std=STD, **options)


def pixels(height: int, width: int, *, smooth: bool = False) -> torch.Tensor:
    draw = np.random.default_rng(0)
    if smooth:
        y, x = np.mgrid[0:height, 0:width]
        image = np.stack([40 + 150 * y / height, 200 - 150 * x / width, 60 + 60 * (x / width + y / height)])
        return torch.from_numpy(image.round().astype(np.uint8))[None]
    return torch.from_numpy(draw.integers(0, 256, (2, 3, height, width), dtype=np.uint8))


def test_statistics_are_applied_per_channel():
    images = pixels(16, 16)
    expected = (images.numpy() / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    np.testing.assert_allclose(preprocess()(images).numpy(), expected, atol=1e-5)


def test_bytes_and_floats_are_the_same_picture():
    images = pixels(16, 16)
    torch.testing.assert_close(preprocess()(images), preprocess()(images.float() / 255), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [12, 40])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resized_bytes_and_floats_agree_to_the_rounding_of_bytes(size, interpolation):
    images = pixels(24, 24, smooth=True)
    model = preprocess(size, interpolation=interpolation)
    step = 1 / 255 / min(STD)
    # half a byte for each of the two passes, across and down
    torch.testing.assert_close(model(images), model(images.float() / 255), rtol=0, atol=1.02 * step)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(24, 24), (30, 20), (8, 8)])
def test_other_sizes_are_resized_with_antialiasing_as_pillow_does(shape, interpolation):
    images = pixels(
        *shape, smooth=True
    )  # on noise bicubic leaves 0..255, and where that is cut off is the library's choice
    resized = preprocess(16, interpolation=interpolation)(images)[0] * torch.tensor(STD).view(3, 1, 1) + torch.tensor(
        MEAN
    ).view(3, 1, 1)
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    expected = Image.fromarray(images[0].permute(1, 2, 0).numpy()).resize((16, 16), filters[interpolation])
    np.testing.assert_allclose(resized.permute(1, 2, 0).numpy() * 255, np.asarray(expected), atol=1.01)


def test_images_of_the_models_size_are_not_resampled():
    images = pixels(16, 16)
    assert torch.equal(preprocess(interpolation="bicubic")(images), preprocess(interpolation="nearest")(images))


def test_whole_numbers_are_statistics_too():
    images = pixels(16, 16)
    whole = Preprocess(size=16, mean=(0, 0, 0), std=(1, 1, 1))
    for given in (images, images.float() / 255):
        torch.testing.assert_close(whole(given), images.float() / 255)


def test_antialiasing_averages_what_is_lost():
    stripes = torch.zeros(1, 3, 32, 32)
    stripes[..., ::2] = 1.0
    grey = Preprocess(size=8, mean=(0.5, 0.5, 0.5), std=(1, 1, 1))(stripes)
    assert grey.abs().max() < 0.1


def test_one_picture_feeds_two_models_and_is_left_alone():
    images = pixels(24, 24)
    before = images.clone()
    small, large = preprocess(8)(images), Preprocess(size=32, mean=(0, 0, 0), std=(1, 1, 1))(images)
    assert small.shape == (2, 3, 8, 8)
    assert large.shape == (2, 3, 32, 32)
    assert small.min() < 0 <= large.min()
    assert torch.equal(images, before)
    floats = images.float() / 255
    Preprocess(size=24, mean=MEAN, std=STD)(floats)
    assert torch.equal(floats, images.float() / 255)


def test_statistics_are_facts_and_not_weights():
    model = preprocess()
    assert model.state_dict() == {}
    assert list(model.parameters()) == []
    model.load_state_dict({})
    assert model.to(torch.float64)(pixels(16, 16)).dtype == torch.float64, "yet they follow their model"
