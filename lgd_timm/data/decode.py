"""Decode image files: only as much of an image as a view needs, by the fastest decoder whose pixels are Pillow's.

JPEG is decoded by simplejpeg (tests compare it with Pillow). Other formats, and what simplejpeg refuses (CMYK,
truncated or damaged files), are decoded by Pillow, which decides whether they can be read at all.
"""

from __future__ import annotations

import io
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import MissingExtra, ShardError, require
from ..utils.lfs import POINTER, POINTER_REASON

Box = tuple[int, int, int, int]  # top, left, height, width

ORIENTATION = 0x0112  # EXIF
# EXIF orientation -> (swap the axes first, then mirror top and bottom, then mirror left and right)
TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
PNG, PNG_METADATA = b"\x89PNG\r\n\x1a\n", (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1")
REDUCTIONS = (8, 4, 2)  # of libjpeg's scaled decoding, those that are fast


class EncodedImage:
    """An image file, opened but not decoded. `height` and `width` (pixels) are those of the upright image.

    Raises:
        ShardError: the bytes are no image. Raised here, or when pixels are read.
    """

    def __init__(self, data: bytes) -> None:
        if data.startswith(POINTER):
            raise ShardError(POINTER_REASON)
        self._data = data
        self._decoded: dict[int, np.ndarray] = {}
        header = _jpeg_size(data)
        self._jpeg = header is not None
        height, width = header or (self._pillow.height, self._pillow.width)
        self._turn = TURNS[self._orientation()]
        self.height, self.width = (width, height) if self._turn[0] else (height, width)

    @property
    def is_upright_jpeg(self) -> bool:
        """Whether the file is a JPEG that is stored as it is to be seen."""
        return self._jpeg and self._turn == TURNS[1]

    def crop(self, box: Box, *, least: int | None = None) -> Tensor:
        """Decode a box of the image.

        Args:
            box: (top, left, height, width) in pixels of the upright image.
            least: a JPEG whose box is at least twice that high and wide is decoded at a half, a quarter or an eighth of
                its size, so that the box still has `least` pixels either way. That skips most of the decoder's work.

        Returns:
            uint8 RGB [3, h, w], channels last in memory. Read only: it may be a view of the decoded image.

        Raises:
            ShardError: the image can't be decoded.
        """
        top, left, height, width = box
        reduce = self._reduction(min(height, width), least)
        pixels = self._upright(reduce)
        half = reduce // 2  # to the nearest pixel
        rows = slice((top + half) // reduce, (top + height + half) // reduce)
        columns = slice((left + half) // reduce, (left + width + half) // reduce)
        return torch.from_numpy(np.ascontiguousarray(pixels[rows, columns])).permute(2, 0, 1)

    def _reduction(self, side: int, least: int | None) -> int:
        if least is None or not self._jpeg:
            return 1
        return next((r for r in REDUCTIONS if side >= r * least), 1)

    def _upright(self, reduce: int) -> np.ndarray:
        """Decode the whole image at 1/reduce, uint8 [H, W, 3]. Kept: several views of an image are read in a row."""
        if reduce not in self._decoded:
            swap, vertical, horizontal = self._turn
            pixels = self._fast(reduce)
            if pixels is None:
                pixels = self._slow(reduce)
            pixels = pixels.transpose(1, 0, 2) if swap else pixels
            self._decoded[reduce] = np.ascontiguousarray(pixels[:: -1 if vertical else 1, :: -1 if horizontal else 1])
        return self._decoded[reduce]

    def _fast(self, reduce: int) -> np.ndarray | None:
        """Decode by simplejpeg; None where it refuses."""
        if not self._jpeg:
            return None
        height, width = (self.width, self.height) if self._turn[0] else (self.height, self.width)
        least: dict[str, int] = {}
        if reduce > 1:
            least = {"min_height": -(-height // reduce), "min_width": -(-width // reduce)}
        try:
            return simplejpeg.decode_jpeg(self._data, **least)
        except ValueError:  # CMYK, truncated, damaged: Pillow decides
            return None

    def _slow(self, reduce: int) -> np.ndarray:
        try:
            return self._by_pillow(reduce)
        except ShardError:
            plain = without_metadata(self._data)  # text after the pixels, which Pillow reads while it decodes
            if plain == self._data:
                raise
            self._data = plain
            return self._by_pillow(reduce)

    def _by_pillow(self, reduce: int) -> np.ndarray:
        image = self._open()
        try:
            if reduce > 1:
                image.draft("RGB", (image.width // reduce, image.height // reduce))
            if image.mode.startswith("I"):  # 16 bits of grey, which `convert` would clip to white
                image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))  # `convert` would copy all the same
        except Exception as error:  # struct.error, TypeError, SyntaxError, ...: Pillow raises anything for bad bytes
            raise ShardError(f"can't be read as an image, {type(error).__name__}: {error}") from error

    @cached_property
    def _pillow(self) -> Any:
        """Pillow's image, used for its header only: decoding at a reduced size would change it."""
        return self._open()

    def _open(self) -> Any:
        return open_image(self._data)

    def _orientation(self) -> int:
        if self._jpeg and not _has_metadata(self._data):
            return 1
        try:
            value = self._pillow.getexif().get(ORIENTATION, 1)
        except Exception as error:
            raise ShardError(f"can't be read as an image, {type(error).__name__}: {error}") from error
        return value if value in TURNS else 1


def read_image(path: Path) -> Tensor:
    """Read an image file as every room of this package does: upright, 16 bits of grey scaled, metadata ignored.

    Args:
        path: the file.

    Returns:
        uint8 RGB [3, H, W].

    Raises:
        ShardError: the file can't be read, or is no image.
    """
    image = EncodedImage(_read_bytes(path))
    return image.crop((0, 0, image.height, image.width)).contiguous()


def upright_size(path: Path) -> tuple[int, int]:
    """Read (width, height) of an image file as it stands upright, in pixels, from its header.

    Raises:
        ShardError: the file can't be read, or is no image.
    """
    try:
        with Image.open(path) as opened:
            # Pillow decodes a PNG whole to find an orientation behind its pixels, where nobody writes one
            exif = opened.getexif() if opened.format != "PNG" or "exif" in opened.info else {}
            swapped = TURNS.get(exif.get(ORIENTATION, 1), TURNS[1])[0]
            return (opened.height, opened.width) if swapped else (opened.width, opened.height)
    except Exception:  # whatever it is, the slow way says it, or gets round it
        image = EncodedImage(_read_bytes(path))
        return image.width, image.height


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ShardError(str(error)) from error


def open_image(data: bytes) -> Any:
    """Open an image file by Pillow, its header only, whatever metadata it carries.

    Raises:
        ShardError: the bytes are no image.
    """
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS:  # after Pillow, which reads AVIF of brand mif1 by itself
            return _open_heif(data)
        raise ShardError(f"{len(data)} bytes that are no image") from error
    except Exception as error:  # ValueError, struct.error, SyntaxError, ...: Pillow raises anything for bad bytes
        plain = without_metadata(data)
        if plain != data:  # Pillow refuses large texts and profiles, which pixels do not need
            return open_image(plain)
        raise ShardError(f"can't be read as an image, {type(error).__name__}: {error}") from error


def image_size(path: Path) -> tuple[int, int]:
    """Read (width, height) of an image file as it lies, in pixels, from its header.

    Raises:
        ShardError: the file is no image, or can't be read.
    """
    try:
        if not path.is_file():
            raise ShardError("there is no such file: a broken link")
        with Image.open(path) as image:
            return image.size
    except ShardError:
        raise
    except Exception:  # whatever it is, the slow way says it, or gets round it
        image = open_image(_read_bytes(path))
        return image.width, image.height


def without_metadata(data: bytes) -> bytes:
    """Remove texts and colour profiles from a PNG, whose pixels stay; other bytes are returned as they are."""
    if not data.startswith(PNG):
        return data
    kept, start = [PNG], len(PNG)
    while start < len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if data[start + 4 : start + 8] not in PNG_METADATA:
            kept.append(data[start:end])
        start = end
    return b"".join(kept)


def _open_heif(data: bytes) -> Any:
    """Teach Pillow HEIC, as phones write it. Raises: ShardError, also where the library is not installed."""
    try:
        require("pillow_heif", extra="heic").register_heif_opener()
    except MissingExtra as error:
        raise ShardError(f"a HEIC photo: {error}") from error
    try:
        return Image.open(io.BytesIO(data))
    except Exception as error:  # RuntimeError, EOFError, ...: of the library
        raise ShardError(f"can't be read as an image, {type(error).__name__}: {error}") from error


def _has_metadata(data: bytes) -> bool:
    """Tell whether a JPEG has an APP1 segment: EXIF and XMP, either of which may hold an orientation."""
    start, scan = 2, b"\xda"  # segments end where the scan begins
    while data[start : start + 1] == b"\xff" and (marker := data[start + 1 : start + 2]) != scan:
        if marker == b"\xe1":
            return True
        if marker == b"\xff":  # any number of fill bytes may stand before a marker
            start += 1
            continue
        start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return False


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Read (height, width) of a JPEG that simplejpeg may decode; None for anything else."""
    if data[:2] != b"\xff\xd8":
        return None
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if height * width > 2 * (Image.MAX_IMAGE_PIXELS or height * width):  # Pillow's own bound, at which it raises
        return None
    return height, width
