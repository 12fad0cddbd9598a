"""Apply colour jitter, greyscale and blur to a batch, each image with its own parameters, on any device.

The operations are those of torchvision's ColorJitter, rgb_to_grayscale and gaussian_blur on float images, rounded to
uint8 once, at the end. On another device or in another batch the result for an image differs by at most 1/255.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

LUMA = (0.2989, 0.587, 0.114)


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
