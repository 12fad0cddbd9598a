"""Soften the labels by the teacher's probabilities of words or answers (DistillVLM, arXiv 2104.02096, fine-tuning).

    L = -tau^2 mean_i sum_c softmax(z^T_i / tau)_c log softmax(z^S_i / tau)_c

with i the masked words, or the question. For answers, too, which are learned by a binary cross-entropy each: the paper
is quoted with a softmax for both. The temperature is ours; the paper's is not known.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import log_softmax, softmax

from ...errors import RecipeError
from ...utils.schema import Rate


@dataclass(frozen=True)
class LogitsConfig:
    """Switches of the soft cross-entropy."""

    weight: Rate = 1.0  # of this loss in the sum; 0: it is not computed
    temperature: float = 1.0  # divides both models' logits

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise RecipeError(f"distillation.logits.temperature = {self.temperature} must be above 0.")


def soft_cross_entropy(student: Tensor, teacher: Tensor, config: LogitsConfig) -> Tensor:
    """Compute the loss of each row of logits [N, C], float32 [N]. The teacher's get no gradient."""
    target = softmax(teacher.detach().float() / config.temperature, dim=1)
    return -(target * log_softmax(student.float() / config.temperature, dim=1)).sum(1) * config.temperature**2
