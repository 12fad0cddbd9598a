"""Logits: reproduce the teacher's zero-shot distribution over the names (LGD without its visual bank)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .base import Objective, above_zero
from .similarity import similarity_loss


@dataclass(frozen=True)
class LogitsConfig:
    """Switches of `Logits`."""

    student_temperature: float = 0.2  # divides the student's similarities
    teacher_temperature: float = 0.01  # divides the teacher's

    def __post_init__(self) -> None:
        above_zero(self, "student_temperature", "teacher_temperature")


class Logits(Objective):
    """Cross-entropy between the two distributions over the names."""

    method = "distillation of the teacher's zero-shot answers"
    presets: ClassVar[dict[str, LogitsConfig]] = {"logits": LogitsConfig()}
    config: LogitsConfig

    def score(self, s: Tensor, t: Tensor) -> dict[str, Any]:
        config = self.config
        similarity = similarity_loss(
            s,
            t,
            self.text_bank,
            student_temperature=config.student_temperature,
            teacher_temperature=config.teacher_temperature,
        )
        return {"loss": similarity.loss}
