"""Sources whose tensors all differ, so that two which changed places are noticed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import timm
import torch
from torch import Tensor, nn

from lgd_timm.export.loading import ExportModel

NAMES = tuple(f"name {i}" for i in range(7))


def shaken(architecture: str, *, classes: int = len(NAMES), size: int = 64, **options: Any) -> ExportModel:
    """A stock model whose norms have other weights and statistics than at their start, each its own."""
    torch.manual_seed(0)
    model: Any = timm.create_model(architecture, num_classes=classes, **options)
    for count, module in enumerate(module for module in model.modules() if hasattr(module, "running_var")):
        for tensor, low, high in (
            (module.weight.data, 0.5, 1.5),
            (module.bias.data, -0.5, 0.5),
            (module.running_mean, -0.2, 0.2),
            (module.running_var, 0.5, 1.5),
        ):
            tensor.uniform_(low, high)
        module.num_batches_tracked.fill_(count)
    return ExportModel(
        name=architecture,
        architecture=architecture,
        network=model.eval(),
        label_names=NAMES[:classes],
        size=size,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        interpolation="bicubic",
        crop_pct=0.875,
    )


def images(size: int = 64) -> Tensor:
    """Normalised input [2, 3, size, size]."""
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


class Small(nn.Module):
    """One layer and a classifier: what torch's exporter is done with in a second."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.relu = nn.Conv2d(3, 16, 3, stride=4), nn.ReLU(inplace=True)
        self.reset_classifier(classes)

    def reset_classifier(self, classes: int) -> None:
        self.num_classes, self.fc = classes, nn.Linear(16, classes) if classes else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        answers: Tensor = self.fc(self.relu(self.layer(images)).mean((2, 3)))
        return answers


def small(*, classes: int = len(NAMES)) -> ExportModel:
    """The same, of 32 px."""
    return replace(shaken("test_resnet", classes=classes, size=32), network=Small(classes).eval())
