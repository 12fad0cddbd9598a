"""Features of regions, by RoIAlign on the map of a frozen timm backbone; computed once and stored.

    settings.cache_folder()/vl/<fingerprint>/  features.npy float16 [M, R, F]  boxes.npy float32 [M, R, 4]
                                               sizes.npy int32 [M, 2]  counts.npy int32 [M]  rows.npy int64 [N]
                                               tags.json  sums.json (sha256 of the others)

M images of N samples. A feature is the mean of RoIAlign's 4 x 4 places within a box.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import roi_align

from .. import settings
from ..data.preprocess import Preprocess
from ..errors import CacheError, LGDError
from ..hub.verify import FileFacts, wrong_files
from ..teachers.base import module_fingerprint
from ..transfer.backbone import Pyramid, PyramidBackbone
from ..utils.distributed import Ranks
from ..utils.files import atomic_folder, fingerprint, sha256_of, write_json
from ..utils.progress import progress_bar
from ..utils.typed_json import JSONError, read_json
from .data.sample import Dataset, images_of
from .recipe import VisionRecipe
from .regions import Found, RegionSource, box_numbers
from .tower import TowerFeatures, find_frozen

LARGEST_TAGS = 1 << 32  # bytes: some tags of each of some million images

log = logging.getLogger(__name__)

VERSION = 1  # of the stored files; raise it when the same fingerprint would name another content
FILES = ("features.npy", "boxes.npy", "sizes.npy", "counts.npy", "rows.npy", "tags.json")
SUMS = "sums.json"
PLACES = 4  # RoIAlign's, along each side of a box


class RegionFeatures(nn.Module):
    """Features of boxes on one map of a frozen backbone.

    Args:
        backbone: is changed: layers behind the map are removed.
        level: index of timm's feature map.
        image_size: pixels to which both sides of an image are resized.

    Attributes:
        architecture: timm's name of the backbone.
        dim: width F of a feature.
    """

    def __init__(self, backbone: PyramidBackbone, *, level: int, image_size: int) -> None:
        super().__init__()
        self.architecture, self.level, self.image_size = backbone.architecture, level, image_size
        self.mean, self.std = backbone.mean, backbone.std
        self.preprocess = Preprocess(size=image_size, mean=backbone.mean, std=backbone.std)
        self.pyramid = Pyramid(backbone, levels=[level])
        self.dim, self.stride = self.pyramid.channels[0], self.pyramid.strides[0]
        self.requires_grad_(False).eval()

    @property
    def fingerprint(self) -> str:
        """Of all that decides the features of a box."""
        return module_fingerprint(self, self.architecture, self.level, self.image_size, self.mean, self.std)

    @torch.no_grad()
    def forward(self, images: Sequence[Tensor], boxes: Sequence[Tensor]) -> list[Tensor]:
        """Compute features.

        Args:
            images: uint8 [3, H, W] each.
            boxes: float32 [N, 4] of each image, left, top, right, bottom in its pixels.

        Returns:
            float32 [N, F] of each image.
        """
        size = self.image_size
        (maps,) = self.pyramid(torch.cat([self.preprocess(image[None]) for image in images]))
        scales = [torch.tensor([size / image.shape[2], size / image.shape[1]] * 2) for image in images]
        scaled = [(box * scale.to(box.device)).float() for box, scale in zip(boxes, scales, strict=True)]
        pooled = roi_align(maps, scaled, PLACES, spatial_scale=1 / self.stride, sampling_ratio=2, aligned=True)
        return list(pooled.mean((2, 3)).split([len(box) for box in boxes]))


def open_region_features(recipe: VisionRecipe, *, seed: int) -> RegionFeatures:
    """Build the recipe's backbone. Raises: LGDError where it can't be built, or lacks the level."""
    return RegionFeatures(find_frozen(recipe, seed=seed), level=recipe.level, image_size=recipe.image_size)


Extract = RegionFeatures | TowerFeatures


class ImageRegions(NamedTuple):
    """Regions of one image: features float16 [N, F], box numbers float32 [N, 6], names of objects."""

    features: Tensor
    boxes: Tensor
    tags: tuple[str, ...]


class FeatureTable:
    """Stored features of a data set's samples, read from the disk as they are needed."""

    def __init__(self, folder: Path) -> None:
        try:
            load = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("features", "boxes")}
            self._features, self._boxes = load["features"], load["boxes"]
            self._sizes, self._counts, self._rows = (np.load(folder / f"{n}.npy") for n in ("sizes", "counts", "rows"))
            self._tags = read_json(folder / "tags.json", list[list[str]], limit=LARGEST_TAGS)
        except (OSError, ValueError) as error:
            raise LGDError(f"{folder} can't be read ({error}). Remove it: it is made again.") from error

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> ImageRegions:
        row = self._rows[index]
        count = self._counts[row]
        boxes = torch.from_numpy(np.array(self._boxes[row, :count]))
        features = torch.from_numpy(np.array(self._features[row, :count]))
        return ImageRegions(features, box_numbers(boxes, self._sizes[row].tolist()), tuple(self._tags[row]))


