"""JPEG photographs of ImageNet's sizes, made from the sample photographs that scikit-image and scikit-learn carry.

Crops, mirrored and scaled: what a decoder and a resize are asked for is that of photographs, which noise or drawings
are not.
"""

from __future__ import annotations

import getpass
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from lgd_timm.data import open_shards
from lgd_timm.data.index import INFO, ShardSet
from lgd_timm.data.writer import write_shards
from lgd_timm.errors import require

SAMPLES = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "immunohistochemistry")
# (width, height) and its weight: most of ImageNet is about 500 x 375, some larger
SIZES = {
    (500, 375): 10,
    (375, 500): 4,
    (500, 333): 6,
    (333, 500): 2,
    (400, 300): 2,
    (640, 480): 4,
    (800, 600): 2,
    (1000, 750): 2,
}
LARGE = {(1600, 1200): 3, (1200, 1600): 1}  # two megapixels: what a camera's picture is after somebody made it smaller
RESIZED = {(384, 288): 3, (288, 384): 1}  # as `lgd-timm shards resize --short-side 288` leaves the first ones
QUALITY = 95  # which makes them nearly as heavy as those of ImageNet, 110 kB on average


def photographs(count: int, *, sizes: Mapping[tuple[int, int], int] = SIZES) -> ShardSet:
    """Shards of `count` photographs, in the folder for temporary files; written when they are not there."""
    name = f"photographs-{count}-{QUALITY}-{max(sizes)[0]}"
    folder = Path(tempfile.gettempdir()) / f"lgd_timm-benchmarks-{getpass.getuser()}" / name
    if not (folder / INFO).exists():
        with tempfile.TemporaryDirectory() as images:
            _draw(Path(images), count, sizes)
            write_shards(images, folder, samples_per_shard=max(1, count // 4))
    return open_shards(folder, split="train")


def describe(shards: ShardSet) -> str:
    size = sum(shards.path(i).stat().st_size for i in range(len(shards.filenames)))
    mean = f"{size / len(shards) / 1000:.0f} kB each on average"
    return f"{len(shards)} JPEGs of quality {QUALITY}, {mean}, in {len(shards.filenames)} shards"


def _draw(folder: Path, count: int, sizes: Mapping[tuple[int, int], int]) -> None:
    """Class folders, as timm's reader wants labels."""
    draw = np.random.default_rng(0)
    sources = _sources()
    names, weights = list(sources), np.array(list(sizes.values()))
    for i in range(count):
        name = names[i % len(names)]
        width, height = list(sizes)[draw.choice(len(sizes), p=weights / weights.sum())]
        (folder / name).mkdir(exist_ok=True)
        _view(sources[name], width, height, draw).save(folder / name / f"{i:05d}.jpg", quality=QUALITY)


def _view(source: Image.Image, width: int, height: int, draw: np.random.Generator) -> Image.Image:
    """A crop of that shape, as large as can be down to seven tenths of it, mirrored or not."""
    share = draw.uniform(0.7, 1.0) * min(source.width / width, source.height / height)
    w, h = share * width, share * height
    left, top = draw.uniform(0, source.width - w), draw.uniform(0, source.height - h)
    image = source.resize((width, height), Image.Resampling.LANCZOS, box=(left, top, left + w, top + h))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else image


def _sources() -> dict[str, Image.Image]:
    skimage, sklearn = require("skimage.data", extra="bench"), require("sklearn.datasets", extra="bench")
    pictures = {name: getattr(skimage, name)() for name in SAMPLES}
    pictures |= {f"sklearn{i}": image for i, image in enumerate(sklearn.load_sample_images().images)}
    return {name: Image.fromarray(pixels) for name, pixels in pictures.items()}
