"""Row `views`: one full view on one core, with OpenCV over without; and the decoders that skip what a crop leaves out.

CPU seconds of this process, so that neighbours count for little.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import count
from unittest import mock

import numpy as np
import simplejpeg
import torch

from lgd_timm.data import Views, color
from lgd_timm.data.decode import Box, EncodedImage
from lgd_timm.data.index import ShardSet
from lgd_timm.data.resize import Resize, resize_image
from lgd_timm.data.tar import IndexedTar

from ..settings import Settings
from .pairs import Goal, Row, Side, measure
from .photographs import photographs


def rows(settings: Settings) -> Iterator[Row]:
    shards = photographs(settings.photographs)
    files, threads = jpegs(shards), torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    try:
        yield _view(settings, files)
        yield _colors(settings, files)
        yield _resized(settings, files)
        if find_spec("nvidia") and find_spec("nvidia.nvimgcodec"):
            yield _regions(settings, files)
    finally:
        torch.set_num_threads(threads)


def jpegs(shards: ShardSet) -> list[bytes]:
    tars = [IndexedTar(shards.path(shard)) for shard in range(len(shards.filenames))]
    return [tar.read(key, "jpg") for tar in tars for key in tar.keys]


def _view(settings: Settings, files: Sequence[bytes]) -> Row:
    """Decode, crop, resize, flip and colours."""
    views = Views(size=settings.size)

    def render(index: int, file: bytes) -> object:
        return views.render(EncodedImage(file), str(index), 0)

    what = f"views: MoCo v2's augmentation, {settings.size} px, from JPEG"
    return _with_and_without(what, render, files, rounds=settings.rounds, goal=Goal(1.5, least=True))


def _colors(settings: Settings, files: Sequence[bytes]) -> Row:
    views = Views(size=settings.size)
    drawn = []
    for index, file in enumerate(files):
        image = EncodedImage(file)
        view = views.draw(str(index), 0, height=image.height, width=image.width)
        drawn.append((views.crop_and_resize(image, view), view.color_ops))

    def change(_: int, item: tuple[torch.Tensor, color.ColorOps]) -> object:
        return color.planar(color.apply_color(item[0][None], [item[1]])[0])

    what = f"views: MoCo v2's colours alone, {settings.size} px"
    return _with_and_without(what, change, drawn, rounds=settings.rounds)


def _resized(settings: Settings, files: Sequence[bytes]) -> Row:
    """Decode, crop, resize and flip: what is left for a worker where colours are changed on a device."""
    views = Views(size=settings.size)
    small = [resize_image(file, Resize(short_side=288, quality=92)) for file in files]

    def geometry(index: int, file: bytes) -> object:
        image = EncodedImage(file)
        view = views.draw(str(index), 0, height=image.height, width=image.width)
        return color.planar(views.crop_and_resize(image, view))

    return measure(
        f"views: crop, resize and flip, {settings.size} px, from JPEG",
        Side("short side 288", lambda: rate(geometry, small)),
        Side("photographs", lambda: rate(geometry, files)),
        unit="a CPU second",
        rounds=settings.rounds,
    )


def _with_and_without(
    what: str, function: Callable[..., object], items: Sequence, *, rounds: int, goal: Goal | None = None
) -> Row:
    def without() -> float:
        with mock.patch.object(color, "opencv", return_value=None):
            return rate(function, items)

    a, b = Side("with OpenCV", lambda: rate(function, items)), Side("without", without)
    return measure(what, a, b, unit="a CPU second", rounds=rounds, goal=goal)


def rate(function: Callable[..., object], items: Sequence) -> float:
    """Calls `function(index, item)` with each; how many a second of this process's CPU time."""
    start = time.process_time()
    for index, item in zip(count(), items, strict=False):
        function(index, item)
    return len(items) / (time.process_time() - start)


def _regions(settings: Settings, files: Sequence[bytes]) -> Row:
    """nvImageCodec's CPU back end, which decodes the crop's rows and columns, over simplejpeg, which decodes all."""
    nv = import_module("nvidia.nvimgcodec")
    backends = [nv.Backend(nv.BackendKind.CPU_ONLY)]
    decoder = nv.Decoder(device_id=nv.NVIMGCODEC_DEVICE_CPU_ONLY, max_num_cpu_threads=1, backends=backends)
    options, views = nv.DecodeParams(apply_exif_orientation=False), Views(size=settings.size)
    jobs: list[tuple[bytes, Box]] = []
    for index, file in enumerate(files):
        image = EncodedImage(file)
        jobs.append((file, views.draw(str(index), 0, height=image.height, width=image.width).box))

    def region(_: int, job: tuple[bytes, Box]) -> np.ndarray:
        file, (top, left, height, width) = job
        part = nv.CodeStream(file).get_sub_code_stream(region=nv.Region(top, left, top + height, left + width))
        return np.asarray(decoder.decode(part, params=options).cpu())

    def whole(_: int, job: tuple[bytes, Box]) -> np.ndarray:
        file, (top, left, height, width) = job
        return simplejpeg.decode_jpeg(file)[top : top + height, left : left + width]

    assert all(np.array_equal(region(0, job), whole(0, job)) for job in jobs[:32])
    return measure(
        "views: the crops of MoCo v2 decoded in full size",
        Side("nvImageCodec, regions", lambda: rate(region, jobs)),
        Side("simplejpeg, whole", lambda: rate(whole, jobs)),
        unit="a CPU second",
        rounds=settings.rounds,
    )
