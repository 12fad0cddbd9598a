"""Row `loader`: one worker process on one core, beside other loaders of the same shards and the bare decoder."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import simplejpeg
import timm.data
import torch
import webdataset
from PIL import Image, ImageFilter
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import Dataset
from torchvision import transforms

from lgd_timm.data import Views
from lgd_timm.data.dataset import ShardDataset
from lgd_timm.data.index import ShardSet
from lgd_timm.data.loader import loader
from lgd_timm.data.samplers import EpochSampler, Item
from lgd_timm.data.tar import IndexedTar
from lgd_timm.data.views import AUGMENTATIONS, Augmentation

from ..settings import Settings, cores
from .feed import Feed, pinned
from .pairs import Goal, Row, Side, measure, seconds
from .photographs import LARGE, photographs
from .steps import ENDLESS

CALLS = {False: 8, True: 2}  # batches in a turn, by `quick`
MOCO = AUGMENTATIONS["mocov2"]
# The geometric part of MoCo v2 alone, which no recipe asks for. Workers are forked, so they know it too.
AUGMENTATIONS["mocov2_geometry"] = Augmentation(scale=MOCO.scale, flip=MOCO.flip)


def rows(settings: Settings) -> Iterator[Row]:
    size, batch = settings.size, settings.batch_size
    small, large = photographs(settings.photographs), photographs(settings.photographs // 4, sizes=LARGE)
    full, geometry = ("MoCo v2's augmentation", "mocov2"), ("crop and flip", "mocov2_geometry")
    comparisons: Sequence[tuple[tuple[str, str], ShardSet, str, Callable[..., Iterable[Any]], Goal | None]] = (
        (full, small, "webdataset + PIL + torchvision", torchvision_loader, Goal(2, least=True)),
        (full, small, "timm's wds/ loader", timm_loader, None),
        (geometry, small, "simplejpeg alone", decoder, Goal(0.8, least=True)),
        (("crop and flip, 2 megapixels", "mocov2_geometry"), large, "simplejpeg alone", decoder, Goal(0.8, least=True)),
    )
    for (what, augmentation), shards, name, theirs, goal in comparisons:
        starts = (
            partial(ours, shards, size=size, batch_size=batch, augmentation=augmentation),
            partial(theirs, shards, size=size, batch_size=batch),
        )
        with ExitStack() as stack:
            worker, rest = _cores()
            with pinned(worker):  # the workers, and their threads, inherit it
                feeds = [stack.enter_context(Feed(start)) for start in starts]
            stack.enter_context(pinned(rest))
            a, b = (Side(side, _rate(each, settings)) for side, each in zip(("ours", name), feeds, strict=True))
            yield measure(
                f"loader: {what}, {size} px, 1 core", a, b, unit="images/s", rounds=settings.rounds, goal=goal
            )


def ours(shards: ShardSet, *, size: int, batch_size: int, augmentation: str) -> Iterable[Any]:
    dataset = ShardDataset(shards, views=Views(size=size, augmentation=augmentation))
    return loader(dataset, EpochSampler(shards.lengths, batch_size=batch_size, stop=ENDLESS), workers=1)


def _rate(batches: Feed, settings: Settings) -> Callable[[], float]:
    """Images a second. Whoever takes batches waits for the worker, so no more than a part of a batch lies ready when a
    turn begins.
    """

    def turn() -> float:
        with batches.turn() as stream:
            return settings.batch_size / seconds(lambda: next(stream), calls=CALLS[settings.quick])

    return turn


def _cores() -> tuple[int | None, int | None]:
    """One for the worker and one for this process, where there are two."""
    if cores() < 2 or not hasattr(os, "sched_getaffinity"):
        return None, None
    first, second, *_ = sorted(os.sched_getaffinity(0))
    return second, first


class Decoder(Dataset):
    """Nothing but simplejpeg, on bytes in memory: as fast as a loader of these files could ever be."""

    stored = None  # which our loader asks for

    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards
        tars = [IndexedTar(shards.path(shard)) for shard in range(len(shards.filenames))]
        self.files = [tar.read(key, "jpg") for tar in tars for key in tar.keys]

    def __getitems__(self, items: Sequence[Item]) -> int:
        return sum(len(simplejpeg.decode_jpeg(self.files[position])) for position, _ in items)


def decoder(shards: ShardSet, *, size: int, batch_size: int) -> Iterable[Any]:
    return loader(Decoder(shards), EpochSampler(shards.lengths, batch_size=batch_size, stop=ENDLESS), workers=1)


def torchvision_loader(shards: ShardSet, *, size: int, batch_size: int) -> Iterable[Any]:
    """The way of webdataset's documentation, with MoCo v2's own transforms."""
    assert MOCO.scale is not None
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=MOCO.scale, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomApply([transforms.ColorJitter(*MOCO.jitter)], p=MOCO.jitter_probability),
            transforms.RandomGrayscale(p=MOCO.grey),
            transforms.RandomApply([_blur], p=MOCO.blur),
            transforms.RandomHorizontalFlip(MOCO.flip),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
        ]
    )
    urls = [str(shards.path(shard)) for shard in range(len(shards.filenames))]
    dataset = webdataset.WebDataset(urls, resampled=True, shardshuffle=False).shuffle(1000, initial=len(shards) // 2)
    dataset = dataset.decode("pil").to_tuple("jpg", "cls").map_tuple(augment).batched(batch_size)
    return webdataset.WebLoader(dataset, batch_size=None, num_workers=1, prefetch_factor=4)


def _blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(*MOCO.sigma)))


def timm_loader(shards: ShardSet, *, size: int, batch_size: int) -> Iterable[Any]:
    """timm's nearest: its blur is torchvision's, of 23 pixels, and this process normalises."""
    # One epoch that never ends: between epochs the worker would stand still.
    dataset = timm.data.create_dataset(
        "wds/photographs",
        root=str(shards.root),
        split=shards.split,
        is_training=True,
        batch_size=batch_size,
        num_samples=10**6 * batch_size,
        sample_initial_size=len(shards) // 2,
    )
    return timm.data.create_loader(
        dataset,
        input_size=(3, size, size),
        batch_size=batch_size,
        is_training=True,
        scale=MOCO.scale,
        hflip=MOCO.flip,
        color_jitter=MOCO.jitter,  # type: ignore[arg-type]  # as its transforms take it
        color_jitter_prob=MOCO.jitter_probability,
        grayscale_prob=MOCO.grey,
        gaussian_blur_prob=MOCO.blur,
        interpolation="bicubic",
        num_workers=1,
        device=torch.device("cpu"),
    )