def stored_features(
    dataset: Dataset,
    *,
    regions: RegionSource,
    extract: Extract,
    batch_size: int,
    device: torch.device,
    ranks: Ranks,
) -> FeatureTable:
    """Open a data set's features, and compute them first where they are not stored.

    Args:
        dataset: the samples.
        regions: finds the boxes.
        extract: computes the features; is moved to the device.
        batch_size: images at once.
        device: where they are computed.
        ranks: the first computes, the others wait.

    Raises:
        LGDError: an image can't be read or has no region.
    """
    name = fingerprint(VERSION, dataset.fingerprint, regions.fingerprint, extract.fingerprint)
    folder = settings.cache_folder() / "vl" / name
    if ranks.first and not _is_whole(folder):
        try:
            with atomic_folder(folder) as temporary:
                _write(temporary, dataset, regions=regions, extract=extract.to(device), batch_size=batch_size)
        except OSError as error:
            raise CacheError(f"{folder} can't be written ({error}). Make room, or set LGD_TIMM_CACHE.") from error
    ranks.wait()
    return FeatureTable(folder)


def _is_whole(folder: Path) -> bool:
    """Whether features are stored as they were written; what is damaged is removed, which is said.

    Files that did not change since they were found right are not read again: they may have many gigabytes.
    """
    if not folder.is_dir():
        return False
    try:
        sums = read_json(folder / SUMS, dict[str, str])
        sizes = {name: (folder / name).stat().st_size for name in FILES}
        facts = {name: FileFacts(size=size, sha256=sums.get(name, "")) for name, size in sizes.items()}
        wrong = list(wrong_files(folder, facts))
    except (OSError, JSONError) as error:
        wrong = [str(error)]
    if wrong:
        log.warning("%s is damaged, or of an earlier version (%s): features are computed anew", folder, wrong[0])
        shutil.rmtree(folder)
    return not wrong


def _write(folder: Path, dataset: Dataset, *, regions: RegionSource, extract: Extract, batch_size: int) -> None:
    rows, samples = images_of(dataset)
    shape = (len(samples), regions.count)
    features = _array(folder / "features.npy", np.float16, (*shape, extract.dim))
    boxes = _array(folder / "boxes.npy", np.float32, (*shape, 4))
    sizes, counts = np.zeros((len(samples), 2), np.int32), np.zeros(len(samples), np.int32)
    tags: list[Sequence[str]] = []
    for start in progress_bar(range(0, len(samples), batch_size), desc="features", unit="batch"):
        batch = [dataset[index] for index in samples[start : start + batch_size]]
        images = [sample.load() for sample in batch]
        found = [regions.find(image, sample) for image, sample in zip(images, batch, strict=True)]
        for offset, (one, image, values) in enumerate(
            zip(found, images, _extract(extract, images, found), strict=True)
        ):
            row, count = start + offset, len(one.boxes)
            features[row, :count], boxes[row, :count] = values.half().cpu().numpy(), one.boxes.numpy()
            sizes[row], counts[row] = image.size, count
            tags.append(one.tags)
    features.flush()
    boxes.flush()
    for name, array in (("sizes", sizes), ("counts", counts), ("rows", np.array(rows, np.int64))):
        np.save(folder / f"{name}.npy", array)
    (folder / "tags.json").write_text(json.dumps(tags), encoding="utf-8")
    write_json(folder / SUMS, {name: sha256_of(folder / name) for name in FILES})


def _array(path: Path, dtype: Any, shape: tuple[int, ...]) -> Any:
    """A new array on the disk, filled with zeros."""
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def _extract(extract: Extract, images: Sequence[Image.Image], found: Sequence[Found]) -> list[Tensor]:
    device = next(extract.parameters()).device
    pixels = [pixels_of(image).to(device) for image in images]
    return extract(pixels, [one.boxes.to(device) for one in found])


def pixels_of(image: Image.Image) -> Tensor:
    """Pixels of an image, uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def regions_of(image: Image.Image, found: Found, extract: Extract) -> ImageRegions:
    """Compute one image's features, as `stored_features` would store them."""
    (values,) = _extract(extract, [image], [found])
    return ImageRegions(values.half().cpu(), box_numbers(found.boxes, image.size), found.tags)
