"""Draw pictures with what a classifier says of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..utils.files import atomic_file
from .predict import Prediction, open_picture

TILE, TEXT, COLUMNS, MARGIN = 160, 40, 6, 8  # pixels, but for the columns


def draw_sheet(predictions: Sequence[Prediction], path: str | Path) -> Path:
    """Write a contact sheet: each picture with its two likeliest names.

    Args:
        predictions: of pictures that were given as paths.
        path: PNG file; an earlier one is replaced.

    Returns:
        The file.
    """
    path = Path(path)
    columns = min(COLUMNS, len(predictions))
    rows = -(-len(predictions) // columns)
    size = (columns * (TILE + MARGIN) + MARGIN, rows * (TILE + TEXT + MARGIN) + MARGIN)
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for index, prediction in enumerate(predictions):
        row, column = divmod(index, columns)
        left, top = MARGIN + column * (TILE + MARGIN), MARGIN + row * (TILE + TEXT + MARGIN)
        assert prediction.picture is not None
        picture = open_picture(prediction.picture)
        picture.thumbnail((TILE, TILE))
        sheet.paste(picture, (left + (TILE - picture.width) // 2, top + (TILE - picture.height) // 2))
        pairs = list(zip(prediction.names, prediction.probabilities, strict=True))[:2]
        for line, (name, share) in enumerate(pairs):
            text = f"{name[:16]} {100 * share:.0f} %"
            pen.text(
                (left, top + TILE + 2 + 17 * line), text, fill=(28, 39, 51) if line == 0 else (90, 103, 117), font=font
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        sheet.save(temporary, "PNG")
    return path
