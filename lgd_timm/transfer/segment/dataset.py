"""Read images and labels: augmented for training, whole for evaluation; and collate them to batches.

The augmentation is mmsegmentation's default for Cityscapes and ADE20K: scale, crop, flip, colors. Its rule that no
class may fill more than three quarters of a crop is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as transforms

from ...data.decode import read_image
from ...errors import LGDError, ShardError
from ..backbone import Statistics
from ..job import Item
from .folders import IGNORED, Split, read_label
from .recipe import SegmentData

Adjust = Callable[[Tensor, float], Tensor]

# mmsegmentation's PhotoMetricDistortion: each change is made to half of the images, by a factor between two bounds
# (hue: by a share of the color circle).
DISTORTIONS: tuple[tuple[Adjust, float, float], ...] = (
    (transforms.adjust_brightness, 1 - 32 / 255, 1 + 32 / 255),
    (transforms.adjust_contrast, 0.5, 1.5),
    (transforms.adjust_saturation, 0.5, 1.5),
    (transforms.adjust_hue, -0.1, 0.1),
)


class SegmentationSample(NamedTuple):
    """An image, uint8 [3, H, W], its class indices, uint8 [H, W] (255: ignored), and its name."""

    image: Tensor
    label: Tensor
    key: str


@dataclass
class SegmentationBatch:
    """Images, uint8 [B, 3, H, W], their class indices, uint8 [B, H, W] (255: ignored), and their names."""

    images: Tensor
    labels: Tensor
    keys: list[str]

    def to(self, device: torch.device) -> SegmentationBatch:
        """Move the batch to a device."""
        return SegmentationBatch(self.images.to(device), self.labels.to(device), self.keys)


def collate(samples: Sequence[SegmentationSample]) -> SegmentationBatch:
    """Make a batch of samples of one size."""
    images, labels, keys = zip(*samples, strict=True)
    return SegmentationBatch(torch.stack(images), torch.stack(labels), list(keys))


class WholePictures:
    """The images of a split, as they are in their files."""

    def __init__(self, split: Split) -> None:
        self._split = split

    def __len__(self) -> int:
        return len(self._split.pairs)

    def __getitem__(self, index: int) -> SegmentationSample:
        """Read an image and its labels. Raises: LGDError for a file that can't be read."""
        file = self._split.pairs[index].picture
        try:
            image = read_image(file)
        except ShardError as error:
            raise LGDError(f"{file} can't be read as a picture ({error}). Replace or remove it.") from error
        return SegmentationSample(image, torch.from_numpy(read_label(self._split, index)), file.name)


class DrawnPictures:
    """The images of a split, augmented to one size; what is drawn depends on (seed, index, epoch) alone.

    Args:
        split: which images.
        data: settings of the augmentation.
        seed: of what is drawn at random.
        fill: color in 0..1 of what a small image leaves free of the crop; it is ignored in the labels.
    """

    def __init__(self, split: Split, *, data: SegmentData, seed: int, fill: Statistics) -> None:
        self._whole, self._data, self._seed = WholePictures(split), data, seed
        self._fill = [round(255 * value) for value in fill]

    def __len__(self) -> int:
        return len(self._whole)

    def __getitem__(self, item: Item) -> SegmentationSample:
        index, epoch = item
        draw = np.random.default_rng((self._seed, index, epoch))
        image, label, key = self._whole[index]
        parts = self._crop(draw, tv_tensors.Image(image), tv_tensors.Mask(label))
        if self._data.flip and draw.random() < 0.5:
            parts = [transforms.horizontal_flip(part) for part in parts]
        if self._data.distort:
            for adjust, low, high in DISTORTIONS:
                if draw.random() < 0.5:
                    parts[0] = adjust(parts[0], draw.uniform(low, high))
        (height, width), (tall, wide) = self._data.crop, parts[0].shape[-2:]
        border = [0, 0, width - wide, height - tall]
        image, label = (
            transforms.pad(part, border, fill=fill) for part, fill in zip(parts, (self._fill, IGNORED), strict=True)
        )
        return SegmentationSample(image.as_subclass(Tensor), label.as_subclass(Tensor), key)

    def _crop(self, draw: np.random.Generator, *parts: Tensor) -> list[Tensor]:
        """Cut a random part out of the image and scale it to the crop's size at most: cheaper than to scale all."""
        crop, (height, width) = self._data.crop, parts[0].shape[-2:]
        scale = draw.uniform(*self._data.scale) * (self._data.short_side or min(height, width)) / min(height, width)
        inside = [min(side, max(1, round(part / scale))) for side, part in zip((height, width), crop, strict=True)]
        top, left = (int(draw.integers(0, side - part + 1)) for side, part in zip((height, width), inside, strict=True))
        size = [min(part, max(1, round(side * scale))) for side, part in zip(inside, crop, strict=True)]
        return [transforms.resized_crop(part, top, left, *inside, size, antialias=True) for part in parts]
