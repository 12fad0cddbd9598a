"""Compute convolutions over maps smaller than their kernel as matrix products, which is faster on a CPU.

A student of 32 or 48 px ends in maps of 1 x 1 or 2 x 2, and a kernel of 3 x 3 or 5 x 5 covers all of them. torch's CPU
convolutions are slowest there: the backward pass of one depthwise layer of 960 x 2 x 2 takes 18 times as long as the
product below (`python -m benchmarks --only small-convs`). So where a kernel is larger than its map:

    depthwise      for each channel a matrix [output pixels, input pixels]: one product and one sum
    dense          where there is one output pixel, a linear layer of the weights that see an input pixel

The numbers are the same up to rounding, and so are weights and state_dict.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

log = logging.getLogger(__name__)


def speed_up_small_convs(model: nn.Module) -> nn.Module:
    """Replace the model's convolutions over maps smaller than their kernel by matrix products.

    Only plain `nn.Conv2d` are changed: of stock class, dilation 1, zero padding, depthwise or dense. A changed layer
    becomes a subclass of `nn.Conv2d` that looks at each map's size, and computes as before where the map is large.
    One line of the log says how many layers were changed.

    Args:
        model: changed in place; parameters and the keys of the state dict stay the same.

    Returns:
        The same model.
    """
    convs = [(module, kind) for module in model.modules() if (kind := _fast_class(module)) is not None]
    for conv, kind in convs:
        conv.__class__ = kind  # the class and not the object: optimizers, hooks and copies hold on to the object
    log.info("small convolutions: %d layers use matrix products where the map is smaller than the kernel", len(convs))
    return model


def _fast_class(module: nn.Module) -> type[nn.Conv2d] | None:
    """The subclass that a layer may become; None where there is none."""
    if type(module) is not nn.Conv2d or module.dilation != (1, 1) or module.padding_mode != "zeros":
        return None
    if isinstance(module.padding, str):
        return None
    if module.groups == module.in_channels == module.out_channels > 1:
        return _Depthwise
    return _Dense if module.groups == 1 and module.kernel_size != (1, 1) else None


class _Dense(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        if not _is_small(self, input):
            return super().forward(input)
        height, width = input.shape[2:]
        rows, columns = _taps(self, 0, height), _taps(self, 1, width)
        if len(rows) > 1 or len(columns) > 1 or -1 in rows[0] + columns[0]:  # -1: a pixel that no weight sees
            return super().forward(input)
        weight = self.weight[:, :, rows[0]][..., columns[0]]
        return linear(input.flatten(1), weight.flatten(1), self.bias)[..., None, None]


class _Depthwise(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        if not _is_small(self, input):
            return super().forward(input)
        height, width = input.shape[2:]
        rows, columns = _taps(self, 0, height), _taps(self, 1, width)
        taps = torch.tensor(
            [
                [y * self.kernel_size[1] + x if min(y, x) >= 0 else -1 for y in row for x in column]
                for row in rows
                for column in columns
            ]
        )
        # [output pixels, input pixels, C]: the weight that joins the two, or 0
        matrix = torch.where((taps >= 0)[..., None], self.weight.flatten(1).T[taps.clamp_min(0)], 0.0)
        pixels = input.permute(0, 2, 3, 1).flatten(1, 2)  # [B, input pixels, C], which channels-last memory is already
        output = (pixels[:, None] * matrix).sum(2)
        if self.bias is not None:
            output = output + self.bias
        return output.unflatten(1, (len(rows), len(columns))).permute(0, 3, 1, 2)


def _is_small(conv: nn.Conv2d, input: Tensor) -> bool:
    return input.shape[2] < conv.kernel_size[0] and input.shape[3] < conv.kernel_size[1]


def _taps(conv: nn.Conv2d, axis: int, size: int) -> list[list[int]]:
    """Along an axis, for each output and input pixel: the index of the weight that joins them, -1 where none does."""
    kernel, stride, padding = (int(value[axis]) for value in (conv.kernel_size, conv.stride, conv.padding))
    count = (size + 2 * padding - kernel) // stride + 1
    taps = [[pixel - out * stride + padding for pixel in range(size)] for out in range(count)]
    return [[tap if 0 <= tap < kernel else -1 for tap in row] for row in taps]
