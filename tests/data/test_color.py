"""Colours: torchvision's operations, each image by its own parameters, whatever stands beside it in the batch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from lgd_timm.data import color
from lgd_timm.data.color import JITTERS, ColorOps, apply_color

TORCHVISION = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
    functional.adjust_hue,
)
AMOUNTS = (1.35, 0.7, 0.6, -0.08)


@pytest.fixture(autouse=True, params=["torch", "opencv"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With OpenCV and without."""
    if request.param == "torch":
        monkeypatch.setattr(color, "opencv", lambda: None)
    else:
        pytest.importorskip("cv2")


def images(count: int, size: int = 20) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, size, size), dtype=np.uint8))


def by_torchvision(image: Tensor, colours: ColorOps) -> Tensor:
    """[3, H, W]; the same operations on floats, one after the other."""
    pixels = image.float() / 255
    for kind, amount in colours.jitter:
        pixels = TORCHVISION[kind](pixels, amount)
    if colours.grey:
        pixels = functional.rgb_to_grayscale(pixels, num_output_channels=3)
    if colours.sigma:
        taps = 2 * int(np.ceil(3 * colours.sigma)) + 1
        pixels = functional.gaussian_blur(pixels, [taps, taps], [colours.sigma, colours.sigma])
    return (pixels * 255).round().to(torch.uint8)


def difference(a: Tensor, b: Tensor) -> int:
    return int((a.int() - b.int()).abs().max())


ORDERS = [tuple((kind, AMOUNTS[kind]) for kind in order) for order in itertools.permutations(range(len(JITTERS)))]
MANY = [
    ColorOps(order, grey=i % 5 == 0, sigma=(0.0, 0.1, 0.7, 1.9)[i % 4])
    for i, order in enumerate([(), *ORDERS, *((jitter,) for jitter in ORDERS[0])])
]


@pytest.mark.parametrize("colours", MANY, ids=str)
def test_one_image_comes_out_as_from_torchvision(colours: ColorOps) -> None:
    image = images(1)[0]
    assert difference(apply_color(image[None], [colours])[0], by_torchvision(image, colours)) <= 1


def test_a_batch_is_its_images_to_one_255th() -> None:
    batch = images(len(MANY))
    together = apply_color(batch, MANY)
    alone = torch.cat([apply_color(batch[i : i + 1], [colours]) for i, colours in enumerate(MANY)])
    assert difference(together, alone) <= 1
    assert (together != alone).float().mean() < 1e-3
    assert together.dtype == torch.uint8
    assert together.shape == batch.shape


def test_an_image_to_which_nothing_happens_keeps_its_bits() -> None:
    batch = images(4)
    assert torch.equal(apply_color(batch, [ColorOps()] * 4), batch)
    before = batch.clone()
    mixed = apply_color(batch, [ColorOps(), ColorOps(grey=True), ColorOps(), ColorOps(ORDERS[0])])
    assert torch.equal(mixed[::2], batch[::2])
    assert not torch.equal(mixed[1], batch[1])
    assert torch.equal(batch, before)


@pytest.mark.parametrize("turn", [0.0, 0.1, 0.5, -0.5, 1 / 3])
def test_turns_of_the_hue_close_the_circle(turn: float) -> None:
    image = images(1)
    turned = apply_color(image, [ColorOps(((3, turn),))])
    back = apply_color(turned, [ColorOps(((3, -turn),))])
    assert difference(back, image) <= 3  # rounded twice, where saturation is low
    if turn == 0:
        assert difference(turned, image) == 0
    if turn == 1 / 3:
        assert difference(turned, image.roll(1, dims=1)) <= 1


def test_grey_pixels_have_no_hue() -> None:
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(apply_color(grey, [ColorOps(((3, 0.3),))]), grey)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_small_images_can_be_blurred(size: int) -> None:
    image = images(2, size)
    plain = torch.full_like(image, 77)
    assert torch.equal(apply_color(plain, [ColorOps(sigma=2.0)] * 2), plain)
    assert apply_color(image, [ColorOps(sigma=2.0), ColorOps(sigma=0.2)]).shape == image.shape


def test_blur_keeps_the_mean_and_spreads_a_point_by_sigma() -> None:
    point = torch.zeros(2, 3, 41, 41, dtype=torch.uint8)
    point[:, :, 20, 20] = 255
    for sigma in (0.8, 1.5):
        spread = apply_color(point, [ColorOps(sigma=sigma), ColorOps(sigma=0.1)]).double()
        offset = torch.arange(41) - 20.0
        weights = spread[0, 0] / spread[0, 0].sum()
        assert float((weights.sum(1) * offset**2).sum() ** 0.5) == pytest.approx(
            sigma, rel=0.12
        )  # cut at three sigmas, rounded
        assert torch.equal(spread[1], point[1].double())
