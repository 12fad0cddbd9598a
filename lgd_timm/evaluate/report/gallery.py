"""Draw images with coloured frames, in rows and on contact sheets, as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

RIGHT, WRONG, UNKNOWN = "#2e9e4f", "#d03b2f", "#999999"
SMALL, LARGE = 64, 96  # width of an image in a row, and alone, in pixels
FRAME, GAP = 4, 4
_LINE, _FONT = 15, 12


class Tile(NamedTuple):
    """A picture, and the lines of text below it on a sheet."""

    picture: Image.Image
    lines: tuple[str, ...] = ()


def framed(image: Tensor, *, colour: str, side: int = SMALL) -> Image.Image:
    """Frame an image.

    Args:
        image: uint8 [3, S, S].
        colour: of the frame.
        side: width in pixels; a smaller image is enlarged by a whole factor, a larger one is scaled down.

    Returns:
        The framed picture.
    """
    picture = to_pil_image(image)
    if picture.width <= side:
        picture = picture.resize((side // picture.width * picture.width,) * 2, Image.Resampling.NEAREST)
    else:
        picture = picture.resize((side, side), Image.Resampling.LANCZOS)
    board = Image.new("RGB", (picture.width + 2 * FRAME,) * 2, colour)
    board.paste(picture, (FRAME, FRAME))
    return board


def row(pictures: Sequence[Image.Image]) -> Image.Image:
    """Put pictures of one size side by side, on a transparent background."""
    width, height = pictures[0].size
    strip = Image.new("RGBA", (len(pictures) * (width + GAP) - GAP, height))
    for i, picture in enumerate(pictures):
        strip.paste(picture, (i * (width + GAP), 0))
    return strip


def sheet(tiles: Sequence[Tile], *, columns: int) -> Image.Image:
    """Draw a contact sheet: tiles of one size with their lines below them, on white."""
    font = ImageFont.load_default(size=_FONT)
    widest = max(int(font.getlength(line)) for tile in tiles for line in (*tile.lines, ""))
    width = max(tile.picture.width for tile in tiles) if columns > 1 else max(tiles[0].picture.width, widest)
    width, height = (
        max(width, min(widest, 140)),
        tiles[0].picture.height + _LINE * max(len(tile.lines) for tile in tiles),
    )
    rows = -(-len(tiles) // columns)
    board = Image.new("RGB", (columns * (width + 3 * GAP) + GAP, rows * (height + 3 * GAP) + GAP), "white")
    pen = ImageDraw.Draw(board)
    for i, tile in enumerate(tiles):
        left, top = 2 * GAP + i % columns * (width + 3 * GAP), 2 * GAP + i // columns * (height + 3 * GAP)
        board.paste(tile.picture, (left, top), tile.picture if tile.picture.mode == "RGBA" else None)
        for number, line in enumerate(tile.lines):
            pen.text(
                (left, top + tile.picture.height + number * _LINE), _fitted(line, font, width), fill="black", font=font
            )
    return board


def png(picture: Image.Image) -> bytes:
    """Encode a picture as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _fitted(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Cut a line to a width in pixels."""
    line = "".join(c if c.isprintable() else " " for c in line)
    while line and font.getlength(line) > width:
        line = line[:-1]
    return line
