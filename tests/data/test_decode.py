"""Files to pixels: what Pillow would give, of any kind of image, upright, and no more decoded than is asked for."""

from __future__ import annotations

import io
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lgd_timm.data.decode import EncodedImage, open_image, read_image, upright_size
from lgd_timm.data.views import Views
from lgd_timm.errors import ShardError

RED, BLUE = (250, 10, 10), (10, 10, 250)
TWO = Image.new("RGB", (20, 10), RED)
TWO.paste(BLUE, (10, 0, 20, 10))  # left red, right blue


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    value = Image.Exif()
    value[0x0112] = orientation
    return value


def whole(data: bytes, least: int | None = None) -> Tensor:
    picture = EncodedImage(data)
    return picture.crop((0, 0, picture.height, picture.width), least=least)


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth blobs with some noise: what JPEG is made for."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return Image.fromarray(
        np.clip(np.asarray(coarse).astype(int) + draw.integers(-9, 10, (height, width, 3)), 0, 255).astype(np.uint8)
    )


def by_pillow(data: bytes, reduce: int = 1) -> Tensor:
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (image.width // reduce, image.height // reduce))
        return torch.from_numpy(np.array(ImageOps.exif_transpose(image).convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30}])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 8), (97, 131), (200, 301)])
def test_a_jpeg_has_pillows_pixels_whole_and_reduced(height: int, width: int, options: dict, subsampling: int) -> None:
    data = encode(photograph(height, width), "JPEG", subsampling=subsampling, **options)
    assert torch.equal(whole(data), by_pillow(data))
    for reduce in (2, 4, 8):
        if min(height, width) >= 8 * reduce:
            pixels = whole(data, least=min(height, width) // reduce), by_pillow(data, reduce)
            ours, theirs = (image[:, : height // reduce, : width // reduce] for image in pixels)
            assert torch.equal(ours, theirs)


def test_without_the_fast_decoder_the_pixels_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [encode(photograph(97, 131), "JPEG", exif=exif(turn)) for turn in (1, 6)]
    boxes: list[tuple[tuple[int, int, int, int], int | None]] = [((3, 5, 60, 70), None), ((1, 9, 80, 80), 20)]
    fast = [EncodedImage(data).crop(box, least=least).clone() for data in files for box, least in boxes]

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("not today")

    monkeypatch.setattr(simplejpeg, "decode_jpeg", refuse)
    slow = [EncodedImage(data).crop(box, least=least) for data in files for box, least in boxes]
    assert all(torch.equal(a, b) for a, b in zip(fast, slow, strict=True))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_a_crop_is_the_part_of_the_upright_picture(kind: str, turn: int) -> None:
    data = encode(photograph(40, 56), kind, exif=exif(turn))
    picture = EncodedImage(data)
    upright = by_pillow(data)
    assert (picture.height, picture.width) == tuple(upright.shape[1:])
    for top, left, height, width in ((0, 0, 40, 40), (7, 3, 20, 11), (0, 39, 1, 1)):
        assert torch.equal(
            picture.crop((top, left, height, width)), upright[:, top : top + height, left : left + width]
        )


def test_no_more_is_decoded_than_a_view_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict] = []
    decode = simplejpeg.decode_jpeg
    monkeypatch.setattr(
        simplejpeg, "decode_jpeg", lambda data, **options: asked.append(options) or decode(data, **options)
    )
    picture = EncodedImage(encode(photograph(400, 600), "JPEG"))
    sizes = [picture.crop((0, 0, 400, 600), least=least).shape[1:] for least in (None, 400, 201, 200, 100, 99, 50, 3)]
    assert [tuple(size) for size in sizes] == [(400, 600)] * 3 + [
        (200, 300),
        (100, 150),
        (100, 150),
        (50, 75),
        (50, 75),
    ]
    assert len(asked) == 4  # each scale once
    assert picture.crop((0, 0, 100, 600), least=100).shape[1:] == (100, 600)  # the shorter side decides
    assert EncodedImage(encode(photograph(400, 600), "PNG")).crop((0, 0, 400, 600), least=10).shape[1:] == (400, 600)


def test_a_reduced_crop_shows_the_same_part() -> None:
    data = encode(photograph(401, 603), "JPEG", quality=95)
    picture = EncodedImage(data)
    for box in ((0, 0, 401, 603), (101, 203, 299, 307), (33, 7, 256, 512)):
        large, small = picture.crop(box), picture.crop(box, least=min(box[2:]) // 2)
        assert all(side // 2 <= got <= side // 2 + 1 for side, got in zip(box[2:], small.shape[1:], strict=True))
        shrunk = torch.nn.functional.interpolate(
            large[None].float(), size=tuple(small.shape[1:]), mode="bilinear", antialias=True
        )[0]
        assert (shrunk - small).abs().mean() < 4


def test_views_of_large_photographs_hardly_change_with_reduced_decoding() -> None:
    data = encode(photograph(700, 900), "JPEG", quality=95)
    views = Views(size=96, augmentation="light")
    for index in range(6):
        picture = EncodedImage(data)
        view = views.draw("a", index, height=picture.height, width=picture.width)
        exact = torch.nn.functional.interpolate(
            picture.crop(view.box)[None], size=(96, 96), mode="bicubic", antialias=True
        )[0]
        exact = exact.flip(-1) if view.flip else exact
        assert (views.crop_and_resize(picture, view).int() - exact.int()).abs().float().mean() < 3


def test_evaluation_decodes_in_full() -> None:
    data = encode(photograph(400, 600), "JPEG")
    picture = EncodedImage(data)
    expected = torch.nn.functional.interpolate(
        by_pillow(data)[None, :, :, 100:500], size=(64, 64), mode="bicubic", antialias=True
    )[0]
    assert torch.equal(Views(size=64, augmentation="none").render(picture, "a", 0), expected)


def test_a_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(photograph(100, 100), "JPEG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ShardError, match="DecompressionBomb"):
        EncodedImage(data)


def test_a_header_that_promises_20000_pixels_a_side_is_refused_before_any_is_decoded() -> None:
    """The files are small; what they would unpack to is 1.2 GB."""
    png = bytearray(encode(photograph(100, 100), "PNG"))
    png[16:24] = struct.pack(">II", 20_000, 20_000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    jpeg = bytearray(encode(photograph(100, 100), "JPEG"))
    size = jpeg.index(b"\xff\xc0") + 5
    jpeg[size : size + 4] = struct.pack(">HH", 20_000, 20_000)
    for data in (png, jpeg):
        tracemalloc.start()
        with pytest.raises(ShardError, match="DecompressionBomb"):
            EncodedImage(bytes(data))
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_picture_counts(kind: str) -> None:
    frames = [Image.new("RGB", (24, 16), colour) for colour in ("red", "lime", "blue")]
    pixels = whole(encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True))
    assert torch.equal(pixels, torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None].expand(3, 16, 24))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_odd_exif_costs_nothing() -> None:
    """Text where EXIF wants a number, beside an orientation that can be read."""
    odd = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + struct.pack("<HHIIHHI4sI", 0x0112, 3, 1, 6, 0x011A, 2, 4, b"abc\0", 0)
    data = encode(TWO, "JPEG", quality=100, exif=odd)
    assert whole(data).shape == (3, 20, 10)
    for junk in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + bytes(40)):
        assert whole(encode(TWO, "JPEG", exif=junk)).shape == (3, 10, 20)


@pytest.mark.parametrize("value", [0, 9, 77])
def test_an_unknown_orientation_is_none(value: int) -> None:
    assert whole(encode(TWO, "JPEG", exif=exif(value))).shape == (3, 10, 20)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "first", "axis"),
    [(1, RED, 2), (2, BLUE, 2), (3, BLUE, 2), (5, RED, 1), (6, RED, 1), (7, BLUE, 1), (8, BLUE, 1)],
)
def test_photos_stand_upright(kind: str, orientation: int, first: tuple[int, ...], axis: int) -> None:
    pixels = whole(encode(TWO, kind, exif=exif(orientation), **({"quality": 100} if kind != "PNG" else {})))
    assert pixels.shape == ((3, 10, 20) if axis == 2 else (3, 20, 10))
    half = pixels.narrow(axis, 0, 8).float().mean((1, 2))
    assert (half - torch.tensor(first)).abs().max() < 12


def ramp(_: object) -> bytes:
    return encode(Image.fromarray(np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)), "PNG")


