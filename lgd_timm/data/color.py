"""Apply colour jitter, greyscale and blur to a batch, each image with its own parameters, on any device.

The operations are those of torchvision's ColorJitter, rgb_to_grayscale and gaussian_blur on float images, rounded to
uint8 once, at the end. On another device, in another batch, with or without OpenCV the result for an image differs by
at most 1/255. On a CPU OpenCV does them, where it is installed: it takes a third of the time that torch does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import MissingExtra, require

LUMA = (0.2989, 0.587, 0.114)
GREY, IDENTITY = np.array([LUMA], np.float32), np.eye(3, dtype=np.float32)


@dataclass(frozen=True)
class ColorOps:
    """Colour operations on one image, applied in this order: jitter, greyscale, blur."""

    jitter: tuple[tuple[int, float], ...] = ()  # (index into JITTERS, amount), in the order of application
    grey: bool = False
    sigma: float = 0.0  # pixels; 0: no blur

    def __bool__(self) -> bool:
        return bool(self.jitter or self.grey or self.sigma > 0)


@torch.no_grad()
def apply_color(images: Tensor, color_ops: Sequence[ColorOps]) -> Tensor:
    """Apply each image's colour operations.

    Args:
        images: uint8 [B, 3, H, W].
        color_ops: one entry for each image.

    Returns:
        uint8 [B, 3, H, W]. Images whose entry is empty are returned bit for bit.
    """
    touched = [i for i, ops in enumerate(color_ops) if ops]
    if not touched:
        return images
    if images.device.type == "cpu" and (cv2 := opencv()) is not None:
        return _apply_by_opencv(cv2, images, color_ops)
    if len(touched) == len(images):
        return _apply_all(images, color_ops)
    index = _index(touched, images.device)
    return images.index_copy(0, index, _apply_all(images[index], [color_ops[i] for i in touched]))


def _apply_all(images: Tensor, color_ops: Sequence[ColorOps]) -> Tensor:
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format)
    for step in range(max(len(ops.jitter) for ops in color_ops)):
        for kind, function in enumerate(JITTERS):
            chosen = [i for i, ops in enumerate(color_ops) if step < len(ops.jitter) and ops.jitter[step][0] == kind]
            pixels = _apply_to(pixels, chosen, function, [color_ops[i].jitter[step][1] for i in chosen])
    grey = [i for i, ops in enumerate(color_ops) if ops.grey]
    pixels = _apply_to(pixels, grey, lambda part, _: _grey(part).expand_as(part))
    blurred = [i for i, ops in enumerate(color_ops) if ops.sigma > 0]
    pixels = _apply_to(pixels, blurred, _blur, [color_ops[i].sigma for i in blurred])
    return pixels.round().to(torch.int32).to(torch.uint8)  # straight to uint8 takes a CPU three times as long


def _apply_to(
    pixels: Tensor, chosen: Sequence[int], function: Callable[[Tensor, Tensor], Tensor], amounts: Sequence[float] = ()
) -> Tensor:
    """Replace the chosen images by `function(images, amounts)`; `amounts` becomes float32 [N] on the host."""
    if len(chosen) == len(pixels):
        return function(pixels, torch.tensor(amounts))
    if not chosen:
        return pixels
    index = _index(chosen, pixels.device)
    return pixels.index_copy_(0, index, function(pixels[index], torch.tensor(amounts)))


def _like(pixels: Tensor, values: Tensor) -> Tensor:
    """Bring [N] from the host to [N, 1, 1, 1] on the pixels' device."""
    return values.to(pixels.device, non_blocking=True).view(-1, 1, 1, 1)


def _index(chosen: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(chosen).to(device, non_blocking=True)


def _grey(pixels: Tensor) -> Tensor:
    """Compute the luma [B, 1, H, W] of [B, 3, H, W]."""
    red, green, blue = pixels.unbind(1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])[:, None]


def _brightness(pixels: Tensor, factor: Tensor) -> Tensor:
    return (pixels * _like(pixels, factor)).clamp_(0, 255)


def _contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    factor = _like(pixels, factor)
    mean = _grey(pixels.mean((2, 3), keepdim=True))  # the mean of luma is the luma of means
    return (pixels * factor).add_((1 - factor) * mean).clamp_(0, 255)


def _saturation(pixels: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_grey(pixels), pixels, _like(pixels, factor)).clamp_(0, 255)


