"""Reproduce the teacher's attention distributions (DistillVLM, arXiv 2104.02096; its last block alone).

    L = mean_i sum_j (A^S_ij - A^T_ij)^2        i: queries of a picture, and heads; j: keys

The squares are summed over keys: averaged over them too, as MSE is elsewhere, the loss is about 1e-3 and vanishes
beside a cross-entropy of 3. Where student and teacher have different numbers of heads, `heads: mean` averages the
distributions over heads first. The weight is ours; the paper's is not known.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from ...errors import RecipeError
from ...utils.schema import Rate
from .blocks import LAST, States, check_blocks, fit_blocks, mean, mean_of_tokens


@dataclass(frozen=True)
class AttentionConfig:
    """Switches of the attention loss."""

    weight: Rate = 1.0  # of this loss in the sum; 0: it is not computed
    heads: Literal["each", "mean"] = "each"  # compare head by head, or their means
    blocks: list[list[int]] = field(default_factory=lambda: [list(pair) for pair in LAST])  # [student's, teacher's]

    def __post_init__(self) -> None:
        check_blocks(self.blocks, where="distillation.attention.blocks")


def check_heads(config: AttentionConfig, *, student: tuple[int, int], teacher: tuple[int, int]) -> None:
    """Check (blocks, heads) of both models. Raises: RecipeError where the loss can't be computed."""
    fit_blocks(config.blocks, student=student[0], teacher=teacher[0], where="distillation.attention.blocks")
    if config.heads == "each" and student[1] != teacher[1]:
        raise RecipeError(
            f"the student has {student[1]} heads and the teacher {teacher[1]}, so they can't be compared one by one. "
            "Set distillation.attention.heads mean."
        )


def attention_loss(student: States, teacher: States, config: AttentionConfig) -> Tensor:
    """Compute the loss, float32 []. The teacher's states get no gradient."""
    return mean(
        [_distance(student.attention[s], teacher.attention[t], student.valid, heads=config.heads)
         for s, t in config.blocks]
    )  # fmt: skip


def _distance(student: Tensor, teacher: Tensor, valid: Tensor, *, heads: str) -> Tensor:
    """The loss of one block's distributions [B, H, T, T]."""
    student, teacher = student.float(), teacher.detach().float()
    if heads == "mean":
        student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    return mean_of_tokens((student - teacher).square().sum(3).mean(1), valid)
