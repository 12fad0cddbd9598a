"""Regression: reproduce the teacher's embedding itself, without bank or queue (SimReg, arXiv 2201.05131).

    L = mean_i || s_i - t_i ||^2  =  mean_i (2 - 2 s_i . t_i)       of unit rows

SimReg owes its results to a deep projector: `student.projector: deep`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .base import Objective, above_zero


@dataclass(frozen=True)
class RegressionConfig:
    """Switches of `Regression`. The loss has no temperature: this one is for the student as a zero-shot classifier."""

    student_temperature: float = 0.01  # CLIP's, 1/100

    def __post_init__(self) -> None:
        above_zero(self, "student_temperature")


class Regression(Objective):
    """Normalised mean squared error."""

    method = "SimReg's regression ([arXiv 2201.05131](https://arxiv.org/abs/2201.05131))"
    presets: ClassVar[dict[str, RegressionConfig]] = {"simreg": RegressionConfig()}

    def score(self, s: Tensor, t: Tensor) -> dict[str, Any]:
        return {"loss": (2 - 2 * (s * t).sum(1)).mean()}
