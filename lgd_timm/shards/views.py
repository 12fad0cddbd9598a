"""A view is a pure function of (seed, sample key, view index): what the teacher saw is what the student sees."""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional

from ..errors import RecipeError, ShardError
from ..files import fingerprint

VERSION = 1  # raised when the same (seed, key, index) would give other pixels: stored embeddings then no longer fit


@dataclass(frozen=True)
class Augmentation:
    """How strongly views differ. `scale` is the crop's share of the area; jitter is (brightness, contrast, saturation, hue)."""

    scale: tuple[float, float] | None = None  # None: resize the short side and crop the centre, as in evaluation
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_probability: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)  # pixels at 224 px; scaled with the view's size


AUGMENTATIONS = {
    "none": Augmentation(),
    "flip": Augmentation(flip=0.5),
    "light": Augmentation(scale=(0.6, 1.0), flip=0.5),
    # MoCo v2's set, which the paper uses (facts.md 1.3; released code, main.py)
    "mocov2": Augmentation(scale=(0.2, 1.0), flip=0.5, jitter=(0.4, 0.4, 0.4, 0.1), jitter_probability=0.8, grey=0.2, blur=0.5),
}


@dataclass(frozen=True)
class Views:
    """`count` fixed views of each image, each `size` x `size` pixels."""

    size: int = 224
    augmentation: str = "mocov2"
    seed: int = 0
    count: int = 1
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.augmentation not in AUGMENTATIONS:
            raise RecipeError(f"views.augmentation {self.augmentation!r} is unknown; choose one of {', '.join(AUGMENTATIONS)}.")
        if self.size < 1 or self.count < 1:
            raise RecipeError(f"views.size ({self.size}) and views.count ({self.count}) must be at least 1.")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise RecipeError(f"views.interpolation {self.interpolation!r} is unknown; choose bilinear or bicubic.")

    @property
    def fingerprint(self) -> str:
        """Name of the pixels. `count` is left out: view 3 is the same whether there are 4 or 40."""
        facts = asdict(self)
        del facts["count"]
        return fingerprint(VERSION, facts, asdict(AUGMENTATIONS[self.augmentation]))

    def render(self, image: Tensor, key: str, index: int) -> Tensor:
        """Render view `index` of an image: uint8 [3, H, W] -> uint8 [3, size, size]."""
        augmentation = AUGMENTATIONS[self.augmentation]
        draw = generator(self.seed, key, index)
        image = self._geometry(image, augmentation, draw)
        return self._photometry(image, augmentation, draw)

    def _geometry(self, image: Tensor, augmentation: Augmentation, draw: np.random.Generator) -> Tensor:
        height, width = image.shape[-2:]
        box = crop_box(height, width, augmentation, draw)
        if draw.random() < augmentation.flip:
            image, box = image.flip(-1), (box[0], width - box[1] - box[3], box[2], box[3])
        if box == (0, 0, self.size, self.size) == (0, 0, height, width):
            return image
        mode = functional.InterpolationMode(self.interpolation)
        return functional.resized_crop(image, *box, size=[self.size, self.size], interpolation=mode, antialias=True)

    def _photometry(self, image: Tensor, augmentation: Augmentation, draw: np.random.Generator) -> Tensor:
        if draw.random() < augmentation.jitter_probability:
            brightness, contrast, saturation, hue = augmentation.jitter
            steps = (
                (functional.adjust_brightness, draw.uniform(1 - brightness, 1 + brightness)),
                (functional.adjust_contrast, draw.uniform(1 - contrast, 1 + contrast)),
                (functional.adjust_saturation, draw.uniform(1 - saturation, 1 + saturation)),
                (functional.adjust_hue, draw.uniform(-hue, hue)),
            )
            for i in draw.permutation(len(steps)):
                adjust, amount = steps[i]
                image = adjust(image, float(amount))
        if draw.random() < augmentation.grey:
            image = functional.rgb_to_grayscale(image, num_output_channels=3)
        if draw.random() < augmentation.blur:
            sigma = float(draw.uniform(*augmentation.sigma)) * self.size / 224
            kernel = 2 * math.ceil(3 * sigma) + 1
            image = functional.gaussian_blur(image, [kernel, kernel], [sigma, sigma])
        return image


def generator(seed: int, key: str, index: int) -> np.random.Generator:
    """A counter-based generator keyed by the three: no global state, the same in any process and order."""
    digest = hashlib.blake2b(f"{seed}/{index}/{key}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def crop_box(height: int, width: int, augmentation: Augmentation, draw: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the crop. Inception-style random area and ratio, or the centre square."""
    if augmentation.scale is not None:
        for _ in range(10):
            area = height * width * draw.uniform(*augmentation.scale)
            ratio = math.exp(draw.uniform(math.log(augmentation.ratio[0]), math.log(augmentation.ratio[1])))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(draw.integers(0, height - h + 1)), int(draw.integers(0, width - w + 1)), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def decode(data: bytes) -> Tensor:
    """Image file -> uint8 RGB [3, H, W], upright. Raises: ShardError for a file that Pillow can't read."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            upright: Any = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits of grey, which `convert` would clip to white
                upright = Image.fromarray((np.asarray(upright) // 256).astype(np.uint8))
            return torch.from_numpy(np.array(upright.convert("RGB"))).permute(2, 0, 1)
    except UnidentifiedImageError as error:
        raise ShardError(f"{len(data)} bytes that are no image") from error
    except Exception as error:  # struct.error, TypeError, SyntaxError, ...: Pillow raises anything for bad bytes
        raise ShardError(f"can't be read as an image, {type(error).__name__}: {error}") from error
