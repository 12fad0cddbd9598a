"""Make images smaller, once, so that every epoch decodes less: JPEGs whose short side is at most so many pixels.

Images are decoded as they are read for training (`decode.py`): upright, RGB, 16 bits of grey scaled. They are resized
as views are (bicubic, antialiased), and encoded with half the resolution of colour (4:2:0), as most photographs are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import simplejpeg
import torch
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from ..errors import ShardError
from .decode import EncodedImage
from .index import IMAGE_FIELDS, Resize
from .loader import WorkerDataLoader, start_worker

SUBSAMPLING = "420"
AHEAD = 16  # samples that a worker may have ready


class Sample(NamedTuple):
    """One sample of a shard, encoded."""

    key: str
    fields: dict[str, bytes]


class ResizedSample(NamedTuple):
    """A sample after its image was made smaller."""

    sample: Sample
    before: int  # bytes of the image
    after: int
    encoded: bool = False  # anew; else it keeps its bytes
    problem: str | None = None  # why the image can't be decoded


class Samples(Protocol):
    """Samples by position."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> Sample: ...


@dataclass
class ResizeReport:
    """How many images were made smaller, and what that saves."""

    encoded: int = 0
    kept: int = 0  # small enough, upright JPEGs
    bad: int = 0  # that can't be decoded, and keep their bytes
    before: int = 0  # bytes of all images
    after: int = 0

    def add(self, done: ResizedSample) -> None:
        """Count an image."""
        self.before += done.before
        self.after += done.after
        self.encoded += done.encoded
        self.bad += done.problem is not None
        self.kept += not done.encoded and done.problem is None

    def __str__(self) -> str:
        bad = f", {self.bad} can't be decoded and keep their bytes" if self.bad else ""
        return (
            f"{self.encoded} images encoded anew, {self.kept} kept as they are{bad}; "
            f"{self.before / 1e6:.1f} MB became {self.after / 1e6:.1f} MB"
        )


def resize_image(data: bytes, how: Resize) -> bytes:
    """Encode an image anew, with its short side at most `how.short_side` pixels.

    Args:
        data: the image file.
        how: sizes and quality.

    Returns:
        An upright JPEG without metadata. An upright JPEG that is small enough is returned as it is.

    Raises:
        ShardError: the image can't be decoded.
    """
    image = EncodedImage(data)
    short = min(image.height, image.width)
    if image.is_upright_jpeg and short <= how.short_side:
        return data
    # What is more than twice too large is decoded at a half or less; the resize still halves it at least.
    pixels = image.crop((0, 0, image.height, image.width), least=2 * how.short_side)
    if short > how.short_side:
        size = [max(1, round(side * how.short_side / short)) for side in (image.height, image.width)]
        pixels = interpolate(pixels[None], size=size, mode="bicubic", antialias=True)[0]
    encoded: bytes = simplejpeg.encode_jpeg(
        pixels.permute(1, 2, 0).contiguous().numpy(),
        quality=how.quality,
        colorspace="RGB",
        colorsubsampling=SUBSAMPLING,
        fastdct=False,
    )
    return encoded


def resize_sample(sample: Sample, how: Resize) -> ResizedSample:
    """Make a sample's image smaller. One that can't be decoded stays, as a bad sample of whoever reads it."""
    field = next((name for name in IMAGE_FIELDS if name in sample.fields), None)
    if field is None:
        return ResizedSample(sample, 0, 0, problem=f"no image among its fields ({', '.join(sample.fields)})")
    data = sample.fields[field]
    try:
        small = resize_image(data, how)
    except ShardError as error:
        return ResizedSample(sample, len(data), len(data), problem=str(error))
    if small is data:
        return ResizedSample(sample, len(data), len(data))
    fields = {name: content for name, content in sample.fields.items() if name != field}
    return ResizedSample(Sample(sample.key, {**fields, "jpg": small}), len(data), len(small), encoded=True)


def resize_samples(samples: Samples, how: Resize, *, workers: int = 0) -> Iterator[ResizedSample]:
    """Make the images of all samples smaller, in order.

    Args:
        samples: by position; each worker gets a copy.
        how: sizes and quality.
        workers: processes; 0: this one alone.

    Raises:
        ShardError: a sample can't be read.
        WorkerError: a worker died.
    """
    yield from WorkerDataLoader(
        _Resized(samples, how),
        batch_size=None,
        sampler=range(len(samples)),
        collate_fn=_identity,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        worker_init_fn=start_worker,
        generator=torch.Generator(),
    )


class _Resized(Dataset[ResizedSample]):
    def __init__(self, samples: Samples, how: Resize) -> None:
        self._samples, self._how = samples, how

    def __getitem__(self, position: int) -> ResizedSample:
        return resize_sample(self._samples[position], self._how)


def _identity(sample: Any) -> Any:
    return sample
