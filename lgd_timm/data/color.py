"""Colour jitter, greyscale and blur of a batch, each image with parameters of its own, on any device.

The operations are those of torchvision's ColorJitter, rgb_to_grayscale and gaussian_blur on float images (tests), rounded
to uint8 once, at the end. On another device or in another batch the same image comes out equal to 1/255.
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
    """What happens to one image, in this order: jitter, greyscale, blur."""

    jitter: tuple[tuple[int, float], ...] = ()  # (index into JITTERS, amount), in the order of application
    grey: bool = False
    sigma: float = 0.0  # pixels; 0: no blur

    def __bool__(self) -> bool:
        return bool(self.jitter or self.grey or self.sigma > 0)


@torch.no_grad()
def apply_color(images: Tensor, colours: Sequence[ColorOps]) -> Tensor:
    """uint8 [B, 3, H, W] and what happens to each -> uint8 [B, 3, H, W]. Images to which nothing happens keep their bits."""
    touched = [i for i, colour in enumerate(colours) if colour]
    if not touched:
        return images
    if len(touched) == len(images):
        return _recolour(images, colours)
    index = _index(touched, images.device)
    return images.index_copy(0, index, _recolour(images[index], [colours[i] for i in touched]))


def _recolour(images: Tensor, colours: Sequence[ColorOps]) -> Tensor:
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format)
    for step in range(max(len(colour.jitter) for colour in colours)):
        for kind, function in enumerate(JITTERS):
            chosen = [
                i for i, colour in enumerate(colours) if step < len(colour.jitter) and colour.jitter[step][0] == kind
            ]
            pixels = _changed(pixels, chosen, function, [colours[i].jitter[step][1] for i in chosen])
    pixels = _changed(
        pixels, [i for i, colour in enumerate(colours) if colour.grey], lambda part, _: _grey(part).expand_as(part)
    )
    blurred = [i for i, colour in enumerate(colours) if colour.sigma > 0]
    pixels = _changed(pixels, blurred, _blur, [colours[i].sigma for i in blurred])
    return pixels.round().to(torch.int32).to(torch.uint8)  # at once takes a CPU three times as long


def _changed(
    pixels: Tensor, chosen: Sequence[int], function: Callable[[Tensor, Tensor], Tensor], amounts: Sequence[float] = ()
) -> Tensor:
    """The images, with the function of the chosen ones and of their amounts, float32 [N] on the host, in their places."""
    if len(chosen) == len(pixels):
        return function(pixels, torch.tensor(amounts))
    if not chosen:
        return pixels
    index = _index(chosen, pixels.device)
    return pixels.index_copy_(0, index, function(pixels[index], torch.tensor(amounts)))


def _like(pixels: Tensor, values: Tensor) -> Tensor:
    """[N] on the host -> [N, 1, 1, 1] on the pixels' device."""
    return values.to(pixels.device, non_blocking=True).view(-1, 1, 1, 1)


def _index(chosen: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(chosen).to(device, non_blocking=True)


def _grey(pixels: Tensor) -> Tensor:
    """[B, 3, H, W] -> luma [B, 1, H, W]."""
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
    """Turn the hue by a share of a full circle, -0.5 to 0.5; value and saturation of HSV stay.

    Written without choices between sectors, which are slow: with channels scaled to 0..1 by minimum and chroma, the hue lies
    1 + green + blue - red sixths of a circle from red, on green's side if that is above blue.
    """
    red, green, blue = pixels.unbind(1)
    least, value = torch.minimum(red, green).clamp_max_(blue), torch.maximum(red, green).clamp_min_(blue)
    chroma = value - least
    hue = (green + blue).sub_(red).sub_(least).div_(chroma.clamp_min(1e-6)).add_(1).copysign_(green - blue)
    hue.add_(6 * _like(pixels, turn)[:, 0])
    result = torch.empty_like(pixels)
    for channel, own in enumerate((0.0, 2.0, -2.0)):  # a channel loses chroma with the distance of the hue from its own
        away = (hue - own).abs_()
        away = torch.minimum(away, (6.0 - away).abs_(), out=away).sub_(1).clamp_(0, 1)
        torch.sub(value, away.mul_(chroma), out=result[:, channel])
    return result


def _blur(pixels: Tensor, sigmas: Tensor) -> Tensor:
    """Gaussian blur of each image by its own sigma, cut at three sigmas and mirrored at the edges: one pass a direction."""
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


# Index i of `Colours.jitter` is the i-th of these.
JITTERS = (_brightness, _contrast, _saturation, _hue)