def palette(image: Image.Image) -> bytes:
    return encode(image.quantize(8), "PNG", transparency=bytes([0, 128, 255]))


COLOURS = Image.fromarray(
    np.stack(np.meshgrid(np.arange(0, 256, 16), np.arange(0, 256, 16), [128]), -1)[:, :, 0].astype(np.uint8)
)
KINDS: dict[str, tuple[Callable[[Image.Image], bytes], Image.Image, int]] = {
    "jpeg": (lambda image: encode(image, "JPEG", quality=98, subsampling=0), COLOURS, 6),
    "png": (lambda image: encode(image, "PNG"), COLOURS, 0),
    "webp": (lambda image: encode(image, "WEBP", lossless=True), COLOURS, 0),
    "cmyk": (lambda image: encode(image.convert("CMYK"), "JPEG", quality=98), COLOURS, 8),
    "rgba": (lambda image: encode(image.convert("RGBA"), "PNG"), COLOURS, 0),
    "grey": (lambda image: encode(image.convert("L"), "PNG"), COLOURS.convert("L").convert("RGB"), 0),
    "grey alpha": (lambda image: encode(image.convert("LA"), "PNG"), COLOURS.convert("L").convert("RGB"), 0),
    "black and white": (lambda image: encode(image.convert("1"), "PNG"), COLOURS.convert("1").convert("RGB"), 0),
    "palette with transparency": (palette, COLOURS.quantize(8).convert("RGB"), 0),
    "16 bit": (ramp, Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB"), 1),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_images_of_any_kind_become_rgb(kind: str) -> None:
    make, expected, tolerance = KINDS[kind]
    data = make(COLOURS)
    pixels = whole(data)
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 16, 16))
    difference = pixels.permute(1, 2, 0).int() - torch.from_numpy(np.array(expected)).int()
    assert difference.abs().float().mean() <= tolerance
    view = Views(size=8, augmentation="mocov2").render(EncodedImage(data), "key", 0)
    assert (view.dtype, view.shape) == (torch.uint8, (3, 8, 8))


@pytest.mark.parametrize(
    ("orientation", "shape", "first"), [(1, (10, 20), RED), (6, (20, 10), RED), (3, (10, 20), BLUE)]
)
def test_a_heic_photo_of_a_phone_stands_upright(
    orientation: int, shape: tuple[int, int], first: tuple[int, ...], tmp_path: Path
) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    path = tmp_path / "a.heic"
    path.write_bytes(encode(TWO, "HEIF", quality=100, exif=exif(orientation).tobytes()))
    pixels = read_image(path)
    assert pixels.shape == (3, *shape)
    assert upright_size(path) == shape[::-1]
    assert (pixels[:, :4, :4].float().mean((1, 2)) - torch.tensor(first)).abs().max() < 30


def test_without_its_library_a_heic_photo_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = b"\0\0\0\x18ftypheic" + bytes(200)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ShardError, match=r"a HEIC photo: .*lgd_timm\[heic\]"):
        open_image(photo)
    monkeypatch.undo()
    pytest.importorskip("pillow_heif")
    with pytest.raises(ShardError, match="can't be read as an image"):
        open_image(photo)
