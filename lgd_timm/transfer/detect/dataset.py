"""Training images at random sizes, flipped or not, with boxes, labels and masks; those with rare classes more often."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from ...data.decode import read_image
from ...errors import LGDError, ShardError
from ..job import Item
from .annotations import Annotations, Entry
from .recipe import DetectData

log = logging.getLogger(__name__)

# boxes float32 [N, 4]: left, top, right, bottom in pixels; labels int64 [N] from 0; masks uint8 [N, H, W], if any
Target = dict[str, Tensor]


class DetectionSample(NamedTuple):
    """An image, uint8 [3, H, W], its name, and its objects."""

    key: str
    image: Tensor
    target: Target


@dataclass(frozen=True)
class DetectionBatch:
    """Samples as lists, because their sizes differ."""

    keys: list[str]
    images: list[Tensor]
    targets: list[Target]

    @classmethod
    def of(cls, samples: Sequence[DetectionSample]) -> DetectionBatch:
        """Make a batch of samples."""
        return cls(
            [sample.key for sample in samples],
            [sample.image for sample in samples],
            [sample.target for sample in samples],
        )

    def to(self, device: torch.device) -> DetectionBatch:
        """Move the batch to a device, pixels as float32 in 0..1."""
        images = [image.to(device).float() / 255 for image in self.images]
        return DetectionBatch(
            self.keys, images, [{name: tensor.to(device) for name, tensor in target.items()} for target in self.targets]
        )


class Pictures:
    """A training set of the images that have objects. What is drawn at random depends on (seed, epoch, index) alone.

    Crowds, and objects of less than a pixel, are left out.

    Args:
        annotations: of all images.
        data: sizes, how often an image is flipped, how often one with a rare class is repeated.
        masks: whether targets have masks.
        seed: of what is drawn at random.

    Raises:
        LGDError: no object is left.
    """

    def __init__(self, annotations: Annotations, data: DetectData, *, masks: bool, seed: int) -> None:
        self._annotations, self._data, self._masks, self._seed = annotations, data, masks, seed
        left_out = Counter[str]()
        objects = [_usable(annotations, index, left_out, masks=masks) for index in range(len(annotations.images))]
        kept = [index for index, found in enumerate(objects) if found]
        left_out["pictures without objects"] = len(objects) - len(kept)
        if not kept:
            raise LGDError(
                f"{annotations.path} has no boxes to learn from, only crowds and what is smaller than a pixel."
            )
        log.info(
            "%s: %d pictures; left out: %s",
            annotations.path,
            len(kept),
            ", ".join(f"{n} {what}" for what, n in left_out.items()),
        )
        self._objects = objects
        self.order = repeated(
            kept, [{entry["category_id"] for entry in objects[index]} for index in kept], share=data.oversample
        )

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, item: Item) -> DetectionSample:
        index, epoch = item
        draw = np.random.default_rng((self._seed, epoch, index))
        size = self._data.train_sizes[draw.integers(len(self._data.train_sizes))]
        mirrored = bool(draw.random() < self._data.flip)
        key, image, target = self.plain(self.order[index])
        parts = {"image": tv_tensors.Image(image), **target}
        parts = {name: self._augment(part, size=size, mirrored=mirrored) for name, part in parts.items()}
        return DetectionSample(key, parts.pop("image"), parts)

    def plain(self, index: int) -> DetectionSample:
        """Read an image as it is, with its usable objects."""
        annotations, found = self._annotations, self._objects[index]
        image = read_picture(annotations, index)
        boxes = torch.tensor([entry["bbox"] for entry in found], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        canvas = (image.shape[-2], image.shape[-1])
        target: Target = {
            "boxes": functional.clamp_bounding_boxes(
                tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=canvas)
            ),
            "labels": torch.tensor([annotations.labels[entry["category_id"]] for entry in found]),
        }
        if self._masks:
            target["masks"] = tv_tensors.Mask(np.stack([annotations.mask(entry, index) for entry in found]))
        return DetectionSample(annotations.file(index).name, image, target)

    def _augment(self, part: Tensor, *, size: int, mirrored: bool) -> Tensor:
        if not isinstance(part, tv_tensors.TVTensor):
            return part
        # without antialiasing, as the detector resizes the pictures that it is evaluated on
        part = functional.resize(part, [size], max_size=self._data.max_size, antialias=False)
        return (functional.horizontal_flip(part) if mirrored else part).as_subclass(Tensor)


def read_picture(annotations: Annotations, index: int) -> Tensor:
    """Read an image, uint8 [3, H, W].

    Raises:
        LGDError: the file is no image, or has another size than its entry says.
    """
    file, entry = annotations.file(index), annotations.images[index]
    try:
        picture = read_image(file)
    except ShardError as error:
        raise LGDError(
            f"{file} can't be read as a picture ({error}). Fetch it again, or take it out of {annotations.path}."
        ) from error
    height, width = picture.shape[-2:]
    if (width, height) != (entry["width"], entry["height"]):
        raise LGDError(
            f"{file} has {width} x {height} pixels, and {entry['width']} x {entry['height']} in "
            f"{annotations.path}. Give the pictures that were annotated."
        )
    return picture


def repeated(indices: Sequence[int], categories: Sequence[set[int]], *, share: float | None) -> list[int]:
    """Repeat each index ceil(max(1, sqrt(share / frequency))) times, with the frequency of its rarest category.

    It is LVIS's repeat factor sampling (Gupta et al. 2019, appendix B), rounded up as by mmdet's ClassBalancedDataset.

    Args:
        indices: of images.
        categories: those that occur in each image. A category's frequency is the share of images in which it occurs.
        share: categories of a lower frequency are repeated; None: each index once.
    """
    if share is None:
        return list(indices)
    counts = Counter(category for held in categories for category in held)
    repeats = {category: max(1.0, math.sqrt(share * len(indices) / count)) for category, count in counts.items()}
    return [
        index
        for index, held in zip(indices, categories, strict=True)
        for _ in range(math.ceil(max(repeats[c] for c in held)))
    ]


def _usable(annotations: Annotations, index: int, left_out: Counter[str], *, masks: bool) -> list[Entry]:
    """Return an image's objects that can be learned from.

    Polygons need three corners; pycocotools takes two for a box.
    """
    image, found = annotations.images[index], []
    for entry in annotations.objects[index]:
        x, y, w, h = entry["bbox"]
        inside = min(x + w, image["width"]) - max(x, 0) >= 1 and min(y + h, image["height"]) - max(y, 0) >= 1
        usable = entry
        if masks and isinstance(entry["segmentation"], list) and min(map(len, entry["segmentation"])) < 6:
            usable = {**entry, "segmentation": [polygon for polygon in entry["segmentation"] if len(polygon) >= 6]}
        if entry.get("iscrowd", 0):
            left_out["crowds"] += 1
        elif not inside:
            left_out["objects of less than a pixel"] += 1
        elif masks and not usable["segmentation"]:
            left_out["objects without a polygon of three corners"] += 1
        else:
            found.append(usable)
    return found
