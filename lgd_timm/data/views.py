"""A view is a pure function of (seed, sample key, view index): what the teacher saw is what the student sees."""

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
from ..utils.schema import Seed
from .color import ColorOps, apply_color
from .decode import Box, EncodedImage

VERSION = 2  # raised when the same (seed, key, index) would give other pixels: stored embeddings then no longer fit


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
    "mocov2": Augmentation(
        scale=(0.2, 1.0), flip=0.5, jitter=(0.4, 0.4, 0.4, 0.1), jitter_probability=0.8, grey=0.2, blur=0.5
    ),
}


@dataclass(frozen=True)
class View:
    """One view of one image: which part of it, mirrored or not, in which colours."""

    box: Box
    flip: bool
    colours: ColorOps


@dataclass(frozen=True)
class Views:
    """`count` fixed views of each image, each `size` x `size` pixels.

    `crop` is for views of the centre (augmentation none or flip): the share of the short side that they keep, timm's crop_pct.
    With 224 / 256 = 0.875 they are Resize(256) and CenterCrop(224), which the paper evaluates with.
    """

    size: int = 224
    augmentation: str = "mocov2"
    seed: Seed = 0
    count: int = 1
    interpolation: str = "bicubic"
    crop: float = 1.0

    def __post_init__(self) -> None:
        if self.augmentation not in AUGMENTATIONS:
            raise RecipeError(
                f"views.augmentation {self.augmentation!r} is unknown; choose one of {', '.join(AUGMENTATIONS)}."
            )
        if self.size < 1 or self.count < 1:
            raise RecipeError(f"views.size ({self.size}) and views.count ({self.count}) must be at least 1.")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise RecipeError(f"views.interpolation {self.interpolation!r} is unknown; choose bilinear or bicubic.")
        if not 0.1 <= self.crop <= 1:
            raise RecipeError(f"views.crop ({self.crop}) is the share of the short side that is kept: 0.1 to 1.")
        if self.crop != 1 and AUGMENTATIONS[self.augmentation].scale is not None:
            raise RecipeError(
                f"views.crop ({self.crop}) is for the centre's crop; views.augmentation {self.augmentation!r} draws its own."
            )

    @property
    def facts(self) -> dict[str, Any]:
        """The fields as plain data. A `crop` that keeps all is left out, as views of before it was there have none."""
        facts = asdict(self)
        if self.crop == 1:
            del facts["crop"]
        return facts

    @property
    def fingerprint(self) -> str:
        """Name of the pixels. `count` is left out: view 3 is the same whether there are 4 or 40."""
        facts = self.facts
        del facts["count"]
        return fingerprint(VERSION, facts, asdict(AUGMENTATIONS[self.augmentation]))

    def draw(self, key: str, index: int, *, height: int, width: int) -> View:
        """What view `index` of an image of that size is. The draws never change, nor their order."""
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

    def shape(self, picture: EncodedImage, view: View) -> Tensor:
        """The geometric part: crop, flip, resize. Returns uint8 [3, size, size]."""
        # Where the box is drawn at random anyway, what is more than twice too large is decoded at a half, and so on.
        image = picture.crop(view.box, least=self.size if AUGMENTATIONS[self.augmentation].scale else None)
        side = math.floor(self.size / self.crop)
        if image.shape[1:] != (side, side):
            image = interpolate(image[None], size=(side, side), mode=self.interpolation, antialias=True)[0]
        margin = (side - self.size) // 2
        image = image[:, margin : margin + self.size, margin : margin + self.size]
        return image.flip(-1) if view.flip else image

    def render(self, picture: EncodedImage, key: str, index: int) -> Tensor:
        """View `index` of a picture: uint8 [3, size, size]."""
        view = self.draw(key, index, height=picture.height, width=picture.width)
        return apply_color(self.shape(picture, view)[None], [view.colours])[0]


def generator(seed: int, key: str, index: int) -> np.random.Generator:
    """A counter-based generator keyed by the three: no global state, the same in any process and order."""
    digest = hashlib.blake2b(f"{seed}/{index}/{key}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def crop_box(height: int, width: int, augmentation: Augmentation, draw: np.random.Generator) -> Box:
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
