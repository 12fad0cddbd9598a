"""Features that no model gave: clouds about class centres, for the evaluations that take features as they come."""

from __future__ import annotations

import torch

from lgd_timm.evaluate import Features


def clouds(
    count: int, *, classes: int = 4, size: int = 16, noise: float = 1.0, seed: int = 0, name: str = "train"
) -> Features:
    """`count` rows about `classes` centres, which are the same for any seed."""
    draw = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(classes, size, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % classes
    rows = centres[labels] + 2 * noise * torch.randn(count, size, generator=draw)
    return Features(rows, labels, tuple(f"{name}{i:04d}" for i in range(count)), name=name)
