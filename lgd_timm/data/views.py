"""Augmented views of images. A view is a pure function of (seed, sample key, view index).

Teacher and student therefore get the same pixels, even when the teacher's embeddings were computed beforehand.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import RecipeError
from ..utils.files import fingerprint
from ..utils.schema import LARGEST_SIDE, MOST_VIEWS, SMALLEST_SIDE, Seed, brief
from .color import ColorOps, apply_color, planar
from .decode import Box, EncodedImage

VERSION = 2  # raised when the same (seed, key, index) would give other pixels: stored embeddings then no longer fit


@dataclass(frozen=True)
class Augmentation:
    """Settings of random views. `scale`: share of the image's area that a crop keeps, from and to.

    `jitter`: greatest change of brightness, contrast, saturation and hue, as in torchvision's ColorJitter.
    `flip`, `grey` and `blur` are probabilities.
    """

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
    # MoCo v2's set, which the paper uses (arXiv 2406.11689, section 4; the released code's main.py)
    "mocov2": Augmentation(
        scale=(0.2, 1.0), flip=0.5, jitter=(0.4, 0.4, 0.4, 0.1), jitter_probability=0.8, grey=0.2, blur=0.5
    ),
}


@dataclass(frozen=True)
class View:
    """One view of one image: the box that is cropped, whether it is mirrored, and the colour operations."""

    box: Box
    flip: bool
    color_ops: ColorOps


@dataclass(frozen=True)
class Views:
    """`count` fixed views of each image, each `size` x `size` pixels.

    `crop` is for centre crops (augmentation none or flip): the share of the short side that they keep, timm's crop_pct.
    224 / 256 = 0.875 is Resize(256) and CenterCrop(224), which the paper evaluates with.

    Raises:
        RecipeError: a field is out of its range, or `crop` is given with an augmentation that crops at random.
    """

    size: int = 224  # pixels, each side
    augmentation: str = "mocov2"  # none, flip, light or mocov2: what is drawn at random
    seed: Seed = 0  # of what is drawn
    count: int = 1  # fixed views of each image; epoch e sees view e mod count
    interpolation: str = "bicubic"  # or bilinear
    crop: float = 1.0  # share of the short side that a centre crop keeps

    def __post_init__(self) -> None:
        if self.augmentation not in AUGMENTATIONS:
            raise RecipeError(
                f"views.augmentation {brief(self.augmentation)} is unknown; choose one of {', '.join(AUGMENTATIONS)}."
            )
        if not (SMALLEST_SIDE <= self.size <= LARGEST_SIDE and 1 <= self.count <= MOST_VIEWS):
            raise RecipeError(
                f"views.size ({brief(self.size)}) must be {SMALLEST_SIDE} to {LARGEST_SIDE}, "
                f"views.count ({brief(self.count)}) 1 to {MOST_VIEWS}."
            )
        if self.interpolation not in ("bilinear", "bicubic"):
            raise RecipeError(
                f"views.interpolation {brief(self.interpolation)} is unknown; choose bilinear or bicubic."
            )
        if not 0.1 <= self.crop <= 1:
            raise RecipeError(f"views.crop ({self.crop}) is the share of the short side that is kept: 0.1 to 1.")
        if self.crop != 1 and AUGMENTATIONS[self.augmentation].scale is not None:
            raise RecipeError(
                f"views.crop ({self.crop}) is for the centre's crop; "
                f"views.augmentation {self.augmentation!r} draws its own."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data, without a `crop` of 1: stored fingerprints are older than that field."""
        fields = asdict(self)
        if self.crop == 1:
            del fields["crop"]
        return fields

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that name the pixels. `count` has no part: view 3 is the same among 4 or 40."""
        fields = self.to_dict()
        del fields["count"]
        return fingerprint(VERSION, fields, asdict(AUGMENTATIONS[self.augmentation]))

    def draw(self, key: str, index: int, *, height: int, width: int) -> View:
        """Draw the parameters of view `index` of an image.

        The order of the draws must never change, since stored embeddings belong to these pixels (see `VERSION`).

        Args:
            key: the sample's key.
            index: of the view, from 0.
            height: of the upright image, pixels.
            width: of the upright image, pixels.
        """
        augmentation = AUGMENTATIONS[self.augmentation]
        draw = generator(self.seed, key, index)
        box = crop_box(height, width, augmentation, draw)
        flip = draw.random() < augmentation.flip
        jitter: tuple[tuple[int, float], ...] = ()
        if draw.random() < augmentation.jitter_probability:
            brightness, contrast, saturation, hue = augmentation.jitter
            ranges = (
                (1 - brightness, 1 + brightness),
                (1 - contrast, 1 + contrast),
                (1 - saturation, 1 + saturation),
                (-hue, hue),
            )
            amounts = [draw.uniform(*limits) for limits in ranges]
            jitter = tuple((int(kind), amounts[kind]) for kind in draw.permutation(len(amounts)))
        grey = draw.random() < augmentation.grey
        blur = draw.random() < augmentation.blur
        sigma = draw.uniform(*augmentation.sigma) * self.size / 224 if blur else 0.0
        return View(box, flip, ColorOps(jitter, grey, sigma))

    def crop_and_resize(self, image: EncodedImage, view: View) -> Tensor:
        """Apply the geometric part of a view: crop, resize, flip. Returns uint8 [3, size, size]."""
        # A random crop that is more than twice too large is decoded at a half of its size, and so on.
        pixels = image.crop(view.box, least=self.size if AUGMENTATIONS[self.augmentation].scale else None)
        side = math.floor(self.size / self.crop)
        if pixels.shape[1:] != (side, side):
            # With a batch's stride of a whole image torch keeps the channels last, which takes a third less time.
            batch = pixels.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
            pixels = interpolate(batch, size=(side, side), mode=self.interpolation, antialias=True)[0]
        margin = (side - self.size) // 2
        pixels = pixels[:, margin : margin + self.size, margin : margin + self.size]
        return pixels.flip(-1) if view.flip else pixels

    def render(self, image: EncodedImage, key: str, index: int) -> Tensor:
        """Render view `index` of an image: uint8 [3, size, size]. Raises: ShardError where it can't be decoded."""
        view = self.draw(key, index, height=image.height, width=image.width)
        return planar(apply_color(self.crop_and_resize(image, view)[None], [view.color_ops])[0])


def generator(seed: int, key: str, index: int) -> np.random.Generator:
    """Build a counter-based generator keyed by the three: without global state, the same in any process and order."""
    digest = hashlib.blake2b(f"{seed}/{index}/{key}".encode(errors="surrogatepass"), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def crop_box(height: int, width: int, augmentation: Augmentation, draw: np.random.Generator) -> Box:
    """Choose (top, left, height, width) of a crop: random area and ratio as in Inception, or the centre square."""
    if augmentation.scale is not None:
        for _ in range(10):
            area = height * width * draw.uniform(*augmentation.scale)
            ratio = math.exp(draw.uniform(math.log(augmentation.ratio[0]), math.log(augmentation.ratio[1])))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(draw.integers(0, height - h + 1)), int(draw.integers(0, width - w + 1)), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side
