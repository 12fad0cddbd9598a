"""Framed images, rows and sheets."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from lgd_timm.evaluate.report import gallery
from lgd_timm.evaluate.report.gallery import FRAME, GAP, LARGE, RIGHT, SMALL, Tile


def picture(size: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))


@pytest.mark.parametrize(("size", "side"), [(32, SMALL), (32, LARGE), (20, SMALL), (64, SMALL)])
def test_small_images_are_enlarged_pixel_by_pixel(size: int, side: int) -> None:
    image = picture(size)
    board = np.asarray(gallery.framed(image, colour=RIGHT, side=side))
    times = side // size
    assert board.shape == (size * times + 2 * FRAME,) * 2 + (3,)
    inner = board[FRAME:-FRAME, FRAME:-FRAME]
    assert (inner[::times, ::times] == image.permute(1, 2, 0).numpy()).all()
    assert (inner == np.repeat(np.repeat(inner[::times, ::times], times, 0), times, 1)).all()
    assert {tuple(pixel) for pixel in board[0]} == {(0x2E, 0x9E, 0x4F)}


def test_large_images_become_small() -> None:
    assert gallery.framed(picture(224), colour=RIGHT).size == (SMALL + 2 * FRAME,) * 2


def test_a_row_holds_every_picture() -> None:
    pictures = [gallery.framed(picture(32), colour=RIGHT)] * 3
    row = gallery.row(pictures)
    side = SMALL + 2 * FRAME
    assert row.size == (3 * side + 2 * GAP, side)
    alpha = np.asarray(row)[..., 3]
    assert (alpha == 0).sum() == 2 * GAP * side  # only the gaps are transparent


@pytest.mark.parametrize("columns", [1, 2, 6])
def test_a_sheet_has_room_for_all(columns: int) -> None:
    tile = gallery.framed(picture(32), colour=RIGHT)
    sheet = gallery.sheet([Tile(tile, ("cat", "> <b>dog</b>\n" * 30))] * 5, columns=columns)
    colour = np.array([0x2E, 0x9E, 0x4F])
    framed = (np.asarray(sheet) == colour).all(-1).sum()
    assert framed == 5 * ((SMALL + 2 * FRAME) ** 2 - SMALL**2)


def test_a_png_is_the_picture() -> None:
    tile = gallery.framed(picture(32), colour=RIGHT)
    assert (np.asarray(Image.open(io.BytesIO(gallery.png(tile)))) == np.asarray(tile)).all()
