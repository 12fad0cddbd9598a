"""Supervised: true labels instead of a teacher, everything else equal. An upper bound, and the only use of labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from .base import Objective, above_zero, between


@dataclass(frozen=True)
class SupervisedConfig:
    """Switches of `Supervised`."""

    student_temperature: float = 0.1  # divides the student's similarities
    smoothing: float = 0.0  # label smoothing

    def __post_init__(self) -> None:
        above_zero(self, "student_temperature")
        between(self, 0, 1, "smoothing")


class Supervised(Objective):
    """Cross-entropy between labels and similarities to the names. Images without a label (-1) are ignored."""

    method = "supervised learning over the names' text embeddings"
    presets: ClassVar[dict[str, SupervisedConfig]] = {"supervised": SupervisedConfig()}
    needs_labels = True
    config: SupervisedConfig

    def forward(self, student: Tensor, target: Tensor) -> dict[str, Any]:
        """Compute the loss from labels: `target`, int64 [B], is the row of the image's name in the text bank."""
        self.check("student", student)
        with torch.autocast(student.device.type, enabled=False):
            logits = normalize(student.float(), dim=1) @ self.text_bank.T / self.config.student_temperature
            return {"loss": cross_entropy(logits, target, ignore_index=-1, label_smoothing=self.config.smoothing)}
