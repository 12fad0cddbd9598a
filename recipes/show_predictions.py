#!/usr/bin/env python3
"""Classifies pictures with a published folder and draws the answers. Plain timm: nothing of the model needs lgd_timm.

python recipes/show_predictions.py FOLDER OUT.png [--data SHARDS] [--split val] [--count 24]
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import timm
import torch
from PIL import Image, ImageDraw, ImageFont

from lgd_timm.data import open_shards
from lgd_timm.data.index import IMAGE_FIELDS
from lgd_timm.data.tar import IndexedTar

TILE, TEXT, COLUMNS, MARGIN = 128, 40, 8, 8
RIGHT, WRONG = (20, 110, 50), (190, 40, 30)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", default="recipes/cifar10_small")
    parser.add_argument("--split", default="val")
    parser.add_argument("--count", type=int, default=24)
    options = parser.parse_args()

    names = json.loads((options.folder / "config.json").read_text())["label_names"]
    model = timm.create_model(f"local-dir:{options.folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    tiles = []
    for image, truth in read_images(options.data, options.split, options.count):
        with torch.inference_mode():
            probabilities = model(transform(image).unsqueeze(0)).softmax(1)[0]
        best = int(probabilities.argmax())
        right = names[best] == truth if truth in names else None  # distilled for other names: nothing to be right about
        tiles.append((image, f"{names[best]} {100 * probabilities[best]:.0f} %", truth, right))
    draw(tiles).save(options.out)
    known = [right for *_, right in tiles if right is not None]
    print(f"{sum(known)} of {len(known)} pictures named right: {options.out}" if known else options.out)


def read_images(data: str, split: str, count: int) -> list[tuple[Image.Image, str]]:
    """Pictures, and the names of their class folders."""
    shards = open_shards(data, split=split)
    tar = IndexedTar(shards.path(0))
    images = []
    for key in tar.keys[:count]:
        field = next(f for f in IMAGE_FIELDS if f in tar.samples[key])
        images.append(
            (Image.open(io.BytesIO(tar.read(key, field))).convert("RGB"), shards.class_names[int(tar.read(key, "cls"))])
        )
    return images


def draw(tiles: list[tuple[Image.Image, str, str, bool | None]]) -> Image.Image:
    """A sheet of pictures; under each the answer, green when right, else the true name below it."""
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (TILE + MARGIN) + MARGIN, rows * (TILE + TEXT + MARGIN) + MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for i, (image, answer, truth, right) in enumerate(tiles):
        left, top = MARGIN + i % COLUMNS * (TILE + MARGIN), MARGIN + i // COLUMNS * (TILE + TEXT + MARGIN)
        sheet.paste(image.resize((TILE, TILE), Image.Resampling.BICUBIC), (left, top))
        pen.text((left, top + TILE + 2), answer, fill={True: RIGHT, False: WRONG, None: "black"}[right], font=font)
        if not right:
            pen.text((left, top + TILE + 20), f"is: {truth}", fill="grey", font=font)
    return sheet


if __name__ == "__main__":
    main()
