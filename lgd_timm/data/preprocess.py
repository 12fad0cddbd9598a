"""Pixels to a model's own input: its size and its statistics. The same picture can feed two models that differ in both."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional


class Preprocess(nn.Module):
    """uint8 [B, 3, H, W] in 0..255, or float in 0..1 -> float [B, 3, size, size], resized (antialiased) and normalised.

    Its buffers are not saved: they are facts of the model, not weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, *, size: int, mean: Sequence[float], std: Sequence[float], interpolation: str = "bicubic"
    ) -> None:
        super().__init__()
        self.size, self.interpolation = size, interpolation
        for name, values in (("mean", mean), ("std", std)):  # float32 even for integers, as which YAML reads [0, 0, 0]
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (self.size, self.size):
            mode = functional.InterpolationMode(self.interpolation)
            images = functional.resize(images, [self.size, self.size], interpolation=mode, antialias=True)
        scale = 1 / 255 if images.dtype == torch.uint8 else 1.0
        return images.to(self.mean.dtype).mul(scale).sub(self.mean).div(self.std)

    def extra_repr(self) -> str:
        return f"size={self.size}, interpolation={self.interpolation}"
