"""SEED: reproduce the teacher's similarities to a queue of its own past embeddings (arXiv 2101.04731, section 3).

    L = -mean_i sum_j softmax([t_i . t_i, t_i . q] / tau_T)_j  log softmax([s_i . t_i, s_i . q] / tau_S)_j

with q a first-in, first-out queue. LGD is SEED with one row a name in place of the queue, and the text bank's term
added. The preset `lightly_train` is the form in LightlyTrain's first distillation method: one temperature, the batch
put in the queue before the loss, no extra positive. Its mixup and its optimizer (LARS) are settings of a recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..utils.distributed import concat_all_gather
from .base import Assigned, Objective, above_zero, one_of
from .similarity import similarity_loss


@dataclass(frozen=True)
class SEEDConfig:
    """Switches of `SEED`."""

    queue_size: int = 65536  # embeddings
    student_temperature: float = 0.2  # divides the student's similarities
    teacher_temperature: float = 1e-4  # divides the teacher's
    positive: bool = True  # the extra logit student.teacher in front of the queue
    update: Literal["after", "before"] = "after"  # enqueue after the loss, or before it

    def __post_init__(self) -> None:
        above_zero(self, "queue_size", "student_temperature", "teacher_temperature")
        one_of(self, "update", "after", "before")


class SEED(Objective):
    """SEED's loss and its queue.

    Buffers: `queue` [Q, D], unit rows, random at first; `place` [], int64, the index of the row that is replaced next.
    """

    method = "SEED ([arXiv 2101.04731](https://arxiv.org/abs/2101.04731))"
    presets: ClassVar[dict[str, SEEDConfig]] = {
        "seed": SEEDConfig(),
        "lightly_train": SEEDConfig(
            queue_size=8192, student_temperature=0.07, teacher_temperature=0.07, positive=False, update="before"
        ),
    }
    config: SEEDConfig
    queue: Tensor
    place: Tensor

    def __init__(self, text_bank: Tensor, **settings: Any) -> None:
        super().__init__(text_bank, **settings)
        self.per_image = self.config.update == "after"
        self.register_buffer("queue", self.random_rows(self.config.queue_size))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64, device=text_bank.device))

    def score(self, s: Tensor, t: Tensor) -> dict[str, Any]:
        if self.training and self.config.update == "before":
            self._enqueue(t)
        similarity = similarity_loss(
            s,
            t,
            self.queue,
            student_temperature=self.config.student_temperature,
            teacher_temperature=self.config.teacher_temperature,
            positive=self.config.positive,
        )
        return {"loss": similarity.loss}

    @torch.no_grad()
    def update(self, teacher: Tensor, *, assigned: Assigned | None = None) -> None:
        """Put the batch's teacher embeddings [B, D] in the queue. Raises: LGDError where they do not fit the bank."""
        self.check("teacher", teacher)
        if self.config.update == "after":
            self._enqueue(normalize(teacher.float(), dim=1))

    @torch.no_grad()
    def _enqueue(self, rows: Tensor) -> None:
        """Replace the oldest rows by all ranks' [B, D]; if those are more than the queue holds, by the last of them."""
        rows = concat_all_gather(rows)[-len(self.queue) :]
        indices = (self.place + torch.arange(len(rows), device=rows.device)) % len(self.queue)
        # A row that is not finite would spoil every later loss, so the old one stays.
        finite = rows.isfinite().all(1, keepdim=True)
        self.queue.index_copy_(0, indices, torch.where(finite, rows, self.queue[indices]))
        self.place.add_(len(rows)).remainder_(len(self.queue))
