"""Draw predicted classes and their names into an image."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from torchvision.transforms.v2 import functional as transforms
from torchvision.utils import draw_segmentation_masks

from .model import Segmenter
from .recipe import SegmentRecipe

LEAST = 0.002  # part of the picture that a class must cover to be named in the legend
GOLDEN = 0.618034  # turns of the colour circle from class to class: neighbours differ, and none comes twice


def draw(
    model: nn.Module, picture: Image.Image, *, classes: Sequence[str], recipe: SegmentRecipe, device: torch.device
) -> Image.Image:
    """Draw a color for each class over an image, with a legend of those that cover at least a 500th of it."""
    assert isinstance(model, Segmenter)
    image = transforms.pil_to_tensor(picture)
    seen = model.predict(image.to(device), short_side=recipe.data.short_side).cpu()
    shares = torch.bincount(seen.flatten(), minlength=len(classes)) / seen.numel()
    there = [index for index in shares.argsort(descending=True).tolist() if shares[index] > 0]
    masks = seen == torch.tensor(there).view(-1, 1, 1)
    drawn = draw_segmentation_masks(image, masks, alpha=0.55, colors=[colour(index) for index in there])
    return _legend(transforms.to_pil_image(drawn), {classes[i]: colour(i) for i in there if shares[i] >= LEAST})


def colour(index: int) -> tuple[int, int, int]:
    """Return the color of a class: red, green and blue in 0..255."""
    brightness, saturation = (0.95, 0.7, 0.85)[index % 3], (0.9, 0.9, 0.55)[index % 3]
    red, green, blue = colorsys.hsv_to_rgb(index * GOLDEN % 1, saturation, brightness)
    return round(255 * red), round(255 * green), round(255 * blue)


def _legend(picture: Image.Image, colours: dict[str, tuple[int, int, int]]) -> Image.Image:
    """Write names on their colors, in columns from the upper left corner, as far as there is room."""
    font, pen = ImageFont.load_default(max(10, min(picture.size) // 28)), ImageDraw.Draw(picture)
    x, y, widest = 2, 2, 0
    for name, fill in colours.items():
        width, height = (round(side) + 6 for side in font.getbbox(name)[2:])
        if y + height > picture.height:
            x, y, widest = x + widest + 2, 2, 0
        pen.rectangle((x, y, x + width, y + height), fill=fill)
        pen.text((x + 3, y + 3), name, font=font, fill="black" if sum(fill) > 330 else "white")
        y, widest = y + height + 2, max(widest, width)
    return picture
