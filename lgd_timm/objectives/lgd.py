"""Language-Guided Distillation: reproduce the teacher's similarities to a textual and a visual bank (arXiv 2406.11689).

    L = alpha * L_visual + (1 - alpha) * L_text
    L_text   = -mean_i sum_k softmax(t_i . c_k / tau_T)_k  log softmax(s_i . c_k / tau_S)_k       c: text bank (TSB)
    L_visual = the same over the visual bank v (VSB), whose entries are the teacher's features aggregated per name (LGKA)

The paper and its released code differ (facts.md 1.4); each difference is a switch here, and two presets set them all.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import log_softmax, normalize

from ..errors import LGDError
from .base import Objective

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
        for name, low, high in (("alpha", 0.0, 1.0), ("momentum", 0.0, 1.0), ("threshold", 0.0, 1.0)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise LGDError(f"objective.{name} = {value} is outside [{low:g}, {high:g}].")
        for name in (
            "student_temperature",
            "teacher_temperature",
            "visual_student_temperature",
            "visual_teacher_temperature",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise LGDError(f"objective.{name} = {value} must be above 0.")
        for name, choices in (("update", ("after", "before")), ("assignment", ("hard", "soft"))):
            if getattr(self, name) not in choices:
                raise LGDError(f"objective.{name} = {getattr(self, name)!r} is unknown; choose {' or '.join(choices)}.")


PRESETS: dict[str, LGDConfig] = {
    # scripts/train.sh and clipdistiller.py of the released code
    "reference": LGDConfig(),
    # the paper's equations: a distribution over C_1..C_K and nothing else
    "paper": LGDConfig(positive=False),
}


def configure(preset: str = "reference", **switches: Any) -> LGDConfig:
    """A preset with some switches changed. Raises: LGDError for unknown presets, switches or values."""
    if preset not in PRESETS:
        raise LGDError(f"objective.preset {preset!r} is unknown; choose one of {', '.join(PRESETS)}.")
    known = asdict(PRESETS[preset])
    if unknown := sorted(set(switches) - set(known)):
        raise LGDError(f"objective has no switch {unknown[0]!r}; it has {', '.join(known)}.")
    return replace(PRESETS[preset], **switches)


class LGD(Objective):
    """The objective and its visual bank.

    Args:
        text_bank: unit rows [C, D], one a category name.
        preset: "reference" (the released code, to 1e-5 of its numbers) or "paper".
        seed: of the visual bank's random start, so that every rank starts with the same.
        switches: fields of LGDConfig that override the preset's.

    Buffers: `text_bank` [C, D]; `visual_bank` [C, D], random unit rows until a name is seen; `seen` [C] bool.
    Raises: LGDError for a bank that is no [C, D] matrix of unit rows, or unknown switches.
    """

    text_bank: Tensor
    visual_bank: Tensor
    seen: Tensor

    def __init__(self, text_bank: Tensor, *, preset: str = "reference", seed: int = 0, **switches: Any) -> None:
        super().__init__()
        _check_bank(text_bank)
        self.config = configure(preset, **switches)
        text_bank = text_bank.detach().float()
        start = torch.randn(text_bank.shape, generator=torch.Generator().manual_seed(seed)).to(text_bank.device)
        self.register_buffer("text_bank", text_bank.clone())
        self.register_buffer("visual_bank", normalize(start, dim=1))
        self.register_buffer("seen", torch.zeros(len(text_bank), dtype=torch.bool, device=text_bank.device))

    def forward(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Embeddings [B, D] each, before L2 normalisation -> `loss`, `loss_text`, `loss_visual`, float32 scalars."""
        self._check(student, teacher)
        config = self.config
        with torch.autocast(student.device.type, enabled=False):  # temperatures of 0.01 need float32
            s = normalize(student.float(), dim=1)
            t = normalize(teacher.detach().float(), dim=1)
            if self.training and config.update == "before":
                self._aggregate(t)
            text = cross_entropy(s @ self.text_bank.T / config.student_temperature, t @ self.text_bank.T / config.teacher_temperature)
            visual = cross_entropy(
                self._visual_logits(s, t, config.visual_student_temperature or config.student_temperature),
                self._visual_logits(t, t, config.visual_teacher_temperature or config.teacher_temperature),
            )
            return {"loss": config.alpha * visual + (1 - config.alpha) * text, "loss_text": text, "loss_visual": visual}

    @torch.no_grad()
    def update(self, teacher: Tensor) -> None:
        """Language-Guided Knowledge Aggregation: move the visual bank towards the batch, teacher embeddings [B, D].

        With `update: before` the loss has done it already and this is empty. Across ranks one all-reduce carries sums
        and counts, so the bank stays equal on every rank. Nothing is copied to the host.
        """
        if self.config.update == "after":
            with torch.autocast(teacher.device.type, enabled=False):
                self._aggregate(normalize(teacher.float(), dim=1))

    def _visual_logits(self, embeddings: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        # The bank changes in place after the loss, while the backward pass still needs it as it was.
        logits = embeddings @ self.visual_bank.clone().T / temperature
        if self.config.mask_unseen:
            # Before anything was seen no row may stay, and a softmax needs one: then all do. Filled with the least finite
            # number and only now that the temperature is in: minus infinity times a probability of 0 would be NaN.
            logits = logits.masked_fill(~(self.seen | ~self.seen.any()), torch.finfo(logits.dtype).min)
        if self.config.positive:
            logits = torch.cat([(embeddings * teacher).sum(1, keepdim=True) / temperature, logits], dim=1)
        return logits

    @torch.no_grad()
    def _aggregate(self, teacher: Tensor) -> None:
        """One bank step with unit rows [B, D]: first sighting copies the mean, later ones move by momentum."""
        weights = self._assign(teacher)  # [B, C]
        sums, counts = weights.T @ teacher, weights.sum(0)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            both = torch.cat([sums, counts[:, None]], dim=1)
            dist.all_reduce(both)
            sums, counts = both[:, :-1], both[:, -1]
        tiny = torch.finfo(counts.dtype).tiny
        present = counts > tiny  # a soft weight below the smallest normal number has no digits left to average with
        mean = sums / counts.clamp_min(tiny)[:, None]
        keep = torch.where(self.seen, self.config.momentum, 0.0)[:, None]
        bank = keep * self.visual_bank + (1 - keep) * mean
        if self.config.renormalize:
            bank = normalize(bank, dim=1)
        self.visual_bank.copy_(torch.where(present[:, None], bank, self.visual_bank))
        self.seen.logical_or_(present)

    def _assign(self, teacher: Tensor) -> Tensor:
        """Weight of each name for each image, [B, C]: one-hot of the most similar text, or a softmax over all."""
        logits = teacher @ self.text_bank.T / self.config.teacher_temperature
        if self.config.assignment == "soft":
            return logits.softmax(1)
        best, name = logits.max(1)
        weights = torch.zeros_like(logits).scatter_(1, name[:, None], 1.0)
        if self.config.threshold > 0:
            weights *= ((best - logits.logsumexp(1)).exp() >= self.config.threshold)[:, None]
        return weights

    def _check(self, student: Tensor, teacher: Tensor) -> None:
        expected = self.text_bank.shape[1]
        for who, embeddings in (("student", student), ("teacher", teacher)):
            if embeddings.ndim != 2 or embeddings.shape[1] != expected:
                raise LGDError(f"{who} embeddings have shape {list(embeddings.shape)}; the text bank asks for [B, {expected}].")
        if len(student) != len(teacher):
            raise LGDError(
                f"{len(student)} student embeddings stand beside {len(teacher)} of the teacher; both must be of the same images."
            )

    def extra_repr(self) -> str:
        return f"names={len(self.text_bank)}, dim={self.text_bank.shape[1]}, {self.config}"


def cross_entropy(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """-mean_i sum_k softmax(teacher)_ik log softmax(student)_ik; logits [B, C] each."""
    return -(teacher_logits.softmax(1) * log_softmax(student_logits, dim=1)).sum(1).mean()


def _check_bank(bank: Tensor) -> None:
    if bank.ndim != 2 or len(bank) < 2:
        raise LGDError(f"The text bank has shape {list(bank.shape)}; it must be [C, D] with at least two names.")
    norms = bank.float().norm(dim=1)
    if not torch.allclose(norms, torch.ones_like(norms), atol=1e-3):
        raise LGDError(f"The text bank's rows have lengths {norms.min():.3f} to {norms.max():.3f}; they must be unit vectors.")
