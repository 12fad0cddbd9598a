"""Language-Guided Distillation: reproduce the teacher's similarities to a textual and a visual bank (arXiv 2406.11689).

    L = alpha * L_visual + (1 - alpha) * L_text
    L_text   = -mean_i sum_k softmax(t_i . c_k / tau_T)_k  log softmax(s_i . c_k / tau_S)_k       c: text bank (TSB)
    L_visual = the same over the visual bank v (VSB): a row is the mean of the teacher's rows nearest to a name (LGKA)

The paper and its released code differ (docs/concepts/method.md lists where). Each difference is a switch here, and a
preset for each sets them all. A third preset, "sharp", is the one of the three that learns fastest in our comparisons.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize, pad

from ..errors import LGDError
from ..utils.distributed import rank_and_world_size
from ..utils.schema import Share
from .base import Assigned, Objective, above_zero, between, one_of
from .similarity import chunks, nearest_rows, similarity_loss


@dataclass(frozen=True)
class LGDConfig:
    """Every switch of the objective. Temperatures hold for both banks unless a `visual_*` one is given."""

    alpha: float = 0.5  # weight of the visual bank
    student_temperature: float = 0.2  # divides the student's similarities
    teacher_temperature: float = 0.01  # divides the teacher's
    visual_student_temperature: float | None = None  # of the visual bank; None: as of the textual
    visual_teacher_temperature: float | None = None  # of the visual bank; None: as of the textual
    momentum: Share = 0.999  # of the visual bank
    positive: bool = True  # the extra logit student.teacher in front of the visual bank
    renormalize: bool = False  # bring bank rows back to unit length after each update
    mask_unseen: bool = False  # leave names that no image was assigned to yet out of the visual logits
    update: Literal["after", "before"] = "after"  # update the visual bank after the loss, or before it
    assignment: Literal["hard", "soft"] = "hard"  # arg-max name, or softmax weights over all names
    threshold: float = 0.0  # least teacher probability (at its text temperature) for a hard assignment

    def __post_init__(self) -> None:
        between(self, 0, 1, "alpha", "momentum", "threshold")
        above_zero(self, "student_temperature", "teacher_temperature")
        above_zero(self, "visual_student_temperature", "visual_teacher_temperature")
        one_of(self, "update", "after", "before")
        one_of(self, "assignment", "hard", "soft")


PRESETS: dict[str, LGDConfig] = {
    # scripts/train.sh and clipdistiller.py of the released code
    "reference": LGDConfig(),
    # what the paper's abstract and overview figure say: a distribution over C_1..C_K and nothing else
    "paper": LGDConfig(positive=False),
    # ours: at 0.2 the student can't tell names apart as sharply as the teacher (docs/results/reproduction.md, Rivals)
    "sharp": LGDConfig(positive=False, student_temperature=0.05),
}


class LGD(Objective):
    """The objective and its visual bank: `preset` "reference" (the released code, to 1e-5), "paper" or "sharp".

    Example:
        losses = objective(student, teacher)
        losses["loss"].backward()
        objective.update(teacher, assigned=losses["assigned"])

    Buffers: `text_bank` [C, D]; `visual_bank` [C, D], random unit rows until a name is seen; `seen` [C] bool.
    """

    method = "Language-Guided Distillation ([arXiv 2406.11689](https://arxiv.org/abs/2406.11689))"
    presets = PRESETS
    config: LGDConfig
    visual_bank: Tensor
    seen: Tensor

    def __init__(self, text_bank: Tensor, **settings: Any) -> None:
        super().__init__(text_bank, **settings)
        self.per_image = self.config.update == "after"
        self.register_buffer("visual_bank", self.random_rows(len(text_bank)))
        self.register_buffer("seen", torch.zeros(len(text_bank), dtype=torch.bool, device=text_bank.device))

    def score(self, s: Tensor, t: Tensor) -> dict[str, Any]:
        """Compute both losses of a batch.

        Args:
            s: the student's unit rows, float32 [B, D].
            t: the teacher's unit rows, float32 [B, D].

        Returns:
            `loss`, `loss_text` and `loss_visual`, float32 scalars, and `assigned`, which `update` can use again.
        """
        config = self.config
        text, *nearest = similarity_loss(
            s,
            t,
            self.text_bank,
            student_temperature=config.student_temperature,
            teacher_temperature=config.teacher_temperature,
        )
        assigned = Assigned(*nearest)
        if self.training and config.update == "before":
            self._aggregate(t, assigned)
        visual = similarity_loss(
            s,
            t,
            self.visual_bank,
            student_temperature=config.visual_student_temperature or config.student_temperature,
            teacher_temperature=config.visual_teacher_temperature or config.teacher_temperature,
            positive=config.positive,
            # A softmax needs at least one row: until a name was seen, all rows stay.
            keep=self.seen | ~self.seen.any() if config.mask_unseen else None,
        ).loss
        loss = config.alpha * visual + (1 - config.alpha) * text
        return {"loss": loss, "loss_text": text, "loss_visual": visual, "assigned": assigned}

    @torch.no_grad()
    def update(self, teacher: Tensor, *, assigned: Assigned | None = None) -> None:
        """Move the visual bank towards the batch: Language-Guided Knowledge Aggregation (LGKA).

        With `update: before` the loss has done it already and this does nothing. Across ranks one all-reduce carries
        sums and counts, so the bank stays equal on every rank. Rows with a value that is not finite are left out.
        Nothing is copied to the host.

        Args:
            teacher: embeddings before L2 normalisation [B, D], those that the loss was computed from.
            assigned: `assigned` of the loss's result, which saves a product with the text bank; computed anew if None.

        Raises:
            LGDError: `teacher` does not fit the text bank, or `assigned` does not fit `teacher`.
        """
        self.check("teacher", teacher)
        if assigned is not None and len(assigned.nearest) != len(teacher):
            raise LGDError(
                f"{len(assigned.nearest)} assignments were given for {len(teacher)} teacher embeddings. "
                "Pass those that the loss returned for the same batch, or none."
            )
        if self.config.update == "before":
            return
        with torch.autocast(teacher.device.type, enabled=False):
            rows = normalize(teacher.float(), dim=1)
            if assigned is None:
                assigned = Assigned(*nearest_rows(rows, self.text_bank, temperature=self.config.teacher_temperature))
            self._aggregate(rows, assigned)

    @torch.no_grad()
    def _aggregate(self, rows: Tensor, assigned: Assigned) -> None:
        """Update the bank by unit rows [B, D]: a name's first images set its row, later ones move it by momentum."""
        gathered = self._sum_by_name(rows, assigned)
        if rank_and_world_size()[1] > 1:
            dist.all_reduce(gathered)
        sums, counts = gathered[:, :-1], gathered[:, -1]
        present = counts > torch.finfo(counts.dtype).tiny  # a soft weight below it has no digits left to average with
        keep = torch.where(self.seen, self.config.momentum, 0.0)
        # keep * bank + (1 - keep) * sums / counts, in place; a factor of 1 and a share of 0 leave the other rows alone
        factor, share = torch.where(present, keep, 1.0), torch.where(present, (1 - keep) / counts, 0.0)
        self.visual_bank.mul_(factor[:, None]).addcmul_(sums, share[:, None])
        if self.config.renormalize:
            lengths = self.visual_bank.norm(dim=1).clamp_min(1e-12)
            self.visual_bank.div_(torch.where(present, lengths, 1.0)[:, None])
        self.seen.logical_or_(present)

    def _sum_by_name(self, rows: Tensor, assigned: Assigned) -> Tensor:
        """Sum unit rows [B, D] by name and, in the last column, their weights: [C, D + 1]."""
        hard, names = self.config.assignment == "hard", len(self.text_bank)
        # A comparison with NaN is false: embeddings that are not finite are left out.
        use = assigned.confidence >= (self.config.threshold if hard else 0.0)
        counted = pad(rows, (0, 1), value=1.0)
        if hard:  # one more row takes what is left out
            gathered = counted.new_zeros(names + 1, counted.shape[1])
            return gathered.index_add_(0, torch.where(use, assigned.nearest, names), counted)[:-1]
        counted.masked_fill_(~use[:, None], 0.0)
        gathered = counted.new_zeros(names, counted.shape[1])
        for part in chunks(len(counted), names):
            weights = (counted[part, :-1] @ self.text_bank.T / self.config.teacher_temperature).softmax(1)
            gathered.addmm_(weights.T, counted[part])
        return gathered
