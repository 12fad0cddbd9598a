"""OpenMMLab's backbones in miniature.

Which layers their definitions make, of which names, shapes, strides, paddings and eps.

Their libraries do not install beside today's torch, so this states what was read in their repositories on 2026-11-26
(file @ commit):

    mmcv/cnn/bricks/conv_module.py          a convolution `conv`, with a bias where no norm
                                            follows; a norm `bn`; an activation
    mmdet/models/backbones/resnet.py        @ 00e9730, layers/res_layer.py @ 148b1be
    mmdet/models/backbones/mobilenet_v2.py  @ 584ef84, layers/inverted_residual.py @ 858cf17
    mmdet/models/backbones/efficientnet.py  @ 38e4cbe, layers/se_layer.py @ 24be16e
    mmseg/models/backbones/resnet.py        @ 03b0197, utils/res_layer.py @ 230246f
    mmseg/models/backbones/mobilenet_v2.py  @ 020acda, utils/inverted_residual.py @ 0c87f7a
    mmpretrain/models/backbones/efficientnet.py @ 0979e78, utils/inverted_residual.py @ 9fe593e,
                                            mmcls/models/utils/se_layer.py @ 02d7d8c

`built(library, config)` makes the network of a config's text, as their registries would. Its forward gives the last
layer's output.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

Activation = Callable[[], nn.Module] | None


def built(library: str, config: str) -> nn.Module:
    """The backbone of a text such as "dict(type='ResNet', depth=18)"."""
    options = eval(config, {"__builtins__": {}, "dict": dict})
    network: nn.Module = REGISTRY[library][options.pop("type")](**options).eval()
    return network


class AdaptivePadding(nn.Conv2d):
    """TensorFlow's "same": as much padding as the output needs, the odd pixel at the right and at the bottom."""

    def forward(self, images: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        needed = [max((math.ceil(side / stride) - 1) * stride + kernel - side, 0) for side in images.shape[-2:]]
        sides = [half for total in reversed(needed) for half in (total // 2, total - total // 2)]
        return nn.functional.conv2d(
            pad(images, sides), self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )


def conv_module(
    channels: int,
    out: int,
    kernel: int = 1,
    *,
    act: Activation,
    stride: int = 1,
    groups: int = 1,
    eps: float | None = 1e-5,
    same: bool = False,
) -> nn.Module:
    """eps None: without a norm."""
    convolution = AdaptivePadding if same else nn.Conv2d
    parts: dict[str, nn.Module] = {
        "conv": convolution(channels, out, kernel, stride, 0 if same else kernel // 2, groups=groups, bias=eps is None)
    }
    if eps is not None:
        parts["bn"] = nn.BatchNorm2d(out, eps=eps)
    if act is not None:
        parts["activate"] = act()
    return nn.Sequential(OrderedDict(parts))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.conv1 = conv_module(channels, squeezed, act=nn.SiLU, eps=None)
        self.conv2 = conv_module(squeezed, channels, act=nn.Sigmoid, eps=None)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv2(self.conv1(x.mean((2, 3), keepdim=True)))


class Residual(nn.Sequential):
    """Its layers in a row; what came in is added where it fits."""

    def __init__(self, layers: dict[str, nn.Module], *, shortcut: bool) -> None:
        super().__init__(OrderedDict(layers))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x) if self.shortcut else super().forward(x)


class BasicBlock(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(out + (self.downsample(x) if hasattr(self, "downsample") else x))


class ResNet(nn.Sequential):
    def __init__(self, *, depth: int) -> None:
        assert depth == 18
        stem = {
            "conv1": nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            "bn1": nn.BatchNorm2d(64),
            "relu": nn.ReLU(),
            "maxpool": nn.MaxPool2d(3, 2, 1),
        }
        channels, stages = 64, {}
        for i, out in enumerate((64, 128, 256, 512)):
            stages[f"layer{i + 1}"] = nn.Sequential(
                BasicBlock(channels, out, 1 if i == 0 else 2), BasicBlock(out, out, 1)
            )
            channels = out
        super().__init__(OrderedDict(stem | stages))


def mmdet_block(channels: int, out: int, stride: int, expansion: int) -> nn.Module:
    middle = channels * expansion
    layers = {
        "depthwise_conv": conv_module(middle, middle, 3, stride=stride, groups=middle, act=nn.ReLU6),
        "linear_conv": conv_module(middle, out, act=None),
    }
    if expansion != 1:
        layers = {"expand_conv": conv_module(channels, middle, act=nn.ReLU6), **layers}
    return Residual(layers, shortcut=stride == 1 and channels == out)


def mmseg_block(channels: int, out: int, stride: int, expansion: int) -> nn.Module:
    middle = channels * expansion
    layers = [conv_module(channels, middle, act=nn.ReLU6)] if expansion != 1 else []
    layers += [
        conv_module(middle, middle, 3, stride=stride, groups=middle, act=nn.ReLU6),
        conv_module(middle, out, act=None),
    ]
    return Residual({"conv": nn.Sequential(*layers)}, shortcut=stride == 1 and channels == out)


class MobileNetV2(nn.Sequential):
    """expansion, channels, blocks, stride of each layer; mmdet adds a last convolution."""

    LAYERS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, block: Callable[..., nn.Module], *, last: bool) -> None:
        layers, channels = {"conv1": conv_module(3, 32, 3, stride=2, act=nn.ReLU6)}, 32
        for i, (expansion, out, blocks, stride) in enumerate(self.LAYERS):
            row = []
            for j in range(blocks):
                row.append(block(channels, out, stride if j == 0 else 1, expansion))
                channels = out
            layers[f"layer{i + 1}"] = nn.Sequential(*row)
        if last:
            layers["conv2"] = conv_module(channels, 1280, act=nn.ReLU6)
        super().__init__(OrderedDict(layers))


class EfficientNet(nn.Module):
    """kernel, channels, stride of each block of each layer.

    All but the first expand by six; each squeezes to a quarter of what came in.
    """

    LAYERS = (
        ((3, 16, 1),),
        ((3, 24, 2), (3, 24, 1)),
        ((5, 40, 2), (5, 40, 1)),
        ((3, 80, 2), (3, 80, 1), (3, 80, 1), (5, 112, 1), (5, 112, 1), (5, 112, 1)),
        ((5, 192, 2), (5, 192, 1), (5, 192, 1), (5, 192, 1), (3, 320, 1)),
    )

    def __init__(self, *, arch: str, conv_cfg: Any = "adaptive", norm_cfg: dict[str, Any] | None = None) -> None:
        super().__init__()
        assert arch == "b0"
        made: dict[str, Any] = {"same": conv_cfg is not None, "eps": (norm_cfg or {"eps": 1e-3}).get("eps", 1e-5)}
        layers, channels = [conv_module(3, 32, 3, stride=2, act=nn.SiLU, **made)], 32
        for i, blocks in enumerate(self.LAYERS):
            row = []
            for kernel, out, stride in blocks:
                row.append(self._block(channels, out, kernel, stride, expansion=6 if i else 1, made=made))
                channels = out
            layers.append(nn.Sequential(*row))
        self.layers = nn.ModuleList([*layers, conv_module(channels, 1280, act=nn.SiLU, **made)])

    @staticmethod
    def _block(channels: int, out: int, kernel: int, stride: int, *, expansion: int, made: dict[str, Any]) -> nn.Module:
        middle = channels * expansion
        layers = {
            "depthwise_conv": conv_module(middle, middle, kernel, stride=stride, groups=middle, act=nn.SiLU, **made),
            "se": SqueezeExcite(middle, channels // 4),
            "linear_conv": conv_module(middle, out, act=None, **made),
        }
        if middle != channels:
            layers = {"expand_conv": conv_module(channels, middle, act=nn.SiLU, **made), **layers}
        return Residual(layers, shortcut=stride == 1 and channels == out)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


REGISTRY: dict[str, dict[str, Callable[..., nn.Module]]] = {
    "mmdet": {
        "ResNet": ResNet,
        "MobileNetV2": lambda: MobileNetV2(mmdet_block, last=True),
        "EfficientNet": EfficientNet,
    },
    "mmseg": {
        "ResNet": ResNet,
        "MobileNetV2": lambda: MobileNetV2(mmseg_block, last=False),
        "mmpretrain.EfficientNet": EfficientNet,
    },
}
