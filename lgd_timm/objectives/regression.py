"""Regression: the student's embedding is the teacher's, no bank and no queue (SimReg, arXiv 2201.05131; facts.md, section 2).

    L = mean_i || s_i - t_i ||^2  =  mean_i (2 - 2 s_i . t_i)       of unit rows

SimReg's strength is its deep head: `student.projector: deep`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .base import Objective, above_zero


@dataclass(frozen=True)
class RegressionConfig:
    student_temperature: float = (
        0.01  # has no part in the loss: at which the student is read as a classifier (CLIP's, 1/100)
    )

    def __post_init__(self) -> None:
        above_zero(self, "student_temperature")


class Regression(Objective):
    """Normalised mean squared error."""

    method = "SimReg's regression ([arXiv 2201.05131](https://arxiv.org/abs/2201.05131))"
    presets: ClassVar[dict[str, RegressionConfig]] = {"simreg": RegressionConfig()}

    def score(self, s: Tensor, t: Tensor) -> dict[str, Any]:
        return {"loss": (2 - 2 * (s * t).sum(1)).mean()}
