"""Language-Guided Distillation: reproduce the teacher's similarities to a textual and a visual bank (arXiv 2406.11689).

    L = alpha * L_visual + (1 - alpha) * L_text
    L_text   = -mean_i sum_k softmax(t_i . c_k / tau_T)_k  log softmax(s_i . c_k / tau_S)_k       c: text bank (TSB)
    L_visual = the same over the visual bank v (VSB), whose entries are the teacher's features aggregated per name (LGKA)

The paper and its released code differ (facts.md 1.4); each difference is a switch here, and a preset for each sets them all. A third
one is what learns fastest on our footing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize, pad

from ..utils.distributed import rank_and_world_size
from .base import Objective, above_zero, between, one_of
from .similarity import chunks, nearest_rows, similarity_loss

Assignment = Literal["hard", "soft"]


@dataclass(frozen=True)
class LGDConfig:
    """Every switch of the objective. Temperatures hold for both banks unless a `visual_*` one is given."""

    alpha: float = 0.5  # weight of the visual bank
    student_temperature: float = 0.2
    teacher_temperature: float = 0.01
    visual_student_temperature: float | None = None
    visual_teacher_temperature: float | None = None
    momentum: float = 0.999  # of the visual bank
    positive: bool = True  # the extra logit student.teacher in front of the visual bank
    renormalize: bool = False  # bring bank rows back to unit length after each update
    mask_unseen: bool = False  # leave names that no image was assigned to yet out of the visual logits
    update: Literal["after", "before"] = "after"  # bank step after the loss, or before it
    assignment: Assignment = "hard"  # arg-max name, or softmax weights over all names
    threshold: float = 0.0  # least teacher probability (at its text temperature) for a hard assignment

    def __post_init__(self) -> None:
        between(self, 0, 1, "alpha", "momentum", "threshold")
        above_zero(
            self,
            "student_temperature",
            "teacher_temperature",
            "visual_student_temperature",
            "visual_teacher_temperature",
        )
        one_of(self, "update", "after", "before")
        one_of(self, "assignment", "hard", "soft")


PRESETS: dict[str, LGDConfig] = {
    # scripts/train.sh and clipdistiller.py of the released code
    "reference": LGDConfig(),
    # the paper's equations: a distribution over C_1..C_K and nothing else
    "paper": LGDConfig(positive=False),
    # ours: at 0.2 the student can't tell names apart as sharply as the teacher does (docs/reproduction.md, Rivals)
    "sharp": LGDConfig(positive=False, student_temperature=0.05),
}


class _Assigned(NamedTuple):
    """A batch of the teacher's unit rows [B, D], the name nearest to each [B], and that name's probability [B]."""

    teacher: Tensor
    nearest: Tensor
    confidence: Tensor


class LGD(Objective):
    """The objective and its visual bank: `preset` "reference" (the released code, to 1e-5 of its numbers), "paper" or "sharp".

    Buffers: `text_bank` [C, D]; `visual_bank` [C, D], random unit rows until a name is seen; `seen` [C] bool.
    """

    method = "Language-Guided Distillation ([arXiv 2406.11689](https://arxiv.org/abs/2406.11689))"
    presets = PRESETS
    config: LGDConfig
    visual_bank: Tensor
    seen: Tensor
    _note: tuple[Tensor, int, _Assigned] | None = (
        None  # for `update`: the last teacher, its version, and what became of it
    )

    def __init__(self, text_bank: Tensor, **settings: Any) -> None:
        super().__init__(text_bank, **settings)
        self.per_image = self.config.update == "after"
        self.register_buffer("visual_bank", self.random_rows(len(text_bank)))
        self.register_buffer("seen", torch.zeros(len(text_bank), dtype=torch.bool, device=text_bank.device))

    def forward(self, student: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Embeddings [B, D] of student and teacher, before L2 normalisation -> `loss`, `loss_text`, `loss_visual`, float32 scalars.

        Raises: LGDError for embeddings that do not fit the text bank or one another.
        """
        s, t = self.unit_rows(student, target)
        self._note = None
        losses, assigned = self._score(s, t)
        # A graph can't ask for versions, and inference tensors have none: `update` then does without a note.
        if (
            self.training
            and self.config.update == "after"
            and not torch.compiler.is_compiling()
            and not target.is_inference()
        ):
            self._note = (target, target._version, assigned)
        return losses

    @torch.no_grad()
    def update(self, teacher: Tensor) -> None:
        """Language-Guided Knowledge Aggregation: move the visual bank towards the batch, teacher embeddings [B, D].

        What the loss has found out about the same tensor is used again, unless the tensor was changed in between.
        With `update: before` the loss has done it already and this is empty. Across ranks one all-reduce carries sums
        and counts, so the bank stays equal on every rank. Rows with a value that is not finite are left out. Nothing is
        copied to the host.

        Raises: LGDError for embeddings that do not fit the text bank.
        """
        self.check("teacher", teacher)
        note, self._note = self._note, None
        if self.config.update == "before":
            return
        with torch.autocast(teacher.device.type, enabled=False):
            if note is not None and note[0] is teacher and note[1] == teacher._version:
                assigned = note[2]
            else:
                unit = normalize(teacher.float(), dim=1)
                assigned = _Assigned(
                    unit, *nearest_rows(unit, self.text_bank, temperature=self.config.teacher_temperature)
                )
            self._aggregate(assigned)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """In place, with `torch.compile`'s arguments: the whole loss, but not the note for `update`."""
        self._score = torch.compile(self._score, *args, **kwargs)  # type: ignore[method-assign]

    def __getstate__(self) -> dict[str, Any]:
        # As with every module a copy is not compiled; the code would go on using this one's banks.
        return {name: value for name, value in super().__getstate__().items() if name not in ("_score", "_note")}

    def _score(self, s: Tensor, t: Tensor) -> tuple[dict[str, Tensor], _Assigned]:
        config = self.config
        with torch.autocast(s.device.type, enabled=False):
            text, *best = similarity_loss(
                s,
                t,
                self.text_bank,
                student_temperature=config.student_temperature,
                teacher_temperature=config.teacher_temperature,
            )
            assigned = _Assigned(t, *best)
            if self.training and config.update == "before":
                self._aggregate(assigned)
            visual = similarity_loss(
                s,
                t,
                self.visual_bank,
                student_temperature=config.visual_student_temperature or config.student_temperature,
                teacher_temperature=config.visual_teacher_temperature or config.teacher_temperature,
                positive=config.positive,
                # Before anything was seen no row may stay, and a softmax needs one: then all do.
                keep=self.seen | ~self.seen.any() if config.mask_unseen else None,
            ).loss
            losses = {
                "loss": config.alpha * visual + (1 - config.alpha) * text,
                "loss_text": text,
                "loss_visual": visual,
            }
            return losses, assigned

    @torch.no_grad()
    def _aggregate(self, assigned: _Assigned) -> None:
        """One bank step: first sighting copies the mean, later ones move by momentum."""
        gathered = self._gather(assigned)
        if rank_and_world_size()[1] > 1:
            dist.all_reduce(gathered)
        sums, counts = gathered[:, :-1], gathered[:, -1]
        present = counts > torch.finfo(counts.dtype).tiny  # a soft weight below it has no digits left to average with
        keep = torch.where(self.seen, self.config.momentum, 0.0)
        # keep * bank + (1 - keep) * sums / counts, in place; a factor of 1 and a share of 0 leave the other rows as they are.
        factor, share = torch.where(present, keep, 1.0), torch.where(present, (1 - keep) / counts, 0.0)
        self.visual_bank.mul_(factor[:, None]).addcmul_(sums, share[:, None])
        if self.config.renormalize:
            lengths = self.visual_bank.norm(dim=1).clamp_min(1e-12)
            self.visual_bank.div_(torch.where(present, lengths, 1.0)[:, None])
        self.seen.logical_or_(present)

    def _gather(self, assigned: _Assigned) -> Tensor:
        """The batch's sums for each name and, in the last column, their weights: [C, D + 1]."""
        hard, names = self.config.assignment == "hard", len(self.text_bank)
        # A NaN is never at or above: embeddings that are not finite are left out.
        use = assigned.confidence >= (self.config.threshold if hard else 0.0)
        rows = pad(assigned.teacher, (0, 1), value=1.0)
        if hard:  # one more row takes what is left out
            gathered = rows.new_zeros(names + 1, rows.shape[1])
            return gathered.index_add_(0, torch.where(use, assigned.nearest, names), rows)[:-1]
        rows.masked_fill_(~use[:, None], 0.0)
        gathered = rows.new_zeros(names, rows.shape[1])
        for part in chunks(len(rows), names):
            weights = (rows[part, :-1] @ self.text_bank.T / self.config.teacher_temperature).softmax(1)
            gathered.addmm_(weights.T, rows[part])
        return gathered
