"""Images of samples: from files, and from shards at random."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ...data.decode import EncodedImage, read_image
from ...data.image_folder import is_image
from ...data.index import IMAGE_FIELDS, ShardSet
from ...data.tar import IndexedTar
from ...errors import LGDError, ShardError

_COCO_NAME = re.compile(r"(\d{12})\.\w+$")  # COCO_train2014_000000000009.jpg, 000000000009.jpg


def to_pil(pixels: Tensor) -> Image.Image:
    """Turn uint8 RGB [3, H, W] into a Pillow image."""
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))


def load_file(path: Path) -> Image.Image:
    """Read an image file, upright RGB. Raises: LGDError for a file that is no image."""
    try:
        return to_pil(read_image(path))
    except ShardError as error:
        raise LGDError(f"{path}: {error}. Replace it, or leave its entries out of the annotations.") from error


def coco_files(folder: Path) -> dict[int, Path]:
    """List a folder of COCO's images by their ids, the last 12 digits of their names.

    Raises:
        LGDError: it is no folder, or holds no such images.
    """
    if not folder.is_dir():
        raise LGDError(f"{folder} is no folder. Give the folder of COCO's images, such as train2014.")
    names = [path for path in sorted(folder.iterdir()) if is_image(path.name)]
    found = {int(match[1]): path for path in names if (match := _COCO_NAME.search(path.name))}
    if not found:
        raise LGDError(
            f"{folder} holds no image with a name as COCO's, such as COCO_val2014_000000000042.jpg or "
            "000000000042.jpg. Give the folder of COCO's images."
        )
    return found


class ShardReader:
    """Fields of a shard set's samples by position, over all its tars. It can be pickled; each process indexes anew."""

    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards
        self._starts = np.concatenate([[0], np.cumsum(shards.lengths)])
        self._tars: dict[int, IndexedTar] = {}

    def __len__(self) -> int:
        return len(self.shards)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tars": {}}

    def key(self, position: int) -> str:
        """Return a sample's key. Raises: ShardError for a damaged shard."""
        return self._locate(position)[1]

    def fields(self, position: int) -> tuple[str, ...]:
        """Return the names of a sample's fields, lower case. Raises: ShardError for a damaged shard."""
        tar, key = self._locate(position)
        return tuple(tar.samples[key])

    def read(self, position: int, field: str) -> bytes:
        """Read a field. Raises: ShardError where it is missing or can't be read."""
        tar, key = self._locate(position)
        try:
            return tar.read(key, field)
        except (KeyError, OSError) as error:
            raise ShardError(f"{tar.path}: {key} has no readable field {field!r} ({error}).") from error

    def image(self, position: int) -> Tensor:
        """Decode a sample's image, uint8 RGB [3, H, W]. Raises: ShardError where it has none that can be read."""
        field = next((name for name in IMAGE_FIELDS if name in self.fields(position)), None)
        tar, key = self._locate(position)
        if field is None:
            raise ShardError(f"{tar.path}: {key} has no image among its fields ({', '.join(tar.samples[key])}).")
        try:
            image = EncodedImage(self.read(position, field))
            return image.crop((0, 0, image.height, image.width)).contiguous()
        except ShardError as error:
            raise ShardError(f"{tar.path}: {key} {error}. Repair the shard.") from error

    def pil(self, position: int) -> Image.Image:
        """Decode a sample's image. Raises: as `image`."""
        return to_pil(self.image(position))

    def _locate(self, position: int) -> tuple[IndexedTar, str]:
        if not 0 <= position < len(self):
            raise IndexError(f"{position} of {len(self)} samples")
        shard = int(np.searchsorted(self._starts, position, side="right")) - 1
        if shard not in self._tars:
            self._tars[shard] = IndexedTar(self.shards.path(shard))
        tar, index = self._tars[shard], position - int(self._starts[shard])
        if index >= len(tar.keys):
            reason = tar.damage or f"it holds {len(tar.keys)} samples, its index says {self.shards.lengths[shard]}"
            raise ShardError(f"{tar.path} is incomplete: {reason}. Copy it again.")
        return tar, tar.keys[index]