def _hue(pixels: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue by a fraction of a full circle, -0.5 to 0.5; value and saturation (HSV) stay.

    Written without a case for each sector of the circle, which is slow: with channels scaled to 0..1 by minimum and
    chroma, the hue lies 1 + green + blue - red sixths of a circle from red, on green's side if green is above blue.
    """
    red, green, blue = pixels.unbind(1)
    least, value = torch.minimum(red, green).clamp_max_(blue), torch.maximum(red, green).clamp_min_(blue)
    chroma = value - least
    hue = (green + blue).sub_(red).sub_(least).div_(chroma.clamp_min(1e-6)).add_(1).copysign_(green - blue)
    hue.add_(6 * _like(pixels, turn)[:, 0])
    result = torch.empty_like(pixels)
    for channel, own in enumerate((0.0, 2.0, -2.0)):  # the further the hue is from a channel's own, the less chroma
        away = (hue - own).abs_()
        away = torch.minimum(away, (6.0 - away).abs_(), out=away).sub_(1).clamp_(0, 1)
        torch.sub(value, away.mul_(chroma), out=result[:, channel])
    return result


def _blur(pixels: Tensor, sigmas: Tensor) -> Tensor:
    """Blur each image by its own sigma: a separable Gaussian, cut at three sigmas and mirrored at the edges."""
    radius = min(math.ceil(3 * float(sigmas.max())), *(side - 1 for side in pixels.shape[2:]))
    offset, sigma = torch.arange(radius + 1), sigmas[:, None]
    weights = torch.exp(-0.5 * (offset / sigma) ** 2) * (offset <= torch.ceil(3 * sigma))
    weights = weights / (2 * weights.sum(1, keepdim=True) - weights[:, :1])
    weights = weights.to(pixels.device, non_blocking=True)[:, :, None, None, None]  # [B, radius + 1, 1, 1, 1]
    for axis in (2, 3):
        size, padding = pixels.shape[axis], [radius, radius, 0, 0] if axis == 3 else [0, 0, radius, radius]
        wide = pad(pixels, padding, mode="reflect")
        pixels = wide.narrow(axis, radius, size) * weights[:, 0]
        pair = torch.empty_like(pixels)
        for i in range(1, radius + 1):
            torch.add(wide.narrow(axis, radius - i, size), wide.narrow(axis, radius + i, size), out=pair)
            pixels.addcmul_(pair, weights[:, i])
    return pixels


# Index i in `ColorOps.jitter` means the i-th of these.
JITTERS = (_brightness, _contrast, _saturation, _hue)


@cache
def opencv() -> Any | None:
    """Import OpenCV, to be called before worker processes are forked; None where it is not installed."""
    try:
        cv2 = require("cv2", extra="opencv")
    except MissingExtra:
        return None
    cv2.setNumThreads(0)  # its threads do not survive a fork, and the loader's workers are the parallelism
    return cv2


def planar(image: Tensor) -> Tensor:
    """Lay uint8 [3, H, W] out channel by channel, as batches have it."""
    if image.is_contiguous() or image.device.type != "cpu" or (cv2 := opencv()) is None:
        return image.contiguous()
    return _split(cv2, _interleaved(cv2, image))  # a tenth of the time of torch's copy


def _split(cv2: Any, pixels: np.ndarray) -> Tensor:
    planes = np.empty((pixels.shape[2], *pixels.shape[:2]), pixels.dtype)
    cv2.split(pixels, list(planes))
    return torch.from_numpy(planes)


def _interleaved(cv2: Any, image: Tensor) -> np.ndarray:
    """Lay uint8 [3, H, W] out pixel by pixel: [H, W, 3], C-contiguous."""
    if image.is_contiguous():
        return cv2.merge(list(image.numpy()))
    return image.permute(1, 2, 0).contiguous().numpy()


def _apply_by_opencv(cv2: Any, images: Tensor, color_ops: Sequence[ColorOps]) -> Tensor:
    rows = [_change(cv2, image, ops) if ops else image for image, ops in zip(images, color_ops, strict=True)]
    return rows[0][None] if len(rows) == 1 else torch.stack(rows)


def _change(cv2: Any, image: Tensor, ops: ColorOps) -> Tensor:
    """Apply one image's operations: uint8 [3, H, W], float32 [H, W, 3] in between."""
    pixels = torch.from_numpy(_interleaved(cv2, image)).float().numpy()  # NumPy's cast takes longer
    for kind, amount in ops.jitter:
        pixels = OPENCV_JITTERS[kind](cv2, pixels, amount)
    if ops.grey:
        pixels = cv2.transform(pixels, GREY)  # [H, W]
    if ops.sigma > 0:
        radius = min(math.ceil(3 * ops.sigma), *(side - 1 for side in pixels.shape[:2]))
        pixels = cv2.GaussianBlur(pixels, (2 * radius + 1,) * 2, ops.sigma, borderType=cv2.BORDER_REFLECT_101)
    result = cv2.convertScaleAbs(pixels)  # rounds; nothing is below zero
    return torch.from_numpy(result).repeat(3, 1, 1) if ops.grey else _split(cv2, result)


def _clip(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Clip what a factor above 1 has spread beyond 0..255; what a smaller one has done lies within."""
    if factor > 1:
        torch.from_numpy(pixels).clamp_(0, 255)  # takes half the time of NumPy's
    return pixels


def _opencv_brightness(_: Any, pixels: np.ndarray, factor: float) -> np.ndarray:
    return _clip(np.multiply(pixels, np.float32(factor), out=pixels), factor)


def _opencv_contrast(cv2: Any, pixels: np.ndarray, factor: float) -> np.ndarray:
    mean = sum(weight * value for weight, value in zip(LUMA, cv2.mean(pixels), strict=False))
    return _clip(cv2.addWeighted(pixels, factor, pixels, 0, (1 - factor) * mean, dst=pixels), factor)


def _opencv_saturation(cv2: Any, pixels: np.ndarray, factor: float) -> np.ndarray:
    matrix = np.float32(factor) * IDENTITY + np.float32(1 - factor) * GREY
    return _clip(cv2.transform(pixels, matrix), factor)


def _opencv_hue(cv2: Any, pixels: np.ndarray, turn: float) -> np.ndarray:
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
    hsv[..., 0] += np.float32(360 * turn % 360)  # degrees
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, dst=pixels)


# As JITTERS, for float32 [H, W, 3], which they may overwrite.
OPENCV_JITTERS = (_opencv_brightness, _opencv_contrast, _opencv_saturation, _opencv_hue)
