"""Turn pixels into a model's input: its size, its mean and std. Student and teacher may differ in all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional


class Preprocess(nn.Module):
    """Resize (antialiased) and normalise: uint8 [B, 3, H, W] in 0..255, or float in 0..1 -> float [B, 3, size, size].

    The buffers `mean` and `std` are in no state_dict: they belong to the model's configuration.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, *, size: int, mean: Sequence[float], std: Sequence[float], interpolation: str = "bicubic"
    ) -> None:
        super().__init__()
        self.size, self.interpolation = size, interpolation
        for name, values in (("mean", mean), ("std", std)):  # float32, also for the integers of [0, 0, 0]
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (self.size, self.size):
            mode = functional.InterpolationMode(self.interpolation)
            images = functional.resize(images, [self.size, self.size], interpolation=mode, antialias=True)
        scale = 1 / 255 if images.dtype == torch.uint8 else 1.0
        return images.to(self.mean.dtype).mul(scale).sub(self.mean).div(self.std)

    def extra_repr(self) -> str:
        return f"size={self.size}, interpolation={self.interpolation}"
