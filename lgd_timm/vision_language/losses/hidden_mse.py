"""Regress the teacher's hidden states: what DistillVLM (arXiv 2104.02096, table 3) compares its NCE with.

L = mean_i mean_d (W s_i - t_i)_d^2        i: tokens of a picture; W: a linear map to the teacher's width
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from ...utils.schema import Rate
from .blocks import LAST, States, check_blocks, mean, mean_of_tokens
from .projection import projectors


@dataclass(frozen=True)
class HiddenMSEConfig:
    """Switches of the hidden states' MSE."""

    weight: Rate = 0.0  # of this loss in the sum; 0: it is not computed
    blocks: list[list[int]] = field(default_factory=lambda: [list(pair) for pair in LAST])  # [student's, teacher's]

    def __post_init__(self) -> None:
        check_blocks(self.blocks, where="distillation.hidden_mse.blocks")


class HiddenMSE(nn.Module):
    """The loss and its projectors."""

    def __init__(self, config: HiddenMSEConfig, *, student: int, teacher: int) -> None:
        super().__init__()
        self.config = config
        self.projectors = projectors(len(config.blocks), student=student, teacher=teacher)

    def forward(self, student: States, teacher: States) -> Tensor:
        """Compute the loss, float32 []. The teacher's states get no gradient."""
        parts = []
        for number, (s, t) in enumerate(self.config.blocks):
            difference = self.projectors[number](student.hidden[s]).float() - teacher.hidden[t].detach().float()
            parts.append(mean_of_tokens(difference.square().mean(2), student.valid))
        return mean(parts)
