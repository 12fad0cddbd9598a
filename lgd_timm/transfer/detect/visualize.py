"""Draw a detector's predictions into an image."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from .dataset import DetectionBatch, DetectionSample
from .recipe import DetectRecipe

SHOWN = 0.5  # least score


def draw(
    model: nn.Module, picture: Image.Image, *, classes: Sequence[str], recipe: DetectRecipe, device: torch.device
) -> Image.Image:
    """Draw boxes, masks if there are any, names and scores in percent of objects whose score is at least a half."""
    image = pil_to_tensor(picture)
    (found,) = model(DetectionBatch.of([DetectionSample("", image, {})]).to(device))
    found = {name: values[found["scores"] >= SHOWN].cpu() for name, values in found.items()}
    if len(found["scores"]) == 0:
        return picture.copy()
    colours = [_colour(number) for number in range(len(found["scores"]))]
    if "masks" in found:
        image = draw_segmentation_masks(image, found["masks"][:, 0] > 0.5, alpha=0.5, colors=colours)
    names = [
        f"{classes[label]} {score:.0%}"
        for label, score in zip(found["labels"].tolist(), found["scores"].tolist(), strict=True)
    ]
    drawn: Image.Image = to_pil_image(
        draw_bounding_boxes(image, found["boxes"], labels=names, colors=colours, fill_labels=True, width=2)
    )
    return drawn


def _colour(number: int) -> tuple[int, int, int]:
    """Return a color bright enough for black letters; hues differ by the golden section, so that they are far apart."""
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618 % 1, 0.6, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
