"""Images made smaller, once: sizes, what keeps its bytes, and that pixels are those that reading gives."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from lgd_timm.data.decode import ORIENTATION, EncodedImage
from lgd_timm.data.index import Resize
from lgd_timm.data.resize import Sample, resize_image, resize_sample, resize_samples
from lgd_timm.errors import ShardError

HOW = Resize(short_side=32, quality=95)


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth colours with a bright corner at the top left, so that turns and mirrors show."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    pixels = np.stack([200 * (1 - x), 200 * (1 - y), 60 + 100 * x * y], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode, dither=Image.Dither.NONE)  # patterns of dots would lose most


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def pixels_of(data: bytes) -> torch.Tensor:
    image = EncodedImage(data)
    return image.crop((0, 0, image.height, image.width)).float()


def scaled(data: bytes, how: Resize) -> torch.Tensor:
    """What reading gives, in the small image's size, not encoded again."""
    pixels = pixels_of(data)
    short = min(pixels.shape[1:])
    size = [round(side * min(1, how.short_side / short)) for side in pixels.shape[1:]]
    return interpolate(pixels[None], size=size, mode="bicubic", antialias=True)[0].clamp(0, 255)


@pytest.mark.parametrize(
    ("size", "expected"), [((64, 48), (43, 32)), ((48, 64), (32, 43)), ((400, 100), (128, 32)), ((33, 33), (32, 32))]
)
def test_the_short_side_is_what_was_asked_for(size: tuple[int, int], expected: tuple[int, int]) -> None:
    small = resize_image(encoded(picture(*size), "JPEG"), HOW)
    with Image.open(io.BytesIO(small)) as image:
        assert (image.size, image.mode, image.format) == (expected, "RGB", "JPEG")


@pytest.mark.parametrize("size", [(32, 64), (20, 10), (32, 32)])
def test_a_small_upright_jpeg_keeps_its_bytes(size: tuple[int, int]) -> None:
    data = encoded(picture(*size), "JPEG", quality=40)
    assert resize_image(data, HOW) is data


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(64, 48), (20, 16)])
def test_photos_stand_upright(orientation: int, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(picture(*size), "JPEG", quality=98, exif=exif)
    small = resize_image(data, HOW)
    assert EncodedImage(small).is_upright_jpeg
    with Image.open(io.BytesIO(small)) as image:
        assert not image.getexif() or small is data
    assert (pixels_of(small) - scaled(data, HOW)).abs().mean() < 3


KINDS = {
    "RGBA": ("RGBA", "PNG"),
    "LA": ("LA", "PNG"),
    "palette": ("P", "GIF"),
    "black and white": ("1", "PNG"),
    "grey": ("L", "JPEG"),
    "CMYK": ("CMYK", "JPEG"),
    "16 bit": ("I;16", "PNG"),
    "small PNG": ("RGB", "PNG"),
}


@pytest.mark.parametrize("size", [(64, 48), (24, 20)])
@pytest.mark.parametrize("kind", KINDS)
def test_images_of_any_kind_become_what_reading_gives(kind: str, size: tuple[int, int]) -> None:
    mode, form = KINDS[kind]
    grey = np.asarray(picture(*size, "L")).astype(np.uint16) * 256
    image = Image.fromarray(grey) if mode == "I;16" else picture(*size, mode)
    data = encoded(image, form)
    small = resize_image(data, HOW)
    assert (small is data) == (form == "JPEG" and min(size) <= 32)
    edges = 8 if kind == "palette" else 4  # hard edges of colour lose most
    assert (pixels_of(small) - scaled(data, HOW)).abs().mean() < edges


def test_a_large_photo_is_as_faithful_though_it_is_decoded_at_a_part_of_its_size() -> None:
    data = encoded(picture(800, 600), "JPEG", quality=95)
    assert (pixels_of(resize_image(data, HOW)) - scaled(data, HOW)).abs().mean() < 2


def test_only_the_image_that_is_read_changes() -> None:
    data = encoded(picture(64, 48), "PNG")
    done = resize_sample(Sample("a/b", {"cls": b"3", "png": data, "txt": "grün".encode()}), HOW)
    assert done.encoded
    assert done.problem is None
    assert (done.before, done.after) == (len(data), len(done.sample.fields["jpg"]))
    assert done.sample.key == "a/b"
    assert {name: done.sample.fields[name] for name in done.sample.fields if name != "jpg"} == {
        "cls": b"3",
        "txt": "grün".encode(),
    }


@pytest.mark.parametrize("fields", [{"jpg": b"nothing"}, {"jpg": encoded(picture(64, 48), "PNG")[:200]}, {"cls": b"1"}])
def test_what_cant_be_decoded_stays_and_is_named(fields: dict[str, bytes]) -> None:
    done = resize_sample(Sample("a", fields), HOW)
    assert done.sample.fields == fields
    assert done.problem
    assert not done.encoded
    assert done.before == done.after


@pytest.mark.parametrize(("short_side", "quality"), [(15, 92), (0, 92), (288, 0), (288, 101)])
def test_numbers_out_of_range_are_refused(short_side: int, quality: int) -> None:
    with pytest.raises(ShardError, match=r"short_side|quality"):
        Resize(short_side, quality)


def test_workers_change_nothing() -> None:
    samples = [Sample(str(i), {"jpg": encoded(picture(40 + i, 50), "JPEG")}) for i in range(12)]
    assert list(resize_samples(samples, HOW, workers=2)) == list(resize_samples(samples, HOW))
