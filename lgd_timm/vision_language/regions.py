"""Regions of an image: cells of a grid, boxes of the data, or what a detector finds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import LGDError
from ..teachers.base import module_fingerprint
from ..transfer.detect.dataset import DetectionBatch
from ..transfer.detect.model import Detector
from ..transfer.run import open_run
from ..utils.files import fingerprint
from .data.sample import Sample
from .recipe import DataRegions, DetectorRegions, GridRegions, Regions


class Found(NamedTuple):
    """Regions of one image: boxes float32 [N, 4], left, top, right, bottom in its pixels; and names of objects."""

    boxes: Tensor
    tags: tuple[str, ...]


class RegionSource(Protocol):
    """Finds the regions of images.

    Attributes:
        count: of an image, at most.
        fingerprint: of all that decides which boxes an image gets. Models of one fingerprint have the same tokens.
    """

    count: int
    fingerprint: str

    def find(self, image: Image.Image, sample: Sample) -> Found:
        """Find the regions of an image. Raises: LGDError where it has none."""


class Grid:
    """Cells of a grid, row by row; the tags are the data's."""

    def __init__(self, recipe: GridRegions) -> None:
        self.recipe, self.count = recipe, recipe.rows * recipe.columns
        self.fingerprint = fingerprint("grid", recipe.rows, recipe.columns)

    def find(self, image: Image.Image, sample: Sample) -> Found:
        width, height = image.size
        xs = torch.linspace(0, width, self.recipe.columns + 1)
        ys = torch.linspace(0, height, self.recipe.rows + 1)
        top, left = torch.meshgrid(ys[:-1], xs[:-1], indexing="ij")
        bottom, right = torch.meshgrid(ys[1:], xs[1:], indexing="ij")
        return Found(torch.stack([left, top, right, bottom], 2).view(-1, 4), sample.tags)


class FromData:
    """The boxes and tags of the data."""

    def __init__(self, recipe: DataRegions) -> None:
        self.count, self.fingerprint = recipe.count, fingerprint("data", recipe.count)

    def find(self, image: Image.Image, sample: Sample) -> Found:
        if sample.boxes is None or not len(sample.boxes):
            raise LGDError(
                f"{sample.key} has no boxes, and regions.kind is data. Take grid or detector; for a photograph of your "
                "own, give --grid."
            )
        boxes = sample.boxes[: self.count].float()
        if not boxes.isfinite().all():  # RoIAlign would read beyond its map
            raise LGDError(f"{sample.key} has boxes that are not finite. Correct the data.")
        return Found(boxes, sample.tags)


class DetectorBoxes:
    """What a detector of `lgd-timm transfer detect` finds, the surest first; the whole image where it finds nothing."""

    def __init__(self, recipe: DetectorRegions) -> None:
        run = open_run(recipe.run)
        if not isinstance(run.model, Detector):
            raise LGDError(f"regions.run {recipe.run} is no detector. Give a run of lgd-timm transfer detect.")
        self._model, self._classes = run.model, run.classes
        self.count, self._threshold = recipe.count, recipe.tag_threshold
        weights = module_fingerprint(run.model, run.recipe.to_dict()["data"]["size"], run.classes)
        self.fingerprint = fingerprint("detector", weights, recipe.count, recipe.tag_threshold)

    @torch.no_grad()
    def find(self, image: Image.Image, sample: Sample) -> Found:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        (result,) = self._model(DetectionBatch([sample.key], [pixels], []))
        order = result["scores"].argsort(descending=True, stable=True)[: self.count]
        boxes = result["boxes"][order] if len(order) else torch.tensor([[0.0, 0.0, *map(float, image.size)]])
        sure = result["labels"][order][result["scores"][order] > self._threshold].tolist()
        return Found(boxes, tuple(dict.fromkeys(self._classes[label] for label in sure)))


def open_regions(recipe: Regions) -> RegionSource:
    """Open what finds the regions. Raises: LGDError where the detector can't be opened."""
    if isinstance(recipe, GridRegions):
        return Grid(recipe)
    return FromData(recipe) if isinstance(recipe, DataRegions) else DetectorBoxes(recipe)


def box_numbers(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Describe boxes [N, 4] by 6 numbers (Oscar): left, top, right, bottom, width, height, as shares of the image.

    Args:
        boxes: left, top, right, bottom in pixels.
        size: width and height of the image.

    Returns:
        float32 [N, 6].
    """
    width, height = size
    scaled = boxes.float() / torch.tensor([width, height, width, height], dtype=torch.float32)
    return torch.cat([scaled, scaled[:, 2:] - scaled[:, :2]], 1)
