"""Row `small-convs`: convolutions over maps smaller than their kernel, as small images end in, over torch's own."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator

import timm
import torch
from torch import nn

from lgd_timm.students.entrypoints import stock_name
from lgd_timm.students.small_conv import speed_up_small_convs

from ..settings import Settings, cores
from .pairs import Row, Side, measure

BATCH, STEPS = 128, 2
LAYERS = (
    (960, 3, 2),
    (1152, 5, 2),
)  # channels, kernel, map: the last depthwise layers of MobileNetV2 and EfficientNet-B0 at 48 px


def rows(settings: Settings) -> Iterator[Row]:
    for channels, kernel, size in LAYERS:
        layer = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
        yield _pair(
            f"small-convs: depthwise layer, {channels} x {size} x {size}, kernel {kernel}",
            layer,
            (channels, size, size),
            settings,
        )
    for student in settings.students:
        for size in (32, 48):
            yield _pair(
                f"small-convs: step of {stock_name(student)}, {size} px",
                timm.create_model(stock_name(student)),
                (3, size, size),
                settings,
            )


def _pair(name: str, model: nn.Module, shape: tuple[int, ...], settings: Settings) -> Row:
    batch = 8 if settings.quick else BATCH
    images = torch.randn(batch, *shape).contiguous(memory_format=torch.channels_last)
    plain = model.to(memory_format=torch.channels_last).train()
    sides = [
        Side(what, _timed(side, images))
        for what, side in (("short way", speed_up_small_convs(copy.deepcopy(plain))), ("torch's", plain))
    ]
    return measure(f"{name}, B={batch}, {cores()} cores", *sides, unit="ms an image", rounds=settings.rounds)


def _timed(model: nn.Module, images: torch.Tensor) -> Callable[[], float]:
    def measured() -> float:
        start = time.perf_counter()
        for _ in range(STEPS):
            inputs = images.clone().requires_grad_()
            model(inputs).square().mean().backward()
            model.zero_grad(set_to_none=True)
        return 1e3 * (time.perf_counter() - start) / (STEPS * len(images))

    return measured
